// The ways to compute a cell's step that are timed against each other.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include <mlx/mlx.h>

#include "kernels/decode_params.h"
#include "quire/ops.h"
#include "support/compare.h"
#include "tools/bench/cache_data.h"

namespace quire::bench {

/** One way to compute a cell's step, ready to run again and again. */
struct Path {
  std::string name;       // as asked for
  std::string timing;     // "kernel" or "end_to_end"
  std::string must_run;   // as count_ran() says it
  std::string uncounted;  // what ran if no counter of the library moved
  DType q_dtype = DType::Float32;
  DType kv_dtype = DType::Float32;
  // What a right result may be off by: docs/numerics.md has both measures.
  double max_rms = testing::kRmsThreshold;  // absolute and relative
  bool is_bounded = true;                   // element by element as well
  int num_sets = 0;  // of the data's; runs rotate over them
  int steps = 1;     // of a run, whose time is divided by them
  /** Computes one set, from the arrays to the finished output. */
  std::function<void(int set)> run;
  /** The last run's output, [num_seqs, num_q_heads, head_dim] in q_dtype. */
  std::function<const void*()> output;
};

/** A kernel's own entry: computes args into args.out. */
using Kernel = std::function<void(const DecodeArgs&)>;

/** `kernel` alone, on the pool; its output holds NaN until it writes it. */
Path make_kernel_path(const CacheData& data, Kernel kernel);

/** paged_attention of `q` over one set of the data, not yet evaluated. */
mlx::core::array paged_step(
    const CacheData& data,
    int set,
    const mlx::core::array& q,
    NativeKernel native);

/** paged_attention with the fused kernel demanded, op by op; `must_run` is
 * what the counters call it on the default device. */
Path make_fused_path(const CacheData& data, const std::string& must_run);

/** paged_attention without it: gather, then MLX's attention. */
Path make_gather_path(const CacheData& data);

/**
 * MLX's attention over contiguous K and V, all in the sets' dtype. Sequences
 * shorter than the context are padded to it and masked.
 */
Path make_dense_path(
    const CacheData& data,
    const std::string& name,
    const std::shared_ptr<const DenseSets>& sets);

/** The dtype in which MLX's attention is fastest here, for this cell; calls
 * `poll` between runs. */
DType fastest_dense_dtype(
    const CacheData& data,
    const std::function<void()>& poll);

}  // namespace quire::bench
