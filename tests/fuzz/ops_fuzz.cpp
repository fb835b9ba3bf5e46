// Fuzzes the MLX ops: ranks, extents, dtypes, strides and options that nobody
// chose, over tables, lengths and slots that nobody checked. A call returns
// what it promises or throws; where it returns, fused and gather agree.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <vector>

#include <mlx/mlx.h>
#include <mlx/scheduler.h>

#include "bytes.h"
#include "quire/ops.h"

namespace {

namespace mx = mlx::core;
using quire::fuzz::Bytes;

constexpr auto kCpu = mx::Device::DeviceType::cpu;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "ops_fuzz: %s\n", what);
  std::abort();
}

// The geometry that the arguments of a call would agree on.
struct Geometry {
  int num_seqs, num_q_heads, num_kv_heads, head_dim;
  int num_blocks, block_size, max_blocks_per_seq;
};

Geometry take_geometry(Bytes& bytes) {
  constexpr int kHeadDims[] = {64, 80, 96, 128, 16};
  constexpr int kBlockSizes[] = {8, 16, 32};
  constexpr int kGroups[] = {1, 2, 4, 7};
  Geometry g{};
  g.num_seqs = bytes.take<std::uint8_t>() % 4;
  g.num_kv_heads = 1 + bytes.take<std::uint8_t>() % 3;
  g.num_q_heads = g.num_kv_heads * bytes.pick(kGroups);
  g.head_dim = bytes.pick(kHeadDims);
  g.num_blocks = 1 + bytes.take<std::uint8_t>() % 5;
  g.block_size = bytes.pick(kBlockSizes);
  g.max_blocks_per_seq = bytes.take<std::uint8_t>() % 4;
  return g;
}

// One choice in sixteen is made to be wrong.
bool spoil(Bytes& bytes) {
  return bytes.take<std::uint8_t>() >= 240;
}

mx::Dtype take_dtype(Bytes& bytes, std::initializer_list<mx::Dtype> right) {
  const mx::Dtype any[] = {
      mx::float32,
      mx::float16,
      mx::bfloat16,
      mx::int32,
      mx::int64,
      mx::uint32,
      mx::int8,
      mx::bool_,
      mx::complex64};
  if (spoil(bytes)) {
    return bytes.pick(any);
  }
  return right.begin()[bytes.take<std::uint8_t>() % right.size()];
}

// One extent off, or the rank.
mx::Shape take_shape(Bytes& bytes, mx::Shape right) {
  if (!spoil(bytes)) {
    return right;
  }
  const auto kind = bytes.take<std::uint8_t>() % 4;
  const auto at = bytes.take<std::uint8_t>() % right.size();
  if (kind == 0) {
    right.pop_back();
  } else if (kind == 1) {
    right.push_back(1 + bytes.take<std::uint8_t>() % 2);
  } else {
    right[at] = bytes.take<std::uint8_t>() % 9;
  }
  return right;
}

// The same values behind other strides, or an array as it is.
mx::array take_strides(Bytes& bytes, const mx::array& x) {
  if (x.ndim() < 2 || !spoil(bytes)) {
    return x;
  }
  return mx::swapaxes(mx::contiguous(mx::swapaxes(x, 0, 1)), 0, 1);
}

mx::array
take_floats(Bytes& bytes, const mx::Shape& shape, mx::Dtype dtype, float seed) {
  const mx::Shape right = take_shape(bytes, shape);
  int size = 1;
  for (const int extent : right) {
    size *= extent;
  }
  const mx::array values = mx::reshape(
      mx::sin(mx::multiply(mx::arange(0, size, mx::float32), mx::array(seed))),
      right);
  return take_strides(bytes, mx::astype(values, dtype));
}

template <typename T>
mx::array take_ints(
    Bytes& bytes,
    const mx::Shape& shape,
    mx::Dtype dtype,
    std::int64_t bound) {
  const mx::Shape right = take_shape(bytes, shape);
  std::size_t size = 1;
  for (const int extent : right) {
    size *= static_cast<std::size_t>(extent);
  }
  std::vector<T> values(size);
  for (T& value : values) {
    value = static_cast<T>(bytes.near_bound(bound));
  }
  return take_strides(
      bytes, mx::astype(mx::array(values.begin(), right), dtype));
}

struct Caches {
  mx::array k, v;
};

Caches take_caches(Bytes& bytes, const Geometry& g) {
  const mx::Shape shape{g.num_blocks, g.block_size, g.num_kv_heads, g.head_dim};
  const mx::Dtype dtype =
      take_dtype(bytes, {mx::float32, mx::float16, mx::bfloat16});
  const mx::Dtype v_dtype = spoil(bytes) ? mx::float16 : dtype;
  return {
      take_floats(bytes, shape, dtype, 0.7f),
      take_floats(bytes, shape, v_dtype, 0.3f)};
}

void require_same_kind(const mx::array& out, const mx::array& model) {
  if (out.shape() != model.shape() || out.dtype() != model.dtype()) {
    fail("a result with another shape or dtype than promised");
  }
}

void fuzz_attention(Bytes& bytes) {
  const Geometry g = take_geometry(bytes);
  const mx::array q = take_floats(
      bytes,
      {g.num_seqs, g.num_q_heads, g.head_dim},
      take_dtype(bytes, {mx::float32, mx::float16, mx::bfloat16}),
      1.3f);
  const Caches caches = take_caches(bytes, g);
  const mx::array table = take_ints<std::int32_t>(
      bytes,
      {g.num_seqs, g.max_blocks_per_seq},
      take_dtype(bytes, {mx::int32}),
      g.num_blocks);
  const mx::array seq_lens = take_ints<std::int32_t>(
      bytes,
      {g.num_seqs},
      take_dtype(bytes, {mx::int32}),
      std::int64_t{g.max_blocks_per_seq} * g.block_size);
  const float scale = spoil(bytes) ? bytes.take<float>() : 0.125f;
  quire::PagedAttentionOptions options;
  options.max_seq_len = spoil(bytes) ? bytes.take<int>() : 0;
  options.num_splits =
      spoil(bytes) ? bytes.take<int>() : bytes.take<std::uint8_t>() % 5;

  const auto attend = [&](quire::NativeKernel path) {
    options.use_native_paged_kernel = path;
    mx::array out = quire::paged_attention(
        q, caches.k, caches.v, table, seq_lens, scale, options, kCpu);
    mx::eval(out);
    require_same_kind(out, q);
    return mx::astype(out, mx::float32);
  };
  const mx::array fused = attend(quire::NativeKernel::Auto);
  const mx::array gather = attend(quire::NativeKernel::Off);
  if (!std::isfinite(scale) || std::fabs(scale) > 1) {
    return;  // what a large scale does to rounding is another test's
  }
  // Values below 1, whose weights sum to 1, in at least bfloat16.
  if (!mx::allclose(fused, gather, 2e-2, 2e-2).item<bool>()) {
    fail("fused and gather differ");
  }
}

void fuzz_append(Bytes& bytes) {
  const Geometry g = take_geometry(bytes);
  const Caches caches = take_caches(bytes, g);
  const int num_tokens = bytes.take<std::uint8_t>() % 5;
  const mx::Shape rows{num_tokens, g.num_kv_heads, g.head_dim};
  const mx::Dtype dtype =
      take_dtype(bytes, {mx::float32, mx::float16, mx::bfloat16});
  const mx::Dtype v_dtype = spoil(bytes) ? mx::float16 : dtype;
  const mx::array k = take_floats(bytes, rows, dtype, 0.9f);
  const mx::array v = take_floats(bytes, rows, v_dtype, 0.4f);
  const mx::array slots = take_ints<std::int64_t>(
      bytes,
      {num_tokens},
      take_dtype(bytes, {mx::int64}),
      std::int64_t{g.num_blocks} * g.block_size);
  auto [k_cache, v_cache] =
      quire::kv_append(caches.k, caches.v, k, v, slots, kCpu);
  mx::eval(k_cache, v_cache);
  require_same_kind(k_cache, caches.k);
  require_same_kind(v_cache, caches.v);
}

void fuzz_copy(Bytes& bytes) {
  const Geometry g = take_geometry(bytes);
  const Caches caches = take_caches(bytes, g);
  const int num_copies = bytes.take<std::uint8_t>() % 4;
  const mx::array copies = take_ints<std::int32_t>(
      bytes, {num_copies, 2}, take_dtype(bytes, {mx::int32}), g.num_blocks);
  auto [k_cache, v_cache] =
      quire::copy_blocks(caches.k, caches.v, copies, kCpu);
  mx::eval(k_cache, v_cache);
  require_same_kind(k_cache, caches.k);
  require_same_kind(v_cache, caches.v);
}

// Waits for what a failed call left behind. MLX 0.32.4 counts a task as active
// for good where it meets an earlier task's error while it enqueues one, and
// its eval waits for ever once ten are: take those off the count.
void settle() {
  const mx::Stream stream = mx::default_stream(kCpu);
  try {
    mx::synchronize(stream);
  } catch (const std::runtime_error&) {
    // The same failure, met by a task behind the one that reported it.
  }
  while (mx::scheduler::n_active_tasks() > 0) {
    mx::scheduler::notify_task_completion(stream);
  }
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(
    const std::uint8_t* data,
    std::size_t size) {
  Bytes bytes(data, size);
  const auto what = bytes.take<std::uint8_t>() % 4;
  try {
    if (what == 0) {
      fuzz_append(bytes);
    } else if (what == 1) {
      fuzz_copy(bytes);
    } else {
      fuzz_attention(bytes);
    }
  } catch (const std::runtime_error&) {
    settle();  // what the arrays held could not be used: that is an answer
  } catch (const std::invalid_argument&) {
    settle();
  }
  return 0;
}
