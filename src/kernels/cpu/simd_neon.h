// The vocabulary of step_impl.h for AArch64's NEON.
#pragma once

#include <arm_neon.h>

#include "kernels/cpu/cache_element.h"

// Offsets here stay within the row of one token: int is wide enough.
// NOLINTBEGIN(bugprone-implicit-widening-of-multiplication-result)
namespace quire::cpu {

struct Neon {
  using V = float32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kDotAccumulators = 16;  // of 32 registers
  static constexpr int kSumAccumulators = 24;

  QUIRE_SIMD V zero() {
    return vdupq_n_f32(0.0f);
  }
  QUIRE_SIMD V set1(float x) {
    return vdupq_n_f32(x);
  }
  QUIRE_SIMD V load(const float* p) {
    return vld1q_f32(p);
  }
  QUIRE_SIMD void store(float* p, V x) {
    vst1q_f32(p, x);
  }
  QUIRE_SIMD V fma(V a, V b, V c) {
    return vfmaq_f32(c, a, b);
  }
  QUIRE_SIMD V fms(V a, V b, V c) {
    return vfmaq_f32(vnegq_f32(c), a, b);
  }
  QUIRE_SIMD V mul(V a, V b) {
    return vmulq_f32(a, b);
  }
  QUIRE_SIMD V add(V a, V b) {
    return vaddq_f32(a, b);
  }
  QUIRE_SIMD V max(V a, V b) {
    return vmaxq_f32(a, b);
  }
  QUIRE_SIMD bool any_greater(V a, V b) {
    return vmaxvq_u32(vcgtq_f32(a, b)) != 0;
  }
  QUIRE_SIMD float first(V x) {
    return vgetq_lane_f32(x, 0);
  }
  QUIRE_SIMD float reduce_max(V x) {
    return vmaxvq_f32(x);
  }
  QUIRE_SIMD float reduce_add(V x) {
    return vaddvq_f32(x);
  }

  /** 2^x by two factors for the exponent; FMAX keeps NaN. */
  QUIRE_SIMD V exp2(V x) {
    x = vmaxq_f32(x, set1(kExp2Min));
    const V n = vrndnq_f32(x);
    const V f = vsubq_f32(x, n);
    V p = set1(kExp2Poly[0]);
    for (int i = 1; i < 7; ++i) {
      p = fma(p, f, set1(kExp2Poly[i]));
    }
    const int32x4_t e = vcvtq_s32_f32(n);
    const int32x4_t half = vshrq_n_s32(e, 1);
    const int32x4_t bias = vdupq_n_s32(127);
    const V a = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23));
    const V b = vreinterpretq_f32_s32(
        vshlq_n_s32(vaddq_s32(vsubq_s32(e, half), bias), 23));
    return vmulq_f32(vmulq_f32(p, a), b);
  }

  QUIRE_SIMD V load1(const float* p) {
    return load(p);
  }
  QUIRE_SIMD V load1(const Half* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)));
  }
  QUIRE_SIMD V load1(const BFloat* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16));
  }
  QUIRE_SIMD void load2(const float* p, V& a, V& b) {
    a = load(p);
    b = load(p + kLanes);
  }
  QUIRE_SIMD void load2(const Half* p, V& a, V& b) {
    const float16x8_t x = vreinterpretq_f16_u16(vld1q_u16(&p->bits));
    a = vcvt_f32_f16(vget_low_f16(x));
    b = vcvt_high_f32_f16(x);
  }
  QUIRE_SIMD void load2(const BFloat* p, V& a, V& b) {
    const uint16x8_t x = vld1q_u16(&p->bits);
    a = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(x), 16));
    b = vreinterpretq_f32_u32(vshll_high_n_u16(x, 16));
  }
  QUIRE_SIMD void split_even_odd(V&, V&) {}
  QUIRE_SIMD void join_even_odd(V&, V&) {}

  QUIRE_SIMD void store1(float* p, V x) {
    store(p, x);
  }
  QUIRE_SIMD void store1(Half* p, V x) {
    vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(x)));
  }
  QUIRE_SIMD void store1(BFloat* p, V x) {
    const uint32x4_t u = vreinterpretq_u32_f32(x);
    const uint32x4_t last = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    const uint32x4_t rounded =
        vaddq_u32(vaddq_u32(u, last), vdupq_n_u32(0x7fff));
    const uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x400000));
    const uint32x4_t is_number = vceqq_f32(x, x);
    vst1_u16(&p->bits, vshrn_n_u32(vbslq_u32(is_number, rounded, quiet), 16));
  }

  /** scores[h * stride + t] = sum of acc[h * kTokens + t]. */
  template <int kHeads, int kTokens>
  QUIRE_SIMD void reduce_scores(const V* acc, float* scores, int stride) {
    static_assert(kTokens % 4 == 0);
#pragma GCC unroll 16
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t += 4) {
        const V* x = acc + h * kTokens + t;
        store(
            scores + h * stride + t,
            vpaddq_f32(vpaddq_f32(x[0], x[1]), vpaddq_f32(x[2], x[3])));
      }
    }
  }
};

}  // namespace quire::cpu
// NOLINTEND(bugprone-implicit-widening-of-multiplication-result)
