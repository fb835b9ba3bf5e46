// The ops on a GPU stream of MLX's CUDA backend, against gather on the same
// stream. Skipped, visibly, without a GPU.
#include <doctest/doctest.h>

#include <cmath>
#include <numeric>
#include <optional>
#include <random>
#include <vector>

#include <mlx/mlx.h>

#include "quire/ops.h"
#include "quire/runtime.h"

namespace mx = mlx::core;
using namespace quire;

namespace {

bool have_device() {
  const bool have = mx::is_available(mx::Device::gpu);
  if (!have) {
    MESSAGE("SKIPPED: no CUDA device");
  }
  return have;
}

constexpr PagedAttentionOptions kFused{
    .use_native_paged_kernel = NativeKernel::On};
constexpr PagedAttentionOptions kGather{
    .use_native_paged_kernel = NativeKernel::Off};

struct Shape {
  int num_q_heads;
  int num_kv_heads;
  int head_dim;
  int block_size;
  mx::Dtype q_dtype;
  mx::Dtype kv_dtype;
};

mx::array normal(mx::Shape shape, mx::Dtype dtype) {
  return mx::astype(mx::random::normal(std::move(shape), mx::float32), dtype);
}

// A permuted table for `lens`, with huge ids where none may be followed.
struct Table {
  Table(const std::vector<int>& lens, int block_size, unsigned seed)
      : num_seqs(static_cast<int>(lens.size())) {
    for (const int len : lens) {
      width = std::max(width, (len + block_size - 1) / block_size + 1);
      num_blocks += (len + block_size - 1) / block_size;
    }
    std::vector<int> order(static_cast<std::size_t>(num_blocks));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    ids.assign(static_cast<std::size_t>(num_seqs * width), 2147480000);
    std::size_t next = 0;
    for (int s = 0; s < num_seqs; ++s) {
      for (int b = 0; b * block_size < lens[static_cast<std::size_t>(s)]; ++b) {
        ids[static_cast<std::size_t>(s * width + b)] = order[next++];
      }
    }
  }
  mx::array array() const {
    return mx::array(ids.data(), {num_seqs, width}, mx::int32);
  }

  int num_seqs;
  int width = 1;
  int num_blocks = 0;
  std::vector<std::int32_t> ids;
};

double max_abs(const mx::array& a, const mx::array& b) {
  return mx::max(
             mx::abs(mx::astype(a, mx::float32) - mx::astype(b, mx::float32)))
      .item<float>();
}

// Gather rounds logits and weights to 16 bits on its way, fused the weights.
double bound(const Shape& s) {
  return s.kv_dtype == mx::bfloat16 || s.q_dtype == mx::bfloat16 ? 4e-2
         : s.kv_dtype == mx::float16 || s.q_dtype == mx::float16 ? 5e-3
                                                                 : 2e-3;
}

TEST_CASE("fused agrees with gather on the GPU and is counted") {
  if (!have_device()) {
    return;
  }
  for (const Shape& s :
       {Shape{32, 8, 128, 32, mx::float16, mx::float16},
        Shape{9, 3, 64, 16, mx::float16, mx::float16},
        Shape{16, 2, 256, 32, mx::bfloat16, mx::bfloat16},
        Shape{64, 4, 128, 64, mx::bfloat16, mx::bfloat16},
        Shape{9, 3, 64, 32, mx::float32, mx::float32},
        Shape{9, 3, 64, 32, mx::float32, mx::float16},
        Shape{8, 8, 96, 8, mx::float16, mx::bfloat16}}) {
    for (const std::vector<int>& lens :
         {std::vector<int>{700}, std::vector<int>{1, 33, 500, 64, 2000}}) {
      const Table table(lens, s.block_size, 3);
      const mx::Shape cache = {
          table.num_blocks, s.block_size, s.num_kv_heads, s.head_dim};
      const mx::array q =
          normal({table.num_seqs, s.num_q_heads, s.head_dim}, s.q_dtype);
      const mx::array k = normal(cache, s.kv_dtype);
      const mx::array v = normal(cache, s.kv_dtype);
      const mx::array seq_lens(lens.data(), {table.num_seqs}, mx::int32);
      const float scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
      const PathCounts before = path_counts();
      mx::array fused =
          paged_attention(q, k, v, table.array(), seq_lens, scale, kFused);
      mx::eval(fused);
      CHECK(path_counts().fused_cuda == before.fused_cuda + 1);
      mx::array gathered =
          paged_attention(q, k, v, table.array(), seq_lens, scale, kGather);
      CAPTURE(s.head_dim);
      CHECK(max_abs(fused, gathered) <= bound(s));
      PagedAttentionOptions split = kFused;
      split.num_splits = 4;
      CHECK(
          max_abs(
              paged_attention(q, k, v, table.array(), seq_lens, scale, split),
              gathered) <= bound(s));
    }
  }
}

// Decoding steps that are enqueued without waiting, while the host's vectors
// behind the arrays are rewritten at once.
TEST_CASE("300 steps under async_eval equal steps with a wait each") {
  if (!have_device()) {
    return;
  }
  constexpr int kSteps = 300;
  constexpr int kLayers = 4;
  constexpr int kSeqs = 3;
  const Shape s{8, 2, 64, 16, mx::float16, mx::float16};
  const std::vector<int> most(kSeqs, kSteps);
  const Table table(most, s.block_size, 5);
  const mx::Shape cache = {
      table.num_blocks, s.block_size, s.num_kv_heads, s.head_dim};
  const mx::array keys =
      normal({kSteps, kSeqs, s.num_kv_heads, s.head_dim}, s.kv_dtype);
  const mx::array queries =
      normal({kSteps, kSeqs, s.num_q_heads, s.head_dim}, s.q_dtype);
  mx::eval(keys, queries);

  const auto decode = [&](bool wait) {
    std::vector<mx::array> k_cache;
    std::vector<mx::array> v_cache;
    for (int layer = 0; layer < kLayers; ++layer) {
      k_cache.push_back(mx::zeros(cache, s.kv_dtype));
      v_cache.push_back(mx::zeros(cache, s.kv_dtype));
    }
    mx::eval(k_cache);
    mx::eval(v_cache);
    std::vector<mx::array> outs;
    std::vector<std::int32_t> lens(kSeqs);
    std::vector<std::int64_t> slots(kSeqs);
    std::vector<std::int32_t> ids = table.ids;
    for (int step = 0; step < kSteps; ++step) {
      for (int q = 0; q < kSeqs; ++q) {
        const auto i = static_cast<std::size_t>(q);
        lens[i] = step + 1;
        slots[i] = std::int64_t{ids[static_cast<std::size_t>(
                       q * table.width + step / s.block_size)]} *
                       s.block_size +
                   step % s.block_size;
      }
      const mx::array seq_lens(lens.data(), {kSeqs}, mx::int32);
      const mx::array slot_mapping(slots.data(), {kSeqs}, mx::int64);
      const mx::array block_table(ids.data(), {kSeqs, table.width}, mx::int32);
      mx::array x = mx::take(queries, step, 0);
      const mx::array kv = mx::take(keys, step, 0);
      for (int layer = 0; layer < kLayers; ++layer) {
        const auto l = static_cast<std::size_t>(layer);
        const mx::array mine =
            kv * mx::array(0.5f + 0.1f * float(layer), s.kv_dtype);
        auto [k, v] =
            kv_append(k_cache[l], v_cache[l], mine, mine, slot_mapping);
        k_cache[l] = k;
        v_cache[l] = v;
        x = x + paged_attention(x, k, v, block_table, seq_lens, 0.125f, kFused);
      }
      std::vector<mx::array> all = {x};
      all.insert(all.end(), k_cache.begin(), k_cache.end());
      all.insert(all.end(), v_cache.begin(), v_cache.end());
      if (wait) {
        mx::eval(all);
      } else {
        mx::async_eval(all);
      }
      outs.push_back(x);
      std::fill(lens.begin(), lens.end(), -7);  // copied already, or never used
      std::fill(slots.begin(), slots.end(), 1 << 30);
    }
    return mx::stack(outs);
  };
  const mx::array waited = decode(true);
  const mx::array free_running = decode(false);
  CHECK(mx::array_equal(waited, free_running).item<bool>());
  CHECK(mx::all(mx::isfinite(waited)).item<bool>());
}

TEST_CASE("appends write in place and round like astype") {
  if (!have_device()) {
    return;
  }
  const mx::array zeros = mx::zeros({4, 16, 2, 64}, mx::float16);
  const mx::array k = mx::random::normal({3, 2, 64}, mx::float32);
  const std::vector<std::int64_t> slots = {5, 63, 20};
  auto [kc, vc] = kv_append(
      mx::copy(zeros),
      mx::copy(zeros),
      k,
      k * mx::array(2.0f),
      mx::array(slots.data(), {3}, mx::int64));
  const mx::array rows = mx::reshape(kc, {64, 2, 64});
  const mx::array index(slots.data(), {3}, mx::int64);
  CHECK(mx::array_equal(mx::take(rows, index, 0), mx::astype(k, mx::float16))
            .item<bool>());
  CHECK(mx::sum(mx::abs(mx::astype(vc, mx::float32))).item<float>() > 0.0f);

  const std::vector<std::int32_t> copies = {0, 2, 3, 1};
  auto [k2, v2] =
      copy_blocks(kc, vc, mx::array(copies.data(), {2, 2}, mx::int32));
  CHECK(mx::array_equal(mx::take(k2, 2, 0), mx::take(k2, 0, 0)).item<bool>());
  CHECK(mx::array_equal(mx::take(v2, 1, 0), mx::take(v2, 3, 0)).item<bool>());
}

// Run with QUIRE_CHECKS=1; without it nothing is promised.
TEST_CASE("with QUIRE_CHECKS a wrong value throws when it is evaluated") {
  if (!have_device()) {
    return;
  }
  const char* checks = std::getenv("QUIRE_CHECKS");
  if (checks == nullptr || *checks != '1') {
    MESSAGE("SKIPPED: QUIRE_CHECKS is not 1");
    return;
  }
  const mx::array q = normal({1, 4, 64}, mx::float16);
  const mx::array cache = normal({2, 16, 2, 64}, mx::float16);
  const auto run = [&](int id, int len) {
    mx::eval(paged_attention(
        q,
        cache,
        cache,
        mx::array({0, id}, {1, 2}, mx::int32),
        mx::array({len}, mx::int32),
        0.125f,
        kFused));
  };
  CHECK_NOTHROW(run(1, 32));
  CHECK_THROWS_AS(run(1, 33), std::runtime_error);
  CHECK_THROWS_AS(run(2, 32), std::runtime_error);
  CHECK_NOTHROW(run(2147480000, 16));
}

}  // namespace
