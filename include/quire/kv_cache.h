#pragma once
// (draft: owned by the MLX layer)
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "quire/ops.h"
#include "quire/sequence_cache.h"

namespace quire {

struct KvCacheOptions {
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int num_blocks = 0;
  int block_size = kDefaultBlockSize;
  mlx::core::Dtype dtype = mlx::core::float16;
};

/** Arrays of one decode or prefill step, the same for every layer. */
struct CacheStep {
  std::int64_t id;
  mlx::core::array block_table;   // [num_seqs, max_blocks_per_seq] int32
  mlx::core::array seq_lens;      // [num_seqs] int32, new tokens included
  mlx::core::array slot_mapping;  // [sum of new tokens] int64
  mlx::core::array block_copies;  // [num_copies, 2] int32
  int max_seq_len;
};

class KvCache {
 public:
  explicit KvCache(const KvCacheOptions& options);
  const KvCacheOptions& options() const;
  std::int64_t memory_bytes() const;
  BlockPool& pool();
  SequenceCache make_sequence();

  /** Appends num_new_tokens[i] tokens to each sequence; nullopt, and nothing
   * changed, when the pool has too few blocks. */
  [[nodiscard]] std::optional<CacheStep> begin_step(
      std::span<SequenceCache* const> sequences,
      std::span<const int> num_new_tokens);

  /** Copies blocks where the step says so and writes k and v
   * [num_tokens, num_kv_heads, head_dim] of one layer, in place. */
  void append(
      int layer,
      const CacheStep& step,
      const mlx::core::array& k,
      const mlx::core::array& v);
  const mlx::core::array& k_cache(int layer) const;
  const mlx::core::array& v_cache(int layer) const;

  /** All work of this step has been evaluated: released blocks may be used. */
  void complete_step(const CacheStep& step);
};

}  // namespace quire
