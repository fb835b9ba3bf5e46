#pragma once

#include <vector>

#include "tools/llama/kv_store.h"

namespace quire::tools {

/**
 * The ordinary way to keep a cache in MLX, as a yardstick: for each sequence
 * and layer one contiguous array, grown in steps of 256 tokens, written by
 * slice_update and read by fast::scaled_dot_product_attention.
 */
class DenseStore : public KvStore {
 public:
  DenseStore(int num_layers, int num_kv_heads, int head_dim, mx::Dtype dtype);

  int add_sequence() override;
  int seq_len(int sequence) const override;
  bool begin_step(std::span<const int> sequences, int num_tokens) override;
  mx::array attend(
      int layer,
      const mx::array& q,
      const mx::array& k,
      const mx::array& v) override;
  void end_step() override {}
  CacheReport report() const override;

 private:
  struct Layer {
    mx::array k;  // [1, num_kv_heads, capacity, head_dim]
    mx::array v;
  };
  struct Sequence {
    int seq_len = 0;
    std::vector<Layer> layers;
  };

  mx::array attend_one(
      Sequence& sequence,
      int layer,
      const mx::array& q,
      const mx::array& k,
      const mx::array& v) const;

  int num_layers_;
  int num_kv_heads_;
  int head_dim_;
  mx::Dtype dtype_;
  std::vector<Sequence> sequences_;
  std::vector<int> step_sequences_;
};

}  // namespace quire::tools
