#include "tools/llama/dequantize.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <future>

namespace quire::tools {
namespace {

float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1Fu;
  const std::uint32_t mantissa = half & 0x3FFu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in float
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  const std::uint32_t bits = exponent == 31
                                 ? 0x7F800000u | (mantissa << 13)
                                 : ((exponent + 112) << 23) | (mantissa << 13);
  return std::bit_cast<float>(sign | bits);
}

float load_half(const std::byte* bytes) {
  std::uint16_t half = 0;
  std::memcpy(&half, bytes, 2);
  return half_to_float(half);
}

// The low 4 bits of a block's 16 bytes are its elements 0..15, the high 4 bits
// its elements 16..31.
void dequantize_nibbles(
    const std::byte* packed,
    float scale,
    float minimum,
    float* out) {
  for (int i = 0; i < 16; ++i) {
    const auto byte = std::to_integer<unsigned>(packed[i]);
    out[i] = scale * static_cast<float>(byte & 15u) + minimum;
    out[i + 16] = scale * static_cast<float>(byte >> 4) + minimum;
  }
}

void dequantize_blocks(
    GgufType type,
    const std::byte* in,
    float* out,
    std::int64_t num_blocks) {
  const GgufBlock block = gguf_block(type);
  if (type == GgufType::F32) {
    std::memcpy(out, in, static_cast<std::size_t>(num_blocks) * 4);
    return;
  }
  for (std::int64_t b = 0; b < num_blocks; ++b) {
    const float scale = load_half(in);
    switch (type) {
      case GgufType::F32:
        break;
      case GgufType::F16:
        *out = scale;
        break;
      case GgufType::BF16: {
        std::uint16_t high = 0;
        std::memcpy(&high, in, 2);
        *out = std::bit_cast<float>(std::uint32_t{high} << 16);
        break;
      }
      case GgufType::Q4_0:
        dequantize_nibbles(in + 2, scale, -8.0f * scale, out);
        break;
      case GgufType::Q4_1:
        dequantize_nibbles(in + 4, scale, load_half(in + 2), out);
        break;
      case GgufType::Q8_0:
        for (int i = 0; i < 32; ++i) {
          std::int8_t q = 0;
          std::memcpy(&q, in + 2 + i, 1);
          out[i] = scale * static_cast<float>(q);
        }
        break;
    }
    in += block.bytes;
    out += block.elements;
  }
}

}  // namespace

void dequantize(const GgufTensor& tensor, float* out, int num_threads) {
  const GgufBlock block = gguf_block(tensor.type);
  const auto num_blocks =
      static_cast<std::int64_t>(tensor.data.size()) / block.bytes;
  // A thread costs some 20 us, as much as 10,000 blocks.
  const std::int64_t share = std::max<std::int64_t>(
      10'000, (num_blocks + num_threads - 1) / num_threads);
  const auto run = [&](std::int64_t begin) {
    dequantize_blocks(
        tensor.type,
        tensor.data.data() + begin * block.bytes,
        out + begin * block.elements,
        std::min(share, num_blocks - begin));
  };
  // Not std::jthread, which Apple's libc++ lacks. A future joins as well.
  std::vector<std::future<void>> others;
  for (std::int64_t begin = share; begin < num_blocks; begin += share) {
    others.push_back(std::async(std::launch::async, run, begin));
  }
  run(0);
}

}  // namespace quire::tools
