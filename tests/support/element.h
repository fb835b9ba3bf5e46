// Elements of the three cache types as doubles, for tests. Independent of the
// kernels' own conversions, so that an error there cannot hide.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "quire/types.h"

namespace quire::testing {

inline double f16_to_double(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const double magnitude = exponent == 31 ? (fraction != 0 ? NAN : INFINITY)
                           : exponent == 0
                               ? std::ldexp(fraction, -24)
                               : std::ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 != 0 ? -magnitude : magnitude;
}

/** Round to nearest even by scaling to integers: slow and plain. */
inline std::uint16_t double_to_f16(double x) {
  const auto sign = static_cast<std::uint16_t>(std::signbit(x) ? 0x8000 : 0);
  const double magnitude = std::fabs(x);
  if (std::isnan(x)) {
    return static_cast<std::uint16_t>(sign | 0x7e00);
  }
  if (magnitude == 0.0) {
    return sign;
  }
  if (magnitude >= 65520.0) {
    return static_cast<std::uint16_t>(sign | 0x7c00);
  }
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int ulp_log2 = exponent - 11 < -24 ? -24 : exponent - 11;
  const double units = std::nearbyint(std::ldexp(magnitude, -ulp_log2));
  // With the biased exponent above the fraction, a carry out of the fraction
  // lands where it belongs.
  const int bits = static_cast<int>(units) + (ulp_log2 + 24) * 1024;
  return static_cast<std::uint16_t>(sign | bits);
}

inline std::uint16_t float_to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (std::isnan(x)) {
    return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  }
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline double load_element(const void* data, std::int64_t i, DType dtype) {
  switch (dtype) {
    case DType::Float32:
      return static_cast<const float*>(data)[i];
    case DType::Float16:
      return f16_to_double(static_cast<const std::uint16_t*>(data)[i]);
    case DType::BFloat16:
      return std::bit_cast<float>(
          static_cast<std::uint32_t>(static_cast<const std::uint16_t*>(data)[i])
          << 16);
  }
  return NAN;
}

inline void store_element(void* data, std::int64_t i, DType dtype, float x) {
  switch (dtype) {
    case DType::Float32:
      static_cast<float*>(data)[i] = x;
      break;
    case DType::Float16:
      static_cast<std::uint16_t*>(data)[i] = double_to_f16(x);
      break;
    case DType::BFloat16:
      static_cast<std::uint16_t*>(data)[i] = float_to_bf16(x);
      break;
  }
}

}  // namespace quire::testing
