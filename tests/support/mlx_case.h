// A PagedCase as MLX arrays, and MLX arrays as host values.
#pragma once

#include <mlx/mlx.h>

#include "quire/ops.h"
#include "support/paged_case.h"

namespace quire::test {

namespace mx = mlx::core;

mx::Dtype mlx_dtype(DType dtype);

/** Copies `elements` of `dtype` into an array. */
mx::array to_array(
    const std::vector<std::byte>& elements,
    const mx::Shape& shape,
    DType dtype);

mx::array int32_array(
    const std::vector<std::int32_t>& values,
    const mx::Shape& shape);

/** Evaluates `a` and returns its values; f32, f16 or bf16 of any layout. */
std::vector<float> host_values(const mx::array& a);

/** The arguments of paged_attention for a case. */
struct MlxCase {
  explicit MlxCase(const PagedCase& c);

  mx::array q;
  mx::array k_cache;
  mx::array v_cache;
  mx::array block_table;
  mx::array seq_lens;
  float scale;

  mx::array attention(const PagedAttentionOptions& options = {}) const;
};

inline constexpr PagedAttentionOptions kFused{
    .use_native_paged_kernel = NativeKernel::On};
inline constexpr PagedAttentionOptions kGather{
    .use_native_paged_kernel = NativeKernel::Off};

}  // namespace quire::test
