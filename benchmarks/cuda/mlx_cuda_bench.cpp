// Decode attention of 32 layers as one MLX graph on CUDA, wall time a layer:
// fused, gather and MLX's dense attention, beside each other. "pipelined" is
// fused with one step built while the one before runs (async_eval), as a
// decoding loop does it; the others wait for each step.
//
//   quire_cuda_mlx_bench [CELL...]     as 4x4k; default: the cells of 4x4k up
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <mlx/mlx.h>

#include "quire/ops.h"

namespace mx = mlx::core;
using namespace quire;

namespace {

constexpr int kLayers = 32;
constexpr int kQHeads = 32;
constexpr int kKvHeads = 8;
constexpr int kHeadDim = 128;
constexpr int kBlockSize = 32;
constexpr double kSecondsEach = 0.4;

mx::array normal(mx::Shape shape) {
  mx::array x = mx::random::normal(std::move(shape), mx::float16);
  mx::eval(x);
  return x;
}

// Median wall time of `step`, which returns the last layer's output.
double median_seconds(const std::function<mx::array()>& step) {
  std::vector<double> times;
  double spent = 0.0;
  for (int i = 0; i < 200 && (i < 6 || spent < kSecondsEach); ++i) {
    const auto begin = std::chrono::steady_clock::now();
    mx::array out = step();
    mx::eval(out);
    const std::chrono::duration<double> t =
        std::chrono::steady_clock::now() - begin;
    if (i >= 3) {
      times.push_back(t.count());
      spent += t.count();
    }
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// Wall time of a step when each is enqueued while the one before it runs.
double pipelined_seconds(const std::function<mx::array()>& step) {
  constexpr int kWarmUp = 5;
  int steps = 0;
  mx::array before = step();
  mx::async_eval(before);
  auto begin = std::chrono::steady_clock::now();
  std::chrono::duration<double> spent{0.0};
  while (steps < kWarmUp + 10 || spent.count() < kSecondsEach) {
    mx::array next = step();
    mx::async_eval(next);
    before.wait();
    before = next;
    if (++steps == kWarmUp) {
      begin = std::chrono::steady_clock::now();
    }
    spent = std::chrono::steady_clock::now() - begin;
  }
  before.wait();
  return spent.count() / (steps - kWarmUp);
}

void run_cell(const std::string& cell) {
  int batch = 0;
  int context = 0;
  std::sscanf(cell.c_str(), "%dx%dk", &batch, &context);
  context *= 1024;
  const int width = context / kBlockSize;
  const double layer_bytes = 2.0 * batch * context * kKvHeads * kHeadDim * 2;
  // As many layers' caches as fit 50 GB take turns.
  const int caches =
      std::clamp(static_cast<int>(50e9 / layer_bytes), 2, kLayers);
  std::vector<mx::array> k;
  std::vector<mx::array> v;
  for (int i = 0; i < caches; ++i) {
    k.push_back(normal({batch * width, kBlockSize, kKvHeads, kHeadDim}));
    v.push_back(normal({batch * width, kBlockSize, kKvHeads, kHeadDim}));
  }
  std::vector<std::int32_t> ids(static_cast<std::size_t>(batch * width));
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), std::mt19937(1));
  const mx::array table(ids.data(), {batch, width}, mx::int32);
  const std::vector<std::int32_t> lens(
      static_cast<std::size_t>(batch), context);
  const mx::array seq_lens(lens.data(), {batch}, mx::int32);
  const mx::array q = normal({batch, kQHeads, kHeadDim});
  const float scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim));
  mx::eval(table, seq_lens);

  const auto paged_step = [&](NativeKernel kernel) {
    return [&, kernel] {
      mx::array x = q;
      for (int layer = 0; layer < kLayers; ++layer) {
        const auto l = static_cast<std::size_t>(layer % caches);
        x = paged_attention(
            x,
            k[l],
            v[l],
            table,
            seq_lens,
            scale,
            {.use_native_paged_kernel = kernel});
      }
      return x;
    };
  };
  const double fused = median_seconds(paged_step(NativeKernel::On));
  const double pipelined = pipelined_seconds(paged_step(NativeKernel::On));
  const double gather = median_seconds(paged_step(NativeKernel::Off));
  // The same memory, read as [batch, kv_heads, context, head_dim].
  const double dense = median_seconds([&] {
    mx::array x = mx::reshape(q, {batch, kQHeads, 1, kHeadDim});
    for (int layer = 0; layer < kLayers; ++layer) {
      const auto l = static_cast<std::size_t>(layer % caches);
      const mx::Shape shape = {batch, kKvHeads, context, kHeadDim};
      x = mx::fast::scaled_dot_product_attention(
          x, mx::reshape(k[l], shape), mx::reshape(v[l], shape), scale);
    }
    return x;
  });
  std::printf(
      "%-8s %9.2f %9.2f %9.2f %9.2f\n",
      cell.c_str(),
      fused * 1e6 / kLayers,
      pipelined * 1e6 / kLayers,
      gather * 1e6 / kLayers,
      dense * 1e6 / kLayers);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> cells(argv + 1, argv + argc);
  if (cells.empty()) {
    cells = {
        "1x1k",
        "1x4k",
        "1x16k",
        "4x1k",
        "4x4k",
        "4x16k",
        "16x1k",
        "16x16k",
        "64x1k"};
  }
  std::printf(
      "MLX %s, %d layers as one graph, us a layer\n%-8s %9s %9s %9s %9s\n",
      mx::version(),
      kLayers,
      "cell",
      "fused",
      "pipelined",
      "gather",
      "dense");
  for (const std::string& cell : cells) {
    run_cell(cell);
  }
  return 0;
}
