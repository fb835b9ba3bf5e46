#include "mlx/checks.h"

#include <bit>
#include <sstream>

#include "common/error.h"

namespace quire {
namespace {

std::string to_string(mx::Dtype dtype) {
  std::ostringstream text;
  text << dtype;
  return text.str();
}

template <typename Values>
std::string to_tuple(const Values& values) {
  std::ostringstream text;
  text << '(';
  for (std::size_t i = 0; i < values.size(); ++i) {
    text << (i ? ", " : "") << values[i];
  }
  text << ')';
  return text.str();
}

}  // namespace

std::string shape_text(const mx::array& a) {
  return to_tuple(a.shape());
}

DType require_float_dtype(
    std::string_view op,
    std::string_view name,
    mx::Dtype dtype) {
  if (dtype == mx::float32) {
    return DType::Float32;
  }
  if (dtype == mx::float16) {
    return DType::Float16;
  }
  require(
      dtype == mx::bfloat16,
      op,
      name,
      " must be float32, float16 or bfloat16; got ",
      to_string(dtype),
      ".");
  return DType::BFloat16;
}

DType require_float(
    std::string_view op,
    std::string_view name,
    const mx::array& a) {
  return require_float_dtype(op, name, a.dtype());
}

void require_dtype(
    std::string_view op,
    std::string_view name,
    const mx::array& a,
    mx::Dtype dtype) {
  require(
      a.dtype() == dtype,
      op,
      name,
      " must be ",
      to_string(dtype),
      "; got ",
      to_string(a.dtype()),
      ".");
}

void require_ndim(
    std::string_view op,
    std::string_view name,
    const mx::array& a,
    int ndim,
    std::string_view dims) {
  require(
      static_cast<int>(a.ndim()) == ndim,
      op,
      name,
      " must have the shape ",
      dims,
      "; got ",
      shape_text(a),
      ".");
}

void require_block_size(std::string_view op, int block_size) {
  require(
      block_size >= kMinBlockSize && block_size <= kMaxBlockSize &&
          std::has_single_bit(static_cast<unsigned>(block_size)),
      op,
      "block_size must be a power of two from ",
      kMinBlockSize,
      " to ",
      kMaxBlockSize,
      "; got ",
      block_size,
      ".");
}

void require_caches(
    std::string_view op,
    const mx::array& k_cache,
    const mx::array& v_cache) {
  require_float(op, "k_cache", k_cache);
  require_ndim(
      op,
      "k_cache",
      k_cache,
      4,
      "[num_blocks, block_size, num_kv_heads, head_dim]");
  require_dtype(op, "v_cache", v_cache, k_cache.dtype());
  require(
      v_cache.shape() == k_cache.shape(),
      op,
      "k_cache and v_cache must have one shape; got ",
      shape_text(k_cache),
      " and ",
      shape_text(v_cache),
      ".");
  require_block_size(op, k_cache.shape(1));
  require(
      k_cache.size() > 0,
      op,
      "num_blocks, num_kv_heads and head_dim must be at least 1; got a "
      "k_cache of shape ",
      shape_text(k_cache),
      ".");
}

void require_row_contiguous(
    std::string_view op,
    std::string_view name,
    const mx::array& cache) {
  if (cache.flags().row_contiguous) {
    return;
  }
  std::ostringstream message;
  message << '[' << op << "] " << name
          << " must be row contiguous (it is never copied); got the shape "
          << shape_text(cache) << " with strides " << to_tuple(cache.strides())
          << '.';
  throw std::runtime_error(message.str());
}

mx::array row_contiguous(const mx::array& a, mx::Stream s) {
  // Flags of an array that was not scheduled yet are not known.
  const bool known = a.status() != mx::array::Status::unscheduled &&
                     !a.is_tracer() && a.flags().row_contiguous;
  return known ? a : mx::contiguous(a, false, s);
}

}  // namespace quire
