// The vocabulary of step_impl.h for AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/cache_element.h"

// Offsets here stay within the row of one token: int is wide enough.
// NOLINTBEGIN(bugprone-implicit-widening-of-multiplication-result)
namespace quire::cpu {

struct Avx2 {
  using V = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kDotAccumulators = 8;  // of 16 registers
  static constexpr int kSumAccumulators = 8;

  QUIRE_SIMD V zero() {
    return _mm256_setzero_ps();
  }
  QUIRE_SIMD V set1(float x) {
    return _mm256_set1_ps(x);
  }
  QUIRE_SIMD V load(const float* p) {
    return _mm256_loadu_ps(p);
  }
  QUIRE_SIMD void store(float* p, V x) {
    _mm256_storeu_ps(p, x);
  }
  QUIRE_SIMD V fma(V a, V b, V c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  QUIRE_SIMD V fms(V a, V b, V c) {
    return _mm256_fmsub_ps(a, b, c);
  }
  QUIRE_SIMD V mul(V a, V b) {
    return _mm256_mul_ps(a, b);
  }
  QUIRE_SIMD V add(V a, V b) {
    return _mm256_add_ps(a, b);
  }
  QUIRE_SIMD V max(V a, V b) {
    return _mm256_max_ps(a, b);
  }
  QUIRE_SIMD bool any_greater(V a, V b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
  }
  QUIRE_SIMD float first(V x) {
    return _mm256_cvtss_f32(x);
  }
  QUIRE_SIMD float reduce_max(V x) {
    __m128 y =
        _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
  }
  QUIRE_SIMD float reduce_add(V x) {
    __m128 y =
        _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
  }

  /**
   * 2^x; the exponent goes in by two factors, so that results down to 2^-149
   * are right. NaN stays NaN: max_ps returns its second operand then.
   */
  QUIRE_SIMD V exp2(V x) {
    x = _mm256_max_ps(set1(kExp2Min), x);
    const V n =
        _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const V f = _mm256_sub_ps(x, n);
    V p = set1(kExp2Poly[0]);
    p = fma(p, f, set1(kExp2Poly[1]));
    p = fma(p, f, set1(kExp2Poly[2]));
    p = fma(p, f, set1(kExp2Poly[3]));
    p = fma(p, f, set1(kExp2Poly[4]));
    p = fma(p, f, set1(kExp2Poly[5]));
    p = fma(p, f, set1(kExp2Poly[6]));
    const __m256i e = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(e, 1);
    const __m256i bias = _mm256_set1_epi32(127);
    const auto power = [&](__m256i exponent) {
      return _mm256_castsi256_ps(
          _mm256_slli_epi32(_mm256_add_epi32(exponent, bias), 23));
    };
    return mul(mul(p, power(half)), power(_mm256_sub_epi32(e, half)));
  }

  QUIRE_SIMD V load1(const float* p) {
    return load(p);
  }
  QUIRE_SIMD V load1(const Half* p) {
    return _mm256_cvtph_ps(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  QUIRE_SIMD V load1(const BFloat* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(
        _mm256_cvtepu16_epi32(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
        16));
  }

  /** Two vectors in load order: even and odd elements of bf16. */
  QUIRE_SIMD void load2(const float* p, V& a, V& b) {
    a = load(p);
    b = load(p + kLanes);
  }
  QUIRE_SIMD void load2(const Half* p, V& a, V& b) {
    a = load1(p);
    b = load1(p + kLanes);
  }
  QUIRE_SIMD void load2(const BFloat* p, V& a, V& b) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    a = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
    b = _mm256_castsi256_ps(
        _mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  /** Natural order to bf16's load order, and back. */
  QUIRE_SIMD void split_even_odd(V& a, V& b) {
    const V low = _mm256_permute2f128_ps(a, b, 0x20);
    const V high = _mm256_permute2f128_ps(a, b, 0x31);
    a = _mm256_shuffle_ps(low, high, 0x88);
    b = _mm256_shuffle_ps(low, high, 0xdd);
  }
  QUIRE_SIMD void join_even_odd(V& a, V& b) {
    const V low = _mm256_unpacklo_ps(a, b);
    const V high = _mm256_unpackhi_ps(a, b);
    a = _mm256_permute2f128_ps(low, high, 0x20);
    b = _mm256_permute2f128_ps(low, high, 0x31);
  }

  QUIRE_SIMD void store1(float* p, V x) {
    store(p, x);
  }
  QUIRE_SIMD void store1(Half* p, V x) {
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(p),
        _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  QUIRE_SIMD void store1(BFloat* p, V x) {
    const __m256i u = _mm256_castps_si256(x);
    const __m256i last =
        _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(_mm256_add_epi32(u, last), _mm256_set1_epi32(0x7fff));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    const __m256i bits =
        _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(p),
        _mm_packus_epi32(
            _mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1)));
  }

  /** scores[h * stride + t] = sum of acc[h * kTokens + t]. */
  template <int kHeads, int kTokens>
  QUIRE_SIMD void reduce_scores(const V* acc, float* scores, int stride) {
    V x[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      x[i] = i < kHeads * kTokens ? acc[i] : zero();
    }
    const V a =
        _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    const V b =
        _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
    const V sums = add(
        _mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    const __m128 low = _mm256_castps256_ps128(sums);
    const __m128 high = _mm256_extractf128_ps(sums, 1);
    if constexpr (kHeads == 1) {
      store(scores, sums);
    } else if constexpr (kHeads == 2) {
      _mm_storeu_ps(scores, low);
      _mm_storeu_ps(scores + stride, high);
    } else {
      static_assert(kTokens == 2);
      const auto pair = [&](int head) {
        return reinterpret_cast<__m64*>(scores + head * stride);
      };
      _mm_storel_pi(pair(0), low);
      _mm_storeh_pi(pair(1), low);
      _mm_storel_pi(pair(2), high);
      if constexpr (kHeads == 4) {
        _mm_storeh_pi(pair(3), high);
      }
    }
  }
};

}  // namespace quire::cpu
// NOLINTEND(bugprone-implicit-widening-of-multiplication-result)
