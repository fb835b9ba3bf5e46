// The vocabulary of step_impl.h for AVX-512 F, BW, DQ, VL.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/cache_element.h"

// Offsets here stay within the row of one token: int is wide enough.
// NOLINTBEGIN(bugprone-implicit-widening-of-multiplication-result)
namespace quire::cpu {

struct Avx512 {
  using V = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kDotAccumulators = 16;  // of 32 registers
  static constexpr int kSumAccumulators = 24;

  QUIRE_SIMD V zero() {
    return _mm512_setzero_ps();
  }
  QUIRE_SIMD V set1(float x) {
    return _mm512_set1_ps(x);
  }
  QUIRE_SIMD V load(const float* p) {
    return _mm512_loadu_ps(p);
  }
  QUIRE_SIMD void store(float* p, V x) {
    _mm512_storeu_ps(p, x);
  }
  QUIRE_SIMD V fma(V a, V b, V c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  QUIRE_SIMD V fms(V a, V b, V c) {
    return _mm512_fmsub_ps(a, b, c);
  }
  QUIRE_SIMD V mul(V a, V b) {
    return _mm512_mul_ps(a, b);
  }
  QUIRE_SIMD V add(V a, V b) {
    return _mm512_add_ps(a, b);
  }
  QUIRE_SIMD V max(V a, V b) {
    return _mm512_max_ps(a, b);
  }
  QUIRE_SIMD bool any_greater(V a, V b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
  }
  QUIRE_SIMD float first(V x) {
    return _mm512_cvtss_f32(x);
  }
  QUIRE_SIMD float reduce_max(V x) {
    return _mm512_reduce_max_ps(x);
  }
  QUIRE_SIMD float reduce_add(V x) {
    return _mm512_reduce_add_ps(x);
  }

  /** 2^x; NaN stays NaN because max_ps returns its second operand then. */
  QUIRE_SIMD V exp2(V x) {
    x = _mm512_max_ps(set1(kExp2Min), x);
    const V n = _mm512_roundscale_ps(x, 0);
    const V f = _mm512_sub_ps(x, n);
    V p = set1(kExp2Poly[0]);
    p = fma(p, f, set1(kExp2Poly[1]));
    p = fma(p, f, set1(kExp2Poly[2]));
    p = fma(p, f, set1(kExp2Poly[3]));
    p = fma(p, f, set1(kExp2Poly[4]));
    p = fma(p, f, set1(kExp2Poly[5]));
    p = fma(p, f, set1(kExp2Poly[6]));
    return _mm512_scalef_ps(p, n);
  }

  QUIRE_SIMD V load1(const float* p) {
    return load(p);
  }
  QUIRE_SIMD V load1(const Half* p) {
    return _mm512_cvtph_ps(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  template <typename T>
  QUIRE_SIMD V load1(const T* p) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
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
  template <typename T>
  QUIRE_SIMD void load2(const T* p, V& a, V& b) {
    const __m512i x = _mm512_loadu_si512(p);
    a = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    b = _mm512_castsi512_ps(
        _mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  /** Natural order to bf16's load order, and back. */
  QUIRE_SIMD void split_even_odd(V& a, V& b) {
    const __m512i even = _mm512_setr_epi32(
        0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const V x = _mm512_permutex2var_ps(a, even, b);
    b = _mm512_permutex2var_ps(a, odd, b);
    a = x;
  }
  QUIRE_SIMD void join_even_odd(V& a, V& b) {
    const __m512i low = _mm512_setr_epi32(
        0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const V x = _mm512_permutex2var_ps(a, low, b);
    b = _mm512_permutex2var_ps(a, high, b);
    a = x;
  }

  QUIRE_SIMD void store1(float* p, V x) {
    store(p, x);
  }
  QUIRE_SIMD void store1(Half* p, V x) {
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(p),
        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  QUIRE_SIMD void store1(BFloat* p, V x) {
    const __m512i u = _mm512_castps_si512(x);
    const __m512i last =
        _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(_mm512_add_epi32(u, last), _mm512_set1_epi32(0x7fff));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
    const __m512i bits =
        _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16);
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bits));
  }

  QUIRE_SIMD V sum_neighbours(V a, V b) {
    return add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  QUIRE_SIMD V sum_pairs(V a, V b) {
    const __m512d x = _mm512_castps_pd(a);
    const __m512d y = _mm512_castps_pd(b);
    return add(
        _mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  QUIRE_SIMD V sum_quads(V a, V b) {
    return add(
        _mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  /**
   * scores[h * stride + t] = sum of acc[h * kTokens + t], one tree for all 16
   * vectors: 15 additions and 30 shuffles, against 8 a vector one by one.
   */
  template <int kHeads, int kTokens>
  QUIRE_SIMD void reduce_scores(const V* acc, float* scores, int stride) {
    V x[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      x[i] = i < kHeads * kTokens ? acc[i] : zero();
    }
    V q[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      q[i] = sum_pairs(
          sum_neighbours(x[4 * i], x[4 * i + 1]),
          sum_neighbours(x[4 * i + 2], x[4 * i + 3]));
    }
    const V sums = sum_quads(sum_quads(q[0], q[1]), sum_quads(q[2], q[3]));
    if constexpr (kHeads == 1) {
      store(scores, sums);
    } else if constexpr (kHeads == 2) {
      _mm256_storeu_ps(scores, _mm512_castps512_ps256(sums));
      _mm256_storeu_ps(scores + stride, _mm512_extractf32x8_ps(sums, 1));
    } else {
      static_assert(kTokens == 4);
      _mm_storeu_ps(scores, _mm512_castps512_ps128(sums));
      _mm_storeu_ps(scores + stride, _mm512_extractf32x4_ps(sums, 1));
      _mm_storeu_ps(scores + 2 * stride, _mm512_extractf32x4_ps(sums, 2));
      if constexpr (kHeads == 4) {
        _mm_storeu_ps(scores + 3 * stride, _mm512_extractf32x4_ps(sums, 3));
      }
    }
  }
};

}  // namespace quire::cpu
// NOLINTEND(bugprone-implicit-widening-of-multiplication-result)
