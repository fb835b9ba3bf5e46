// AVX-512 with BF16: K.q as dot products of bf16 pairs, f32 accumulation.
#pragma once

#include "kernels/cpu/simd_avx512.h"

namespace quire::cpu {

struct Avx512Bf16 : Avx512 {
  using Pairs = __m512bh;

  QUIRE_SIMD Pairs load_pairs(const void* p) {
    return (Pairs)_mm512_loadu_si512(p);
  }
  QUIRE_SIMD Pairs load_half_pairs(const void* p) {
    return (Pairs)_mm512_zextsi256_si512(
        _mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  /** c + a.even * b.even + a.odd * b.odd, lane by lane. */
  QUIRE_SIMD V dot_pairs(V c, Pairs a, Pairs b) {
    return _mm512_dpbf16_ps(c, a, b);
  }
};

}  // namespace quire::cpu
