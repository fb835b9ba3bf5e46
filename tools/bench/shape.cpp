#include "tools/bench/shape.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/env.h"

namespace quire::bench {
namespace {

std::int64_t num_tokens(const Shape& shape) {
  const std::vector<int> lens = seq_lens(shape);
  return std::accumulate(lens.begin(), lens.end(), std::int64_t{0});
}

}  // namespace

std::string describe(const Shape& shape) {
  return std::to_string(shape.num_seqs) + "x" + std::to_string(shape.context) +
         (shape.ragged ? " ragged" : "");
}

std::vector<int> seq_lens(const Shape& shape) {
  std::vector<int> lens(
      static_cast<std::size_t>(shape.num_seqs), shape.context);
  if (shape.ragged) {
    for (int seq = 0; seq + 1 < shape.num_seqs; ++seq) {
      const std::int64_t share =
          std::int64_t{shape.context} * (seq + 1) / shape.num_seqs;
      lens[static_cast<std::size_t>(seq)] =
          static_cast<int>(std::max<std::int64_t>(share - 1, 1));
    }
  }
  return lens;
}

int blocks_per_seq(const Shape& shape) {
  return (shape.context + shape.block_size - 1) / shape.block_size;
}

DecodeParams decode_params(const Shape& shape, int num_blocks) {
  return {
      .num_seqs = shape.num_seqs,
      .num_q_heads = shape.num_q_heads,
      .num_kv_heads = shape.num_kv_heads,
      .head_dim = shape.head_dim,
      .num_blocks = num_blocks,
      .block_size = shape.block_size,
      .max_blocks_per_seq = blocks_per_seq(shape),
      .num_splits = env().num_splits,
      .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
  };
}

double kv_elements(const Shape& shape) {
  return 2.0 * static_cast<double>(num_tokens(shape)) * shape.num_kv_heads *
         shape.head_dim;
}

std::int64_t kv_bytes(const Shape& shape, DType kv_dtype) {
  return 2 * num_tokens(shape) * shape.num_kv_heads * shape.head_dim *
         static_cast<std::int64_t>(dtype_bytes(kv_dtype));
}

double multiply_adds(const Shape& shape) {
  return 2.0 * static_cast<double>(num_tokens(shape)) * shape.num_q_heads *
         shape.head_dim;
}

}  // namespace quire::bench
