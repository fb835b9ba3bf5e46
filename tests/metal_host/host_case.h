// One decode step for the host execution, with everything around the data that
// must not be read or written turned into a trap.
#pragma once

#include <cstdint>
#include <ostream>
#include <vector>

#include "host_launch.h"

namespace quire::metal_host {

/** A decode step. K, V and q are drawn from N(0, 1), q times q_scale. */
struct HostCase {
  DType q_dtype = DType::Float16;
  DType kv_dtype = DType::Float16;
  int head_dim = 128;
  int group_size = 1;
  int num_kv_heads = 1;
  int block_size = 32;
  std::vector<int> seq_lens;
  int num_splits = 1;
  float q_scale = 1.0f;  // large: one key dominates, maxima grow often
  unsigned seed = 1;     // of the data
};

std::ostream& operator<<(std::ostream& stream, const HostCase& c);

/**
 * The arrays of a case. Traps: the table is permuted and its unused entries are
 * 2147480000; every slot of the pool that no sequence owns is NaN, three whole
 * blocks among them; out starts as NaN and lies between canaries, as does the
 * workspace. Under MSan all of these are poisoned as well.
 */
class HostProblem {
 public:
  explicit HostProblem(const HostCase& c);
  ~HostProblem();
  HostProblem(const HostProblem&) = delete;
  HostProblem& operator=(const HostProblem&) = delete;

  DecodeArgs args();

  /** Runs the launch with a workspace of its own. */
  void run(const metal::DecodeLaunch& launch, unsigned schedule = 0);

  /** Shows buffers to the lock-step runtime: q, k, v, table, lens, workspace,
   * out. The workspace is that of the launch, made here. */
  void watch(const metal::DecodeLaunch& launch);

  /** Moves every block of the pool elsewhere, with its NaNs. */
  void permute_blocks();

  /** Makes K and V of one KV head NaN, in every slot. */
  void fill_head_with_nan(int kv_head);

  /** The largest relative RMS error of a (sequence, query head) row against the
   * reference in double; infinite if a row of an empty sequence is not zero or
   * a canary was overwritten. */
  double max_error() const;

  /** Bytes of the result, to compare runs. */
  std::vector<unsigned char> result() const;

  std::int64_t num_tokens() const;
  const DecodeParams& params() const {
    return params_;
  }

 private:
  HostCase case_;
  DecodeParams params_;
  std::vector<unsigned char> q_, k_, v_, out_, workspace_;
  std::vector<std::int32_t> table_, lens_;
};

/** What max_error() may reach: rounding of q's type, and f32 accumulation. */
double error_bound(const HostCase& c);

}  // namespace quire::metal_host
