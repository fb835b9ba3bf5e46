// Division by a number that the host knows before the kernel starts.
#pragma once

#include <bit>
#include <cstdint>

#if defined(__CUDACC__)
#define QUIRE_HD __host__ __device__ __forceinline__
#else
#define QUIRE_HD inline
#endif

namespace quire::cuda {

/// Quotients by `divisor`, 1 to 2^31 - 1, without the hundred cycles of a
/// division: a multiplication by its reciprocal, rounded up, which is exact for
/// dividends below 2^31 (Granlund and Montgomery, "Division by invariant
/// integers using multiplication", 1994).
struct Divider {
  std::int32_t divisor = 1;
  std::uint32_t factor = 1u << 31;
  std::uint32_t shift = 31;

  Divider() = default;
  explicit Divider(std::int32_t d) : divisor(d) {
    const auto unsigned_d = static_cast<std::uint32_t>(d);
    shift = 31u + static_cast<std::uint32_t>(std::bit_width(unsigned_d - 1));
    factor = static_cast<std::uint32_t>(
        ((std::uint64_t{1} << shift) + unsigned_d - 1) / unsigned_d);
  }

  /// x / divisor for x >= 0.
  QUIRE_HD std::int32_t quotient(std::int32_t x) const {
    return static_cast<std::int32_t>(
        std::uint64_t{static_cast<std::uint32_t>(x)} * factor >> shift);
  }
  /// x / divisor, rounded up, for x >= 0 and x + divisor <= 2^31.
  QUIRE_HD std::int32_t quotient_up(std::int32_t x) const {
    return quotient(x + divisor - 1);
  }
};

}  // namespace quire::cuda
