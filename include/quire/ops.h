#pragma once
// (draft: owned by the MLX layer)
#include <utility>

#include <mlx/mlx.h>

#include "quire/types.h"

namespace quire {

enum class NativeKernel { Auto, On, Off };

struct PagedAttentionOptions {
  NativeKernel use_native_paged_kernel = NativeKernel::Auto;
  int max_seq_len = 0;
  int num_splits = 0;
};

mlx::core::array paged_attention(
    const mlx::core::array& q,
    const mlx::core::array& k_cache,
    const mlx::core::array& v_cache,
    const mlx::core::array& block_table,
    const mlx::core::array& seq_lens,
    float scale,
    const PagedAttentionOptions& options = {},
    mlx::core::StreamOrDevice s = {});

std::pair<mlx::core::array, mlx::core::array> kv_append(
    const mlx::core::array& k_cache,
    const mlx::core::array& v_cache,
    const mlx::core::array& k,
    const mlx::core::array& v,
    const mlx::core::array& slot_mapping,
    mlx::core::StreamOrDevice s = {});

std::pair<mlx::core::array, mlx::core::array> copy_blocks(
    const mlx::core::array& k_cache,
    const mlx::core::array& v_cache,
    const mlx::core::array& block_copies,
    mlx::core::StreamOrDevice s = {});

}  // namespace quire
