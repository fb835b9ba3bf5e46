// The roofs' loops over the SIMD vocabulary; included only by step_*.cpp.
#pragma once

#include "kernels/cpu/cache_element.h"
#include "kernels/cpu/roof_kernel.h"

// Offsets here stay within the row of one token: int is wide enough.
// NOLINTBEGIN(bugprone-implicit-widening-of-multiplication-result)
namespace quire::cpu {

template <typename S>
struct Roof {
  using V = typename S::V;

  /** Keeps a value, and with it what it was computed from. */
  QUIRE_SIMD void keep(V x) {
    asm volatile("" : : "m"(x));
  }

  // Maxima instead of sums: no penalty for the subnormals that random bits
  // are full of.
  template <std::size_t kAhead>
  static void read(const std::byte* data, std::size_t num_bytes) {
    constexpr std::size_t kVectorBytes = S::kLanes * sizeof(float);
    constexpr std::size_t kVectors = kReadUnitBytes / kVectorBytes;
    V top[4] = {S::zero(), S::zero(), S::zero(), S::zero()};
    for (std::size_t at = 0; at + kReadUnitBytes <= num_bytes;
         at += kReadUnitBytes) {
      if constexpr (kAhead > 0) {
        for (std::size_t line = 0; line < kReadUnitBytes; line += 64) {
          __builtin_prefetch(data + at + kAhead + line, 0, 3);
        }
      }
#pragma GCC unroll 16
      for (std::size_t i = 0; i < kVectors; ++i) {
        const auto* p =
            reinterpret_cast<const float*>(data + at + i * kVectorBytes);
        top[i % 4] = S::max(top[i % 4], S::load(p));
      }
    }
    for (const V& x : top) {
      keep(x);
    }
  }

  /** 12 chains: above 2 ports * 4 cycles of latency. */
  static constexpr int kChains = 12;
  static void multiply_add(int iterations) {
    V x[kChains];
    for (V& chain : x) {
      chain = S::set1(1.0f);
    }
    const V a = S::set1(1.0000001f);
    const V b = S::set1(1e-9f);
    for (int i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < kChains; ++j) {
        x[j] = S::fma(x[j], a, b);
      }
    }
    for (const V& chain : x) {
      keep(chain);
    }
  }

  static constexpr RoofKernel kernel() {
    return {read<0>, read<1024>, read<4096>, multiply_add, kChains * S::kLanes};
  }
};

}  // namespace quire::cpu
// NOLINTEND(bugprone-implicit-widening-of-multiplication-result)
