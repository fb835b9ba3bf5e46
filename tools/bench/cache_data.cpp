#include "tools/bench/cache_data.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "common/error.h"

namespace quire::bench {
namespace {

namespace mx = mlx::core;

// The largest prime below 2^20: a pattern of this many elements meets every
// block at another place.
constexpr int kPatternSize = 1048573;

mx::array normal(const mx::Shape& shape, DType dtype, std::uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> distribution;
  mx::array values = mx::zeros(shape, mx::float32);
  mx::eval(values);
  std::generate_n(
      values.data<float>(), values.size(), [&] { return distribution(rng); });
  values = mx::astype(values, mlx_dtype(dtype));
  mx::eval(values);
  return values;
}

// A cache filled with one pattern over and over. 2^30 random numbers would
// take minutes, and memory must be written to be more than one zero page.
mx::array make_cache(
    mx::Shape shape,
    DType dtype,
    const mx::array& pattern,
    std::size_t begin) {
  std::int64_t size = 1;
  for (const int length : shape) {
    size *= length;
  }
  const std::size_t element = dtype_bytes(dtype);
  const auto num_bytes = static_cast<std::size_t>(size) * element;
  mx::array cache(
      mx::allocator::malloc(num_bytes), std::move(shape), mlx_dtype(dtype));
  auto* to = cache.data<std::uint8_t>();
  const auto* from = pattern.data<std::uint8_t>();
  std::size_t at = begin * element;
  for (std::size_t done = 0; done < num_bytes;) {
    const std::size_t count = std::min(num_bytes - done, pattern.nbytes() - at);
    std::memcpy(to + done, from + at, count);
    done += count;
    at = 0;
  }
  return cache;
}

// On CUDA an array that the host wrote stays in memory that moves between host
// and device: there, a copy that only the device touches.
mx::array on_device(const mx::array& host) {
  if (mx::default_device() == mx::Device::cpu || mx::metal::is_available()) {
    return host;
  }
  mx::array copy = mx::multiply(host, mx::array(1.0f, host.dtype()));
  mx::eval(copy);
  return copy;
}

int count_sets(const Shape& shape, std::int64_t rotation_bytes) {
  const std::int64_t set_bytes = kv_bytes(shape, shape.kv_dtype);
  // A thousand sets of the smallest cells are enough to meet no cached row.
  return static_cast<int>(std::clamp<std::int64_t>(
      (rotation_bytes + set_bytes - 1) / set_bytes, 1, 4096));
}

}  // namespace

mx::Dtype mlx_dtype(DType dtype) {
  return dtype == DType::Float32   ? mx::float32
         : dtype == DType::Float16 ? mx::float16
                                   : mx::bfloat16;
}

CacheData::CacheData(const Shape& shape, std::int64_t rotation_bytes)
    : shape_(shape),
      q_(normal(
          {shape.num_seqs, shape.num_q_heads, shape.head_dim},
          shape.q_dtype,
          1)),
      host_k_cache_(0.0f),
      host_v_cache_(0.0f),
      k_cache_(0.0f),
      v_cache_(0.0f),
      seq_lens_(bench::seq_lens(shape).data(), {shape.num_seqs}, mx::int32) {
  const int num_sets = count_sets(shape, rotation_bytes);
  const int width = blocks_per_seq(shape);
  const std::int64_t set_blocks = std::int64_t{shape.num_seqs} * width;
  const std::int64_t num_blocks = num_sets * set_blocks;
  require(
      num_blocks <= std::numeric_limits<BlockId>::max(),
      "bench",
      "A cell must have fewer than 2^31 blocks; got ",
      num_blocks,
      ".");

  const mx::array pattern = normal({kPatternSize}, shape.kv_dtype, 2);
  const mx::Shape cache_shape{
      static_cast<int>(num_blocks),
      shape.block_size,
      shape.num_kv_heads,
      shape.head_dim};
  host_k_cache_ = make_cache(cache_shape, shape.kv_dtype, pattern, 0);
  host_v_cache_ =
      make_cache(cache_shape, shape.kv_dtype, pattern, kPatternSize / 2);
  k_cache_ = on_device(host_k_cache_);
  v_cache_ = on_device(host_v_cache_);

  std::vector<BlockId> ids(static_cast<std::size_t>(num_blocks));
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), std::mt19937(3));
  for (int set = 0; set < num_sets; ++set) {
    tables_.emplace_back(
        ids.begin() + set * set_blocks,
        mx::Shape{shape.num_seqs, width},
        mx::int32);
  }
}

std::int64_t CacheData::total_kv_bytes() const {
  return num_sets() * kv_bytes(shape_, shape_.kv_dtype);
}

DecodeArgs CacheData::args(int set) const {
  return {
      .params = decode_params(shape_, k_cache_.shape(0)),
      .q_dtype = shape_.q_dtype,
      .kv_dtype = shape_.kv_dtype,
      .q = q_.data<void>(),
      .k_cache = host_k_cache_.data<void>(),
      .v_cache = host_v_cache_.data<void>(),
      .block_table = block_table(set).data<std::int32_t>(),
      .seq_lens = seq_lens_.data<std::int32_t>(),
      .out = nullptr,
  };
}

DenseSets make_dense_sets(
    const CacheData& data,
    DType dtype,
    std::int64_t max_bytes,
    const std::function<void()>& poll) {
  const Shape& shape = data.shape();
  const auto copy = [&](const mx::array& cache, int set) {
    const mx::array blocks = mx::reshape(
        mx::take(cache, data.block_table(set), 0),
        {shape.num_seqs,
         blocks_per_seq(shape) * shape.block_size,
         shape.num_kv_heads,
         shape.head_dim});
    const mx::array tokens = mx::slice(
        blocks,
        {0, 0, 0, 0},
        {shape.num_seqs, shape.context, shape.num_kv_heads, shape.head_dim});
    mx::array dense = mx::contiguous(
        mx::astype(mx::transpose(tokens, {0, 2, 1, 3}), mlx_dtype(dtype)));
    mx::eval(dense);
    return dense;
  };
  const std::int64_t set_bytes = kv_bytes(shape, dtype);
  const int num_sets = static_cast<int>(
      std::clamp<std::int64_t>(max_bytes / set_bytes, 1, data.num_sets()));
  DenseSets sets{.dtype = dtype, .k = {}, .v = {}};
  for (int set = 0; set < num_sets; ++set) {
    poll();
    sets.k.push_back(copy(data.k_cache(), set));
    sets.v.push_back(copy(data.v_cache(), set));
  }
  return sets;
}

}  // namespace quire::bench
