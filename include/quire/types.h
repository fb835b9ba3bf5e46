#pragma once

#include <cstddef>
#include <cstdint>

namespace quire {

/** Identity of one KV block; the same id in every layer. */
using BlockId = std::int32_t;

/** Element type of a cache, of queries or of a result. */
enum class DType : std::uint8_t { Float32, Float16, BFloat16 };

/** Bytes of one element. */
constexpr std::size_t dtype_bytes(DType dtype) {
  return dtype == DType::Float32 ? 4 : 2;
}

/** Name as users type it: f32, f16 or bf16. */
constexpr const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::Float32:
      return "f32";
    case DType::Float16:
      return "f16";
    case DType::BFloat16:
      return "bf16";
  }
  return "?";
}

/** The block sizes that every part of Quire accepts: powers of two. */
inline constexpr int kMinBlockSize = 8;
inline constexpr int kMaxBlockSize = 256;
inline constexpr int kDefaultBlockSize = 32;

/**
 * A copy of one block's K and V, in every layer, that must be carried out on
 * the device before the tokens of the step are written (copy-on-write).
 */
struct BlockCopy {
  BlockId source;
  BlockId destination;

  friend bool operator==(const BlockCopy&, const BlockCopy&) = default;
};

}  // namespace quire
