// The vocabulary of step_impl.h in GCC's and clang's vector extensions: what
// the compiler makes of 128-bit vectors for its baseline (SSE2 on x86-64).
#pragma once

#include <cmath>

#include "kernels/cpu/cache_element.h"
#include "kernels/float_bits.h"

// Offsets here stay within the row of one token: int is wide enough.
// NOLINTBEGIN(bugprone-implicit-widening-of-multiplication-result)
namespace quire::cpu {

struct Portable {
  typedef float V __attribute__((vector_size(16), may_alias));
  typedef std::int32_t I __attribute__((vector_size(16), may_alias));
  static constexpr int kLanes = 4;
  static constexpr int kDotAccumulators = 8;  // of 16 registers
  static constexpr int kSumAccumulators = 8;

  QUIRE_SIMD V zero() {
    return V{};
  }
  QUIRE_SIMD V set1(float x) {
    return V{x, x, x, x};
  }
  QUIRE_SIMD V load(const float* p) {
    V x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  QUIRE_SIMD void store(float* p, V x) {
    __builtin_memcpy(p, &x, sizeof x);
  }
  QUIRE_SIMD V fma(V a, V b, V c) {
    return a * b + c;
  }
  QUIRE_SIMD V fms(V a, V b, V c) {
    return a * b - c;
  }
  QUIRE_SIMD V mul(V a, V b) {
    return a * b;
  }
  QUIRE_SIMD V add(V a, V b) {
    return a + b;
  }
  QUIRE_SIMD V max(V a, V b) {
    return a > b ? a : b;
  }
  QUIRE_SIMD bool any_greater(V a, V b) {
    const I x = a > b;
    return (x[0] | x[1] | x[2] | x[3]) != 0;
  }
  QUIRE_SIMD float first(V x) {
    return x[0];
  }
  QUIRE_SIMD float reduce_max(V x) {
    const float a = x[0] > x[1] ? x[0] : x[1];
    const float b = x[2] > x[3] ? x[2] : x[3];
    return a > b ? a : b;
  }
  QUIRE_SIMD float reduce_add(V x) {
    return (x[0] + x[1]) + (x[2] + x[3]);
  }

  /** 2^x by two factors for the exponent; NaN compares false, so it stays. */
  QUIRE_SIMD V exp2(V x) {
    x = x < set1(kExp2Min) ? set1(kExp2Min) : x;
    // Adding 1.5 * 2^23 rounds to the nearest integer, in the last bits.
    const V shifter = set1(12582912.0f);
    const V shifted = x + shifter;
    const V f = x - (shifted - shifter);
    V p = set1(kExp2Poly[0]);
    for (int i = 1; i < 7; ++i) {
      p = p * f + set1(kExp2Poly[i]);
    }
    const I e = (I)shifted - (I)shifter;
    const I half = e >> 1;
    const V a = (V)((half + 127) << 23);
    const V b = (V)((e - half + 127) << 23);
    return p * a * b;
  }

  QUIRE_SIMD I load_bits(const void* p) {
    std::uint16_t x[4];
    __builtin_memcpy(x, p, sizeof x);
    return I{x[0], x[1], x[2], x[3]};
  }
  QUIRE_SIMD V load1(const float* p) {
    return load(p);
  }
  QUIRE_SIMD V load1(const Half* p) {  // as f32_from_f16
    const I half = load_bits(p);
    const I magnitude = (half & 0x7fff) << 13;
    const I finite = (I)((V)magnitude * set1(0x1p112f));
    const I bits = magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : finite;
    return (V)(bits | (half & 0x8000) << 16);
  }
  QUIRE_SIMD V load1(const BFloat* p) {
    return (V)(load_bits(p) << 16);
  }
  template <typename T>
  QUIRE_SIMD void load2(const T* p, V& a, V& b) {
    a = load1(p);
    b = load1(p + kLanes);
  }
  QUIRE_SIMD void split_even_odd(V&, V&) {}
  QUIRE_SIMD void join_even_odd(V&, V&) {}

  QUIRE_SIMD void store1(float* p, V x) {
    store(p, x);
  }
  QUIRE_SIMD void store1(Half* p, V x) {
    for (int i = 0; i < kLanes; ++i) {
      p[i].bits = f16_from_f32(x[i]);
    }
  }
  QUIRE_SIMD void store1(BFloat* p, V x) {
    for (int i = 0; i < kLanes; ++i) {
      p[i].bits = bf16_from_f32(x[i]);
    }
  }

  /** scores[h * stride + t] = sum of acc[h * kTokens + t]. */
  template <int kHeads, int kTokens>
  QUIRE_SIMD void reduce_scores(const V* acc, float* scores, int stride) {
    for (int h = 0; h < kHeads; ++h) {
      for (int t = 0; t < kTokens; ++t) {
        scores[h * stride + t] = reduce_add(acc[h * kTokens + t]);
      }
    }
  }
};

}  // namespace quire::cpu
// NOLINTEND(bugprone-implicit-widening-of-multiplication-result)
