#include "kernels/cuda/cache_write.h"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>

#include "kernels/cpu/decode_test_inputs.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/launch.h"

namespace quire::cuda {
namespace {

using test::get;
using test::put;

bool have_device() {
  int count = 0;
  const bool have = cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  if (!have) {
    MESSAGE("SKIPPED: no CUDA device");
  }
  return have;
}

constexpr DType kDTypes[] = {DType::Float16, DType::BFloat16, DType::Float32};

// Values at the edges of rounding, of both 16-bit types.
std::vector<float> edge_values() {
  std::vector<float> values;
  for (const std::uint32_t bits :
       {0x3f800001u,
        0x3f808000u,
        0x3f808001u,
        0x3f818000u,
        0x7f7fffffu,
        0x00000001u,
        0x80000000u,
        0x7f800000u,
        0xff800000u}) {
    values.push_back(std::bit_cast<float>(bits));
  }
  for (const float x : {65519.9f, 65520.0f, 6e-8f, 5.96e-8f, -1.5f, 1.0f}) {
    values.push_back(x);
  }
  return values;
}

TEST_CASE("append rounds to nearest even, keeps NaN and skips padding") {
  if (!have_device()) {
    return;
  }
  constexpr int kNumSlots = 12;
  const std::vector<std::int64_t> slots = {3, -1, 11, 0, kNumSlots, 7};
  const std::vector<float> edges = edge_values();
  for (const int turn :
       {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17}) {
    const DType from = kDTypes[turn % 3];
    const DType to = kDTypes[turn / 3 % 3];
    // Rows of 63 elements are written one by one, others 8 at a time.
    const int token_elems = turn < 9 ? 64 : 63;
    {
      const std::size_t elems =
          slots.size() * static_cast<std::size_t>(token_elems);
      std::vector<std::byte> k(elems * dtype_bytes(from));
      std::vector<std::byte> v(k.size());
      test::Normal normal(5);
      for (std::size_t i = 0; i < elems; ++i) {
        const auto at = static_cast<std::int64_t>(i);
        put(k, at, i < edges.size() ? edges[i] : normal(), from);
        put(v, at, i == 70 ? NAN : normal(), from);
      }
      std::vector<std::byte> cache(
          static_cast<std::size_t>(kNumSlots * token_elems) * dtype_bytes(to),
          std::byte{0x5a});
      DeviceBuffer<std::byte> device_k(k);
      DeviceBuffer<std::byte> device_v(v);
      DeviceBuffer<std::byte> k_cache(cache);
      DeviceBuffer<std::byte> v_cache(cache);
      DeviceBuffer<std::int64_t> device_slots(slots);
      KvAppendArgs args;
      args.k = device_k.data();
      args.v = device_v.data();
      args.slots = device_slots.data();
      args.k_cache = k_cache.data();
      args.v_cache = v_cache.data();
      args.num_slots = kNumSlots;
      args.k_stride = args.v_stride = token_elems;
      args.token_elems = token_elems;
      args.num_tokens = static_cast<std::int32_t>(slots.size());
      launch_kv_append(make_kv_append_launch(args, from, to), nullptr);

      std::vector<std::byte> expected_k = cache;
      std::vector<std::byte> expected_v = cache;
      for (std::size_t t = 0; t < slots.size(); ++t) {
        for (int i = 0; i < token_elems; ++i) {
          if (slots[t] < 0 || slots[t] >= kNumSlots) {
            continue;
          }
          const auto source = static_cast<std::int64_t>(t) * token_elems + i;
          const std::int64_t target = slots[t] * token_elems + i;
          put(expected_k, target, get(k, source, from), to);
          put(expected_v, target, get(v, source, from), to);
        }
      }
      CAPTURE(dtype_name(from));
      CAPTURE(dtype_name(to));
      CHECK(k_cache.download() == expected_k);
      const std::vector<std::byte> got_v = v_cache.download();
      for (std::int64_t i = 0; i < kNumSlots * token_elems; ++i) {
        const float want = get(expected_v, i, to);
        const float got = get(got_v, i, to);
        const bool same = std::isnan(want)
                              ? std::isnan(got)
                              : std::bit_cast<std::uint32_t>(want) ==
                                    std::bit_cast<std::uint32_t>(got);
        CHECK(same);
      }
    }
  }
}

TEST_CASE("block copies act as if done in order") {
  if (!have_device()) {
    return;
  }
  constexpr int kNumBlocks = 40;
  constexpr std::size_t kBlockBytes = 4112;  // not a multiple of a CTA's part
  std::vector<std::byte> cache(kNumBlocks * kBlockBytes);
  for (std::size_t i = 0; i < cache.size(); ++i) {
    cache[i] = static_cast<std::byte>(i / kBlockBytes * 7 + i % 251);
  }
  const std::vector<std::vector<std::int32_t>> lists = {
      {},
      {0, 1},
      {0, 1, 2, 3, 4, 5, 6, 7, 0, 9},  // apart
      {0, 1, 1, 2, 2, 3, 3, 0},        // a chain
      {0, 5, 1, 5, 5, 6},              // two onto one, then on
      {3, 4, 2, 3},                    // a source that is written later
      {0, 40, -1, 2, 5, 6}};           // ids outside are skipped
  for (const std::vector<std::int32_t>& copies : lists) {
    DeviceBuffer<std::byte> k(cache);
    DeviceBuffer<std::byte> v(cache);
    DeviceBuffer<std::int32_t> device_copies(copies);
    CopyBlocksArgs args;
    args.copies = device_copies.data();
    args.k_cache = k.data();
    args.v_cache = v.data();
    args.block_bytes = kBlockBytes;
    args.num_copies = static_cast<std::int32_t>(copies.size() / 2);
    args.num_blocks = kNumBlocks;
    launch_copy_blocks(make_copy_blocks_launch(args), nullptr);
    std::vector<std::byte> expected = cache;
    for (std::size_t i = 0; i + 1 < copies.size(); i += 2) {
      const std::int32_t source = copies[i];
      const std::int32_t target = copies[i + 1];
      if (source >= 0 && source < kNumBlocks && target >= 0 &&
          target < kNumBlocks) {
        std::copy_n(
            expected.begin() + source * std::ptrdiff_t{kBlockBytes},
            kBlockBytes,
            expected.begin() + target * std::ptrdiff_t{kBlockBytes});
      }
    }
    CHECK(k.download() == expected);
    CHECK(v.download() == expected);
  }
}

}  // namespace
}  // namespace quire::cuda
