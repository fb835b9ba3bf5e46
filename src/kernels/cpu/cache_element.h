// Element types of a cache as the vector code tells them apart.
#pragma once

#include <cstdint>

// Vocabulary functions are always inlined: no copy of them is left for the
// linker to share with code that runs on a lesser CPU.
#define QUIRE_SIMD [[gnu::always_inline]] static inline

namespace quire::cpu {

struct Half {
  std::uint16_t bits;
};
struct BFloat {
  std::uint16_t bits;
};
/** bf16 whose K.q runs as dot products of bf16 pairs (q is bf16 too). */
struct BFloatPair {
  std::uint16_t bits;
};

template <typename T>
inline constexpr bool kIsBFloat = false;
template <>
inline constexpr bool kIsBFloat<BFloat> = true;
template <>
inline constexpr bool kIsBFloat<BFloatPair> = true;
template <typename T>
inline constexpr bool kIsPair = false;
template <>
inline constexpr bool kIsPair<BFloatPair> = true;

/** 2^f on [-1/2, 1/2], highest power first: error 8e-8 (minimax). */
inline constexpr float kExp2Poly[] = {
    1.5353362e-4f,
    1.3398874e-3f,
    9.6184373e-3f,
    5.5503325e-2f,
    2.4022648e-1f,
    6.9314720e-1f,
    1.0f};
/** 2^x is zero in f32 below this. */
inline constexpr float kExp2Min = -150.0f;

}  // namespace quire::cpu
