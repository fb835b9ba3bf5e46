#include "support/mlx_case.h"

#include <cstring>

namespace quire::test {
namespace {

mx::array copied(const void* data, const mx::Shape& shape, mx::Dtype dtype) {
  std::size_t size = mx::size_of(dtype);
  for (const int dim : shape) {
    size *= static_cast<std::size_t>(dim);
  }
  mx::allocator::Data buffer = mx::allocator::malloc(size);
  if (size > 0) {
    std::memcpy(buffer.buffer().raw_ptr(), data, size);
  }
  return mx::array(std::move(buffer), shape, dtype);
}

}  // namespace

mx::Dtype mlx_dtype(DType dtype) {
  switch (dtype) {
    case DType::Float32:
      return mx::float32;
    case DType::Float16:
      return mx::float16;
    case DType::BFloat16:
      break;
  }
  return mx::bfloat16;
}

mx::array to_array(
    const std::vector<std::byte>& elements,
    const mx::Shape& shape,
    DType dtype) {
  return copied(elements.data(), shape, mlx_dtype(dtype));
}

mx::array int32_array(
    const std::vector<std::int32_t>& values,
    const mx::Shape& shape) {
  return copied(values.data(), shape, mx::int32);
}

std::vector<float> host_values(const mx::array& a) {
  mx::array dense = mx::contiguous(mx::astype(a, mx::float32));
  mx::eval(dense);
  const float* data = dense.data<float>();
  return std::vector<float>(data, data + dense.size());
}

MlxCase::MlxCase(const PagedCase& c)
    : q(to_array(
          c.q,
          {c.params.num_seqs, c.params.num_q_heads, c.params.head_dim},
          c.q_dtype)),
      k_cache(to_array(
          c.k_cache,
          {c.params.num_blocks,
           c.params.block_size,
           c.params.num_kv_heads,
           c.params.head_dim},
          c.kv_dtype)),
      v_cache(to_array(c.v_cache, k_cache.shape(), c.kv_dtype)),
      block_table(int32_array(
          c.block_table,
          {c.params.num_seqs, c.params.max_blocks_per_seq})),
      seq_lens(int32_array(c.seq_lens, {c.params.num_seqs})),
      scale(c.params.scale) {}

mx::array MlxCase::attention(const PagedAttentionOptions& options) const {
  return paged_attention(
      q, k_cache, v_cache, block_table, seq_lens, scale, options);
}

}  // namespace quire::test
