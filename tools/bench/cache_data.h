// The data of a cell: one paged pool that steps rotate over, and contiguous
// copies of the same tokens for the dense paths.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <mlx/mlx.h>

#include "kernels/decode_params.h"
#include "tools/bench/shape.h"

namespace quire::bench {

mlx::core::Dtype mlx_dtype(DType dtype);

/**
 * One pool of blocks and as many disjoint sets of sequences as it holds.
 *
 * - The block tables are a permutation of the whole pool.
 * - Queries, K and V come from N(0, 1); no two blocks are equal.
 * - Step i reads set i modulo num_sets(); all sets together are larger than
 *   the last-level cache where `rotation_bytes` is.
 */
class CacheData {
 public:
  CacheData(const Shape& shape, std::int64_t rotation_bytes);

  const Shape& shape() const {
    return shape_;
  }
  int num_sets() const {
    return static_cast<int>(tables_.size());
  }
  /** Bytes of K and V that all sets together read. */
  std::int64_t total_kv_bytes() const;

  const mlx::core::array& q() const {
    return q_;
  }
  const mlx::core::array& k_cache() const {
    return k_cache_;
  }
  const mlx::core::array& v_cache() const {
    return v_cache_;
  }
  const mlx::core::array& block_table(int set) const {
    return tables_[static_cast<std::size_t>(set)];
  }
  const mlx::core::array& seq_lens() const {
    return seq_lens_;
  }
  float scale() const {
    return decode_params(shape_, 0).scale;
  }

  /** Set `set` as a kernel takes it, with no output yet. */
  DecodeArgs args(int set) const;

 private:
  Shape shape_;
  mlx::core::array q_;  // [num_seqs, num_q_heads, head_dim]
  // [num_blocks, block_size, num_kv_heads, head_dim]; the host's are the same
  // arrays where device and host share memory.
  mlx::core::array host_k_cache_;
  mlx::core::array host_v_cache_;
  mlx::core::array k_cache_;
  mlx::core::array v_cache_;
  mlx::core::array seq_lens_;             // [num_seqs]
  std::vector<mlx::core::array> tables_;  // each [num_seqs, blocks_per_seq]
};

/** The tokens of the first sets as MLX's attention takes them. */
struct DenseSets {
  DType dtype = DType::Float32;
  // Each [num_seqs, num_kv_heads, context, head_dim].
  std::vector<mlx::core::array> k;
  std::vector<mlx::core::array> v;
};

/** Copies as many sets as `max_bytes` hold, at least one, in `dtype`; calls
 * `poll` between sets. */
DenseSets make_dense_sets(
    const CacheData& data,
    DType dtype,
    std::int64_t max_bytes,
    const std::function<void()>& poll);

}  // namespace quire::bench
