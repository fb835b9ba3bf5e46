// kv_append and copy_blocks of the shipped source, on the CPU.
#include <doctest/doctest.h>

#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "host_launch.h"
#include "kernels/float_bits.h"
#include "lockstep.h"

using namespace quire;
using namespace quire::metal_host;

namespace {

std::vector<unsigned char> encode(
    const std::vector<float>& values,
    DType dtype) {
  std::vector<unsigned char> bytes(values.size() * dtype_bytes(dtype));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::Float32) {
      std::memcpy(&bytes[i * 4], &values[i], 4);
    } else {
      const std::uint16_t bits = dtype == DType::Float16
                                     ? f16_from_f32(values[i])
                                     : bf16_from_f32(values[i]);
      std::memcpy(&bytes[i * 2], &bits, 2);
    }
  }
  return bytes;
}

}  // namespace

TEST_CASE("kv_append converts, skips what is no slot, touches nothing else") {
  constexpr DType kDTypes[] = {DType::Float32, DType::Float16, DType::BFloat16};
  constexpr int kSlots = 40;
  for (const DType dtype : kDTypes) {
    for (const DType kv_dtype : kDTypes) {
      for (const int token_elems : {5, 36, 64, 80, 3 * 80, 1024}) {
        CAPTURE(dtype_name(dtype));
        CAPTURE(dtype_name(kv_dtype));
        CAPTURE(token_elems);
        const std::vector<std::int64_t> slots = {
            39, 0, -1, 17, kSlots, std::int64_t{1} << 33, 5};
        std::mt19937 random(3);
        std::normal_distribution<float> normal;
        std::vector<float> k(
            slots.size() * static_cast<std::size_t>(token_elems));
        for (float& x : k) {
          x = normal(random);
        }
        // Ties, the largest, beyond f16, subnormal in f16.
        k[0] = 1.00048828125f;
        k[1] = 65504.0f;
        k[2] = 1e6f;
        k[3] = 3e-7f;
        std::vector<float> v(k.rbegin(), k.rend());
        // As the kernel sees them: rounded to the source's type first.
        const auto k_bytes = encode(k, dtype);
        const auto v_bytes = encode(v, dtype);
        const auto rounded = [&](std::vector<float> values) {
          if (dtype != DType::Float32) {
            for (float& x : values) {
              x = dtype == DType::Float16 ? f32_from_f16(f16_from_f32(x))
                                          : f32_from_bf16(bf16_from_f32(x));
            }
          }
          return encode(values, kv_dtype);
        };
        const auto k_expected = rounded(k);
        const auto v_expected = rounded(v);
        const std::size_t row =
            static_cast<std::size_t>(token_elems) * dtype_bytes(kv_dtype);
        std::vector<unsigned char> k_cache(kSlots * row, 0x77);
        std::vector<unsigned char> v_cache(kSlots * row, 0x77);
        auto k_want = k_cache;
        auto v_want = v_cache;
        for (std::size_t i = 0; i < slots.size(); ++i) {
          if (slots[i] >= 0 && slots[i] < kSlots) {
            const auto at = static_cast<std::size_t>(slots[i]) * row;
            std::memcpy(&k_want[at], &k_expected[i * row], row);
            std::memcpy(&v_want[at], &v_expected[i * row], row);
          }
        }
        lockstep::forget_buffers();
        lockstep::watch_buffer("k", k_bytes.data(), k_bytes.size(), false);
        lockstep::watch_buffer("k_cache", k_cache.data(), k_cache.size(), true);
        lockstep::watch_buffer("v_cache", v_cache.data(), v_cache.size(), true);
        kv_append(
            {.num_tokens = static_cast<std::int64_t>(slots.size()),
             .num_slots = kSlots,
             .token_elems = token_elems,
             .dtype = dtype,
             .kv_dtype = kv_dtype,
             .k = k_bytes.data(),
             .v = v_bytes.data(),
             .slots = slots.data(),
             .k_cache = k_cache.data(),
             .v_cache = v_cache.data()},
            1);
        lockstep::forget_buffers();
        CHECK(k_cache == k_want);
        CHECK(v_cache == v_want);
      }
    }
  }
}

TEST_CASE("copy_blocks copies as if in order and skips ids outside the pool") {
  constexpr int kBlocks = 9;
  const std::vector<std::vector<std::int32_t>> lists = {
      {0, 8, 3, 1, 0, 5, 2, kBlocks, -1, 4, kBlocks, 6, 7, -1},
      {0, 1, 1, 2, 2, 3, 3, 0},  // a chain
      {0, 5, 1, 5, 5, 6, 4, 4},  // two onto one, then on; onto itself
      {3, 4, 2, 3}};             // a source that is written later
  for (const auto& copies : lists) {
    for (const std::int64_t block_bytes : {1024, 16 * 37, 8 * 96 * 2}) {
      const auto bytes = static_cast<std::size_t>(block_bytes);
      std::vector<unsigned char> k(kBlocks * bytes);
      for (std::size_t i = 0; i < k.size(); ++i) {
        k[i] = static_cast<unsigned char>(i * 31 + i / bytes);
      }
      std::vector<unsigned char> v(k.rbegin(), k.rend());
      auto k_want = k;
      auto v_want = v;
      const auto in_pool = [](std::int32_t id) {
        return id >= 0 && id < kBlocks;
      };
      for (std::size_t i = 0; i < copies.size(); i += 2) {
        if (in_pool(copies[i]) && in_pool(copies[i + 1])) {
          for (auto* cache : {&k_want, &v_want}) {
            std::memmove(
                &(*cache)[static_cast<std::size_t>(copies[i + 1]) * bytes],
                &(*cache)[static_cast<std::size_t>(copies[i]) * bytes],
                bytes);
          }
        }
      }
      lockstep::forget_buffers();
      lockstep::watch_buffer("k_cache", k.data(), k.size(), true);
      lockstep::watch_buffer("v_cache", v.data(), v.size(), true);
      copy_blocks(
          {.num_copies = static_cast<std::int64_t>(copies.size() / 2),
           .num_blocks = kBlocks,
           .block_bytes = block_bytes,
           .copies = copies.data(),
           .k_cache = k.data(),
           .v_cache = v.data()},
          2);
      lockstep::forget_buffers();
      CHECK(k == k_want);
      CHECK(v == v_want);
    }
  }
}
