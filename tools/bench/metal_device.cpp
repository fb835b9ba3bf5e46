// Roofs and kernel times on Metal, through MLX alone: a run is many steps in
// one evaluation, so that all of them share what it costs to start one. It is
// tested on MLX's CPU backend; no Apple GPU has run it yet.
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

#include "quire/ops.h"
#include "tools/bench/device.h"
#include "tools/bench/memory.h"

namespace quire::bench {
namespace {

namespace mx = mlx::core;

// A run reads about so many bytes, in so many steps at most.
constexpr std::int64_t kRunBytes = std::int64_t{4} << 30;
constexpr std::int64_t kMostSteps = 64;

int steps_of_run(std::int64_t num_bytes) {
  return static_cast<int>(std::clamp<std::int64_t>(
      kRunBytes / std::max<std::int64_t>(1, num_bytes), 1, kMostSteps));
}

class MetalDevice final : public Device {
 public:
  explicit MetalDevice(std::string fused_path)
      : fused_path_(std::move(fused_path)) {}

  std::string fused_path() const override {
    return fused_path_;
  }
  testing::Rounding rounding() const override {
    return {};
  }
  // Apple does not say; the largest chips have about so much.
  std::int64_t cache_bytes() const override {
    return std::int64_t{96} << 20;
  }
  std::int64_t available_bytes() const override {
    return available_memory_bytes();  // host and GPU share it
  }
  std::string why_not_fused(const Shape& shape) const override {
    const mx::array cache = mx::zeros(
        {1, shape.block_size, shape.num_kv_heads, shape.head_dim},
        mlx_dtype(shape.kv_dtype));
    try {
      paged_attention(
          mx::zeros(
              {1, shape.num_q_heads, shape.head_dim}, mlx_dtype(shape.q_dtype)),
          cache,
          cache,
          mx::zeros({1, 1}, mx::int32),
          mx::zeros({1}, mx::int32),
          1.0f,
          {.use_native_paged_kernel = NativeKernel::On});
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  }

  Path make_kernel_path(const CacheData& data) override {
    Path path;
    path.name = "fused";
    path.timing = "kernel";
    path.must_run = fused_path_;
    path.uncounted = "nothing";
    path.q_dtype = data.shape().q_dtype;
    path.kv_dtype = data.shape().kv_dtype;
    path.num_sets = 1;  // a run rotates by itself
    path.steps = steps_of_run(data.total_kv_bytes() / data.num_sets());
    const auto out = std::make_shared<mx::array>(0.0f);
    path.run = [&data, out, steps = path.steps](int) {
      // One step's output is the next one's q, so that none overlaps another;
      // the last is set 0 of the data.
      mx::array q = data.q();
      for (int i = steps - 1; i > 0; --i) {
        q = paged_step(data, i % data.num_sets(), q, NativeKernel::On);
      }
      *out = paged_step(data, 0, data.q(), NativeKernel::On);
      mx::eval(q, *out);
    };
    path.output = [out] {
      *out = mx::contiguous(*out);
      mx::eval(*out);
      return static_cast<const void*>(out->data<void>());
    };
    return path;
  }

  std::vector<Read> make_reads(std::int64_t size_bytes, std::int64_t num_bytes)
      override {
    constexpr int kRowFloats = 1024;
    constexpr std::int64_t kRowBytes = std::int64_t{4} * kRowFloats;
    const auto rows =
        static_cast<int>(std::max<std::int64_t>(1, num_bytes / kRowBytes));
    const auto places = static_cast<int>(
        std::max<std::int64_t>(1, size_bytes / (rows * kRowBytes)));
    mx::array memory = mx::ones({places * rows, kRowFloats}, mx::float32);
    memory = mx::contiguous(memory);  // not one value in many places
    mx::eval(memory);
    const int steps = steps_of_run(num_bytes);
    // MLX's own reduction: near enough to a pure read where memory is the
    // limit.
    return {
        {.run =
             [=] {
               std::vector<mx::array> sums;
               for (int i = 0; i < steps; ++i) {
                 const int begin = i % places * rows;
                 sums.push_back(mx::sum(mx::slice(
                     memory, {begin, 0}, {begin + rows, kRowFloats})));
               }
               mx::eval(sums);
             },
         .steps = steps}};
  }

  // A decode step does some operations with each byte that it reads, a GPU
  // tens in the time: arithmetic is no roof of it.
  double multiply_add_rate() override {
    return std::numeric_limits<double>::infinity();
  }

 private:
  std::string fused_path_;
};

}  // namespace

std::unique_ptr<Device> make_metal_device(std::string fused_path) {
  return std::make_unique<MetalDevice>(std::move(fused_path));
}

}  // namespace quire::bench
