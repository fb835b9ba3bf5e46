// How far a result may be from the double-precision reference: the bound that
// docs/numerics.md derives, and the three measures that every case must pass.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/decode_params.h"

namespace quire::testing {

/** The reference of a step and how far each element may be from it. */
struct Expected {
  std::vector<double> out;    // [num_seqs, num_q_heads, head_dim]
  std::vector<double> bound;  // as out, absolute
};

/** What a backend rounds besides its result. */
struct Rounding {
  bool weights_to_kv_dtype = false;  // softmax weights, as tensor cores do
  bool q_to_kv_dtype = false;        // queries before Q.K^T
};

/**
 * Runs the double reference twice (V, then |V| for the bound). Reads args'
 * arrays, not args.out.
 */
Expected expect(const DecodeArgs& args, const Rounding& rounding = {});

/** The error of one result against its reference. */
struct ErrorStats {
  double rms = 0;
  double reference_rms = 0;
  double relative_rms = 0;  // rms over reference_rms; 0 if both are 0
  double max_abs = 0;
  double max_over_bound = 0;  // above 1: some element broke its bound
  double bound = 0;           // of the element that came nearest to its bound
  std::int64_t worst = -1;    // that element's index
  bool finite = true;         // no NaN or infinity where the reference has none
};

ErrorStats compare(
    const void* out,
    DType dtype,
    const std::vector<double>& expected,
    const std::vector<double>& bound);

/** The project's promise: RMS and relative RMS below this, in every case. */
inline constexpr double kRmsThreshold = 5e-3;

/** What a result must stay below to pass, besides its bounds. */
struct Limits {
  double rms = kRmsThreshold;
  double relative_rms = kRmsThreshold;
};

/**
 * The limits of a single case: where the reference is larger than 1, as with a
 * handful of tokens it can be, rounding the result to bf16 alone would break an
 * absolute limit, so the RMS may grow with it.
 */
Limits limits_of(const ErrorStats& stats);

/** Empty if the result passes; else what it broke, in words. */
std::string verdict(const ErrorStats& stats, const Limits& limits);

}  // namespace quire::testing
