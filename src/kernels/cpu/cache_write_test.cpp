#include "kernels/cpu/cache_write.h"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/float_bits.h"

namespace quire {
namespace {

float from_bits(std::uint32_t bits) {
  return std::bit_cast<float>(bits);
}

/** What one token of these values becomes in an empty cache. */
std::vector<std::uint16_t> append(const std::vector<float>& values, DType kv) {
  std::vector<std::uint16_t> k_cache(values.size());
  std::vector<std::uint16_t> v_cache(values.size());
  const std::int64_t slot = 0;
  cpu::kv_append({
      .num_tokens = 1,
      .num_slots = 1,
      .token_elems = static_cast<std::int64_t>(values.size()),
      .dtype = DType::Float32,
      .kv_dtype = kv,
      .k = values.data(),
      .v = values.data(),
      .slots = &slot,
      .k_cache = k_cache.data(),
      .v_cache = v_cache.data(),
  });
  CHECK(k_cache == v_cache);
  return k_cache;
}

TEST_CASE("kv_append rounds f32 to bf16 to nearest even, NaN stays NaN") {
  const std::vector<std::uint16_t> got = append(
      {from_bits(0x3f800001),
       from_bits(0x3f808000),
       from_bits(0x3f808001),
       from_bits(0x3f818000),
       from_bits(0x7f800001),
       from_bits(0x7f7fffff),
       from_bits(0x00000001),
       -0.0f,
       std::numeric_limits<float>::infinity()},
      DType::BFloat16);
  CHECK(got[0] == 0x3f80);
  CHECK(got[1] == 0x3f80);
  CHECK(got[2] == 0x3f81);
  CHECK(got[3] == 0x3f82);
  CHECK(std::isnan(f32_from_bf16(got[4])));
  CHECK(got[5] == 0x7f80);
  CHECK(got[6] == 0x0000);
  CHECK(got[7] == 0x8000);
  CHECK(got[8] == 0x7f80);
}

TEST_CASE("kv_append rounds f32 to f16 to nearest even, subnormals too") {
  const std::vector<std::uint16_t> got = append(
      {65519.9f,
       65520.0f,
       6e-8f,
       5.96e-8f,
       -0.0f,
       2.98e-8f,
       from_bits(0x7f800001),
       -std::numeric_limits<float>::infinity(),
       1.0f + 0x1p-11f,
       1.0f + 3 * 0x1p-11f},
      DType::Float16);
  CHECK(got[0] == 0x7bff);
  CHECK(got[1] == 0x7c00);
  CHECK(got[2] == 0x0001);
  CHECK(got[3] == 0x0001);
  CHECK(got[4] == 0x8000);
  CHECK(got[5] == 0x0000);  // just below half of the smallest
  CHECK(std::isnan(f32_from_f16(got[6])));
  CHECK(got[7] == 0xfc00);
  CHECK(got[8] == 0x3c00);  // ties go to even
  CHECK(got[9] == 0x3c02);
}

TEST_CASE("Every f16 and every bf16 survives the way to f32 and back") {
  int wrong = 0;
  for (std::uint32_t i = 0; i < 0x10000; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const float half = f32_from_f16(bits);
    const float bfloat = f32_from_bf16(bits);
    wrong += std::isnan(half) ? !std::isnan(f32_from_f16(f16_from_f32(half)))
                              : f16_from_f32(half) != bits;
    wrong += std::isnan(bfloat)
                 ? !std::isnan(f32_from_bf16(bf16_from_f32(bfloat)))
                 : bf16_from_f32(bfloat) != bits;
  }
  CHECK(wrong == 0);
  CHECK(f32_from_f16(0x3c00) == 1.0f);
  CHECK(f32_from_f16(0x0001) == 0x1p-24f);
  CHECK(f32_from_f16(0xfbff) == -65504.0f);
}

TEST_CASE("kv_append writes each token to its slot and nothing else") {
  constexpr DType kDTypes[] = {DType::Float32, DType::Float16, DType::BFloat16};
  const std::vector<std::int64_t> slots = {5, -1, 0, 2};
  for (const DType dtype : kDTypes) {
    for (const DType kv_dtype : kDTypes) {
      CAPTURE(dtype_name(dtype));
      CAPTURE(dtype_name(kv_dtype));
      const auto write =
          [](std::vector<std::byte>& to, std::size_t idx, DType type, float x) {
            const std::uint16_t half =
                type == DType::Float16 ? f16_from_f32(x) : bf16_from_f32(x);
            if (type == DType::Float32) {
              std::memcpy(to.data() + 4 * idx, &x, 4);
            } else {
              std::memcpy(to.data() + 2 * idx, &half, 2);
            }
          };
      // Small whole numbers are exact in every type. The extra bytes and the
      // slots that nobody names keep their pattern.
      std::vector<std::byte> k(4 * 3 * dtype_bytes(dtype));
      std::vector<std::byte> v(k.size());
      std::vector<std::byte> k_cache(
          6 * 3 * dtype_bytes(kv_dtype) + 16, std::byte{0xa5});
      std::vector<std::byte> v_cache = k_cache;
      std::vector<std::byte> k_expected = k_cache;
      std::vector<std::byte> v_expected = k_cache;
      for (std::size_t token = 0; token < 4; ++token) {
        for (std::size_t i = 0; i < 3; ++i) {
          const auto x = static_cast<float>(token * 3 + i + 1);
          write(k, token * 3 + i, dtype, x);
          write(v, token * 3 + i, dtype, -x);
          if (slots[token] >= 0) {
            const auto at = static_cast<std::size_t>(slots[token]) * 3 + i;
            write(k_expected, at, kv_dtype, x);
            write(v_expected, at, kv_dtype, -x);
          }
        }
      }
      cpu::kv_append({
          .num_tokens = 4,
          .num_slots = 6,
          .token_elems = 3,
          .dtype = dtype,
          .kv_dtype = kv_dtype,
          .k = k.data(),
          .v = v.data(),
          .slots = slots.data(),
          .k_cache = k_cache.data(),
          .v_cache = v_cache.data(),
      });
      CHECK(k_cache == k_expected);
      CHECK(v_cache == v_expected);
    }
  }
}

TEST_CASE("kv_append names a bad slot before it writes anything") {
  const std::vector<float> tokens(4, 1.0f);
  for (const std::int64_t bad :
       {std::int64_t{-2}, std::int64_t{6}, std::int64_t{1} << 40}) {
    const std::vector<std::int64_t> slots = {0, bad};
    std::vector<float> cache(12, 0.0f);
    const cpu::KvAppendArgs args = {
        .num_tokens = 2,
        .num_slots = 6,
        .token_elems = 2,
        .k = tokens.data(),
        .v = tokens.data(),
        .slots = slots.data(),
        .k_cache = cache.data(),
        .v_cache = cache.data(),
    };
    const std::string text = "got " + std::to_string(bad) + " for token 1.";
    CHECK_THROWS_WITH_AS(
        cpu::kv_append(args),
        doctest::Contains(text.c_str()),
        std::runtime_error);
    CHECK(cache == std::vector<float>(12, 0.0f));
  }
}

TEST_CASE("copy_blocks copies whole blocks in order, bit for bit") {
  // NaN payloads and unwritten slots travel as they are.
  std::vector<std::uint32_t> k = {1, 2, 3, 4, 0x7fc01234, 6, 7, 8};
  std::vector<std::uint32_t> v = {11, 12, 13, 14, 15, 16, 17, 18};
  // The first block copied goes on; the last onto itself.
  const std::vector<std::int32_t> copies = {2, 0, 0, 3, 1, 1};
  cpu::CopyBlocksArgs args = {
      .num_copies = 3,
      .num_blocks = 4,
      .block_bytes = 8,
      .copies = copies.data(),
      .k_cache = k.data(),
      .v_cache = v.data(),
  };
  cpu::copy_blocks(args);
  CHECK(
      k == std::vector<std::uint32_t>{
               0x7fc01234, 6, 3, 4, 0x7fc01234, 6, 0x7fc01234, 6});
  CHECK(v == std::vector<std::uint32_t>{15, 16, 13, 14, 15, 16, 15, 16});
  for (const std::int32_t bad : {-1, 4}) {
    const std::vector<std::int32_t> wrong = {3, 0, 0, bad};
    args.num_copies = 2;
    args.copies = wrong.data();
    const std::vector<std::uint32_t> before = k;
    const std::string text = "got " + std::to_string(bad) + " in copy 1.";
    CHECK_THROWS_WITH_AS(
        cpu::copy_blocks(args),
        doctest::Contains(text.c_str()),
        std::runtime_error);
    CHECK(k == before);
  }
}

}  // namespace
}  // namespace quire
