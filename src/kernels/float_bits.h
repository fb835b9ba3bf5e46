// 16-bit floats as bits: widening is exact, narrowing rounds to nearest even.
// Branch-free, so that a loop over them vectorises without any F16C.
#pragma once

#include <bit>
#include <cstdint>

namespace quire {

inline float f32_from_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/** NaN stays NaN (quiet); values beyond the largest finite become infinity. */
inline std::uint16_t bf16_from_f32(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<std::uint16_t>(
      (is_nan ? bits | 0x400000u : rounded) >> 16);
}

/** Multiplying by 2^112 moves an f16's exponent to f32's bias, subnormals too;
 * infinity and NaN are the only exponents that this leaves too small. */
inline float f32_from_f16(std::uint16_t half) {
  const std::uint32_t magnitude = (half & 0x7fffu) << 13;
  const std::uint32_t finite = std::bit_cast<std::uint32_t>(
      std::bit_cast<float>(magnitude) * std::bit_cast<float>(0x77800000u));
  const std::uint32_t bits =
      magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite;
  return std::bit_cast<float>(
      bits | static_cast<std::uint32_t>(half & 0x8000u) << 16);
}

/**
 * NaN stays NaN; 65520 and more becomes infinity. A normal result is rounded in
 * the integer bits, where a carry runs into the exponent as it should. For a
 * subnormal one an f32 addition rounds: the last bit of a float from 0.5 to 1
 * is 2^-24, which is the step of f16's subnormals.
 */
inline std::uint16_t f16_from_f32(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const std::uint32_t normal =
      ((magnitude + 0xfffu + (magnitude >> 13 & 1u)) >> 13) - (112u << 10);
  const std::uint32_t subnormal =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) -
      std::bit_cast<std::uint32_t>(0.5f);
  const std::uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const std::uint32_t rest = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return static_cast<std::uint16_t>(
      (bits >> 16 & 0x8000u) | (magnitude < 0x477ff000u ? finite : rest));
}

}  // namespace quire
