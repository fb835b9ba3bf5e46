// What the CPU benchmarks time: a decode step over K and V far larger than any
// cache.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/decode_params.h"
#include "kernels/float_bits.h"

namespace quire::bench {

inline constexpr std::size_t kRegionBytes = std::size_t{1280} << 20;
inline constexpr std::size_t kHugePage = std::size_t{2} << 20;

inline constexpr int kBlockSize = 32;

/** One decode step. */
struct Cell {
  DType q_dtype;
  DType kv_dtype;
  int num_seqs;
  int context;
  int num_q_heads;
  int num_kv_heads;
  int head_dim;

  int blocks_per_seq() const {
    return (context + kBlockSize - 1) / kBlockSize;
  }
  /** Bytes of K, and of V. */
  std::size_t cache_bytes() const {
    return static_cast<std::size_t>(num_seqs * blocks_per_seq() * kBlockSize) *
           static_cast<std::size_t>(num_kv_heads * head_dim) *
           dtype_bytes(kv_dtype);
  }
  std::size_t q_size() const {
    return static_cast<std::size_t>(num_seqs * num_q_heads * head_dim);
  }
  /** All of the step's arguments but its arrays. */
  DecodeArgs args() const {
    DecodeArgs args;
    args.params = {
        .num_seqs = num_seqs,
        .num_q_heads = num_q_heads,
        .num_kv_heads = num_kv_heads,
        .head_dim = head_dim,
        .num_blocks = num_seqs * blocks_per_seq(),
        .block_size = kBlockSize,
        .max_blocks_per_seq = blocks_per_seq(),
        .num_splits = 0,
        .scale = 1.0f / std::sqrt(static_cast<float>(head_dim))};
    args.q_dtype = q_dtype;
    args.kv_dtype = kv_dtype;
    return args;
  }
};

inline void put(std::byte* data, std::size_t idx, float x, DType dtype) {
  if (dtype == DType::Float32) {
    std::memcpy(data + 4 * idx, &x, 4);
    return;
  }
  const std::uint16_t bits =
      dtype == DType::Float16 ? f16_from_f32(x) : bf16_from_f32(x);
  std::memcpy(data + 2 * idx, &bits, 2);
}

/** One region for all K and V: far larger than any cache. */
class Region {
 public:
  explicit Region(bool huge_pages) {
    void* memory = mmap(
        nullptr,
        kRegionBytes + kHugePage,
        PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS,
        -1,
        0);
    if (memory == MAP_FAILED) {
      std::perror("mmap");
      std::exit(2);
    }
    auto address = reinterpret_cast<std::uintptr_t>(memory);
    address = (address + kHugePage - 1) / kHugePage * kHugePage;
    data_ = reinterpret_cast<std::byte*>(address);
    madvise(data_, kRegionBytes, huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  }

  /** N(0, 1) of a dtype, the same 2 MiB again and again. */
  std::byte* fill(DType dtype) {
    if (filled_ && dtype_ == dtype) {
      return data_;
    }
    std::mt19937 rng(7);
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < kHugePage / dtype_bytes(dtype); ++i) {
      put(data_, i, normal(rng), dtype);
    }
    for (std::size_t at = kHugePage; at < kRegionBytes; at += kHugePage) {
      std::memcpy(data_ + at, data_, kHugePage);
    }
    filled_ = true;
    dtype_ = dtype;
    return data_;
  }

 private:
  std::byte* data_ = nullptr;
  DType dtype_ = DType::Float32;
  bool filled_ = false;
};

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace quire::bench
