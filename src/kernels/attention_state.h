// The online-softmax algebra, once, compiled as C++, CUDA and MSL.
//
// A partial attention state is (o, m, d): o the weighted sum of V rows, m the
// largest logit, d the sum of exponentials, all relative to m and in base 2:
//
//   d = sum_i 2^(s_i - m),   o = sum_i 2^(s_i - m) * v_i,   out = o / d
//
// merge() is associative and commutative up to rounding; its identity is
// (0, -inf, 0). After FlashInfer (arXiv:2501.01005), section 2.2, in base 2.
#pragma once

#if defined(__METAL_VERSION__)
#include <metal_stdlib>
#define QUIRE_STATE_FN METAL_FUNC
#define QUIRE_STATE_EXP2(x) metal::fast::exp2(x)
#define QUIRE_STATE_LOG2(x) metal::log2(x)
#define QUIRE_STATE_INF INFINITY
#elif defined(__CUDACC__)
#define QUIRE_STATE_FN __host__ __device__ __forceinline__
#define QUIRE_STATE_EXP2(x) exp2f(x)
#define QUIRE_STATE_LOG2(x) log2f(x)
#define QUIRE_STATE_INF __builtin_inff()
#else
#include <cmath>
#define QUIRE_STATE_FN inline
#define QUIRE_STATE_EXP2(x) std::exp2(x)
#define QUIRE_STATE_LOG2(x) std::log2(x)
#define QUIRE_STATE_INF __builtin_inff()
#endif

#if !defined(__METAL_VERSION__)
namespace quire {
#endif

/// 2^(from_max - to_max): takes sums relative to from_max to to_max, which is
/// not smaller. -inf minus -inf is NaN, so a state without keys gets the factor
/// 0 without a subtraction.
QUIRE_STATE_FN float rescale_factor(float from_max, float to_max) {
  return from_max == -QUIRE_STATE_INF ? 0.0f
                                      : QUIRE_STATE_EXP2(from_max - to_max);
}

/// Factors by which two partial states must be scaled before they are added.
struct MergeFactors {
  float max_log2;  // the larger of the two maxima; -inf if both are empty
  float first;     // 2^(first maximum - max_log2), 0 for an empty state
  float second;    // 2^(second maximum - max_log2), 0 for an empty state
};

/// The one place where two maxima meet.
QUIRE_STATE_FN MergeFactors merge_factors(float first_max, float second_max) {
  MergeFactors f;
  f.max_log2 = first_max > second_max ? first_max : second_max;
  f.first = rescale_factor(first_max, f.max_log2);
  f.second = rescale_factor(second_max, f.max_log2);
  return f;
}

/// 1 / d, or 0 for a state without keys: an empty sequence's output is zero.
QUIRE_STATE_FN float inverse_denominator(float d) {
  return d > 0.0f ? 1.0f / d : 0.0f;
}

/// Log-sum-exp in base 2; -inf for a state without keys.
QUIRE_STATE_FN float state_lse_log2(float max_log2, float d) {
  return d > 0.0f ? max_log2 + QUIRE_STATE_LOG2(d) : -QUIRE_STATE_INF;
}

#if !defined(__METAL_VERSION__)
}  // namespace quire
#endif
