#pragma once

#include <optional>
#include <vector>

#include "quire/kv_cache.h"
#include "quire/ops.h"
#include "tools/llama/kv_store.h"

namespace quire::tools {

/**
 * Sequences in Quire's paged cache. A decode step attends through
 * quire::paged_attention; the chunk of a prompt gathers its sequence's blocks
 * and attends to them as a dense prefill does.
 */
class PagedStore : public KvStore {
 public:
  PagedStore(const KvCacheOptions& options, NativeKernel native_kernel);

  int add_sequence() override;
  int seq_len(int sequence) const override;
  bool begin_step(std::span<const int> sequences, int num_tokens) override;
  mx::array attend(
      int layer,
      const mx::array& q,
      const mx::array& k,
      const mx::array& v) override;
  void end_step() override;
  CacheReport report() const override;

 private:
  mx::array attend_prompt(int layer, const mx::array& q) const;

  KvCache cache_;
  NativeKernel native_kernel_;
  std::vector<SequenceCache> sequences_;
  std::vector<int> step_sequences_;
  std::optional<CacheStep> step_;
  int blocks_used_peak_ = 0;
};

}  // namespace quire::tools
