// The 200-step validation: decoding as it really happens, fused against the
// reference, on the device at hand. `quire validate` prints what it returns.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <mlx/mlx.h>

#include "quire/kv_cache.h"
#include "support/compare.h"
#include "support/decode_case.h"

namespace quire::testing {

/** What runs the fused path of a step: the op, or a kernel run on the host. */
class FusedPath {
 public:
  virtual ~FusedPath() = default;

  /** Writes k, v [num_tokens, num_kv_heads, head_dim] into layer 0. */
  virtual void append(
      KvCache& cache,
      const CacheStep& step,
      const mlx::core::array& k,
      const mlx::core::array& v) = 0;

  /** Attention of q [num_seqs, num_q_heads, head_dim], evaluated. */
  virtual mlx::core::array attend(
      const KvCache& cache,
      const CacheStep& step,
      const mlx::core::array& q,
      float scale,
      int num_splits) = 0;
};

/** paged_attention with NativeKernel::On, on the default device. */
std::unique_ptr<FusedPath> make_op_path();

struct ValidationOptions {
  int steps = 200;
  double threshold = kRmsThreshold;
  std::uint64_t seed = 0;
  int steps_per_sample = 40;  // steps between checks against the reference in
                              // double; the last step is always one
  /** Asked before each step; true ends the case, which then has not passed. */
  std::function<bool(int step)> stop = {};
  Rounding rounding = {};  // of the fused path
};

struct ValidationResult {
  std::string name = {};
  std::string path = {};  // what the counters say ran, "+" between several
  int steps = 0;
  double max_rms = 0;           // of fused - gather, over the steps
  double max_relative_rms = 0;  // the same over gather's RMS
  double max_abs = 0;
  double bound = 0;  // of the element that came nearest to its bound
  bool passed = false;
  std::string reason = {};  // what it broke; empty if it passed
};

/**
 * Decodes `options.steps` steps of one case: each appends a token to every
 * sequence in place; sequences are forked, truncated and restarted on the way.
 * Each step compares the fused path with gather-then-SDPA computed in float32;
 * every steps_per_sample-th step compares both with the reference in double
 * over tokens that were logged in host memory, so that a wrong append, fork or
 * block copy shows as well.
 *
 * Slots that no sequence holds are NaN from the start. Passes if RMS and
 * relative RMS stay below the threshold, no element exceeds its bound, and the
 * counters show that the fused path, and nothing else, ran in every step.
 * Never throws for a failing path: what it threw is the reason.
 */
ValidationResult validate_case(
    const DecodeCase& c,
    FusedPath& fused,
    const ValidationOptions& options = {});

}  // namespace quire::testing
