// Checks that the ops share.
#pragma once

#include <string>
#include <string_view>

#include <mlx/mlx.h>

#include "quire/types.h"

namespace quire {

namespace mx = mlx::core;

/** Requires float32, float16 or bfloat16 and returns it as ours. */
DType require_float_dtype(
    std::string_view op,
    std::string_view name,
    mx::Dtype dtype);
DType require_float(
    std::string_view op,
    std::string_view name,
    const mx::array& a);

void require_dtype(
    std::string_view op,
    std::string_view name,
    const mx::array& a,
    mx::Dtype dtype);

/** `dims` is the shape in the glossary's words, printed with the error. */
void require_ndim(
    std::string_view op,
    std::string_view name,
    const mx::array& a,
    int ndim,
    std::string_view dims);

void require_block_size(std::string_view op, int block_size);

/** Requires caches that are a pair: one shape, one dtype, a legal block. */
void require_caches(
    std::string_view op,
    const mx::array& k_cache,
    const mx::array& v_cache);

/**
 * For eval: throws std::runtime_error unless a cache is one dense buffer. A
 * cache is never copied to make it so.
 */
void require_row_contiguous(
    std::string_view op,
    std::string_view name,
    const mx::array& cache);

/** The shape as users write it: (1, 2, 3). */
std::string shape_text(const mx::array& a);

/** `a` itself where it is known to be row contiguous, else contiguous(a). */
mx::array row_contiguous(const mx::array& a, mx::Stream s);

}  // namespace quire
