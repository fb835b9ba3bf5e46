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
 * Lets an f32 addition do the rounding: a power of two is added whose last
 * mantissa bit is the f16's last bit (after M. Dukhan's FP16 library, MIT).
 */
inline std::uint16_t f16_from_f32(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const float magnitude = std::bit_cast<float>(bits & 0x7fffffffu);
  // First up to infinity, then down: what is too large for f16 stays infinite.
  const float base = (magnitude * std::bit_cast<float>(0x77800000u)) *
                     std::bit_cast<float>(0x08800000u);
  const std::uint32_t exponent = (bits << 1) & 0xff000000u;
  const std::uint32_t bias = exponent < 0x71000000u ? 0x71000000u : exponent;
  const auto sum = std::bit_cast<std::uint32_t>(
      std::bit_cast<float>((bias >> 1) + 0x07800000u) + base);
  const std::uint32_t finite = ((sum >> 13) & 0x7c00u) + (sum & 0x0fffu);
  const bool is_nan = (bits << 1) > 0xff000000u;
  return static_cast<std::uint16_t>(
      ((bits >> 16) & 0x8000u) | (is_nan ? 0x7e00u : finite));
}

}  // namespace quire
