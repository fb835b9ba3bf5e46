#include "mlx/cache_write.h"

#include <memory>
#include <stdexcept>

#include "common/error.h"
#include "mlx/checks.h"
#include "quire/ops.h"

namespace quire {
namespace {

void require_backend(const char* op, mx::Stream stream) {
  if (stream.device == mx::Device::cpu) {
    return;
  }
  if (const KernelSupport support = gpu_supports_cache_write(); !support.ok) {
    throw std::runtime_error(
        std::string("[") + op +
        "] Needs a backend for the stream's device; got a GPU stream, and " +
        support.reason + ".");
  }
}

std::pair<mx::array, mx::array> make_pair(
    const mx::array& k_cache,
    const mx::array& v_cache,
    const std::shared_ptr<mx::Primitive>& primitive,
    const std::vector<mx::array>& inputs) {
  std::vector<mx::array> out = mx::array::make_arrays(
      {k_cache.shape(), v_cache.shape()},
      {k_cache.dtype(), v_cache.dtype()},
      primitive,
      inputs);
  return {std::move(out[0]), std::move(out[1])};
}

}  // namespace

std::pair<mx::array, mx::array> kv_append(
    const mx::array& k_cache,
    const mx::array& v_cache,
    const mx::array& k,
    const mx::array& v,
    const mx::array& slot_mapping,
    mx::StreamOrDevice s) {
  constexpr const char* kOp = "kv_append";
  constexpr const char* kDims = "[num_tokens, num_kv_heads, head_dim]";
  require_caches(kOp, k_cache, v_cache);
  require_float(kOp, "k", k);
  require_ndim(kOp, "k", k, 3, kDims);
  require_dtype(kOp, "v", v, k.dtype());
  require_ndim(kOp, "v", v, 3, kDims);
  require_dtype(kOp, "slot_mapping", slot_mapping, mx::int64);
  require_ndim(kOp, "slot_mapping", slot_mapping, 1, "[num_tokens]");
  require(
      v.shape() == k.shape() && slot_mapping.shape(0) == k.shape(0),
      kOp,
      "k, v and slot_mapping must have one num_tokens and k and v one shape; "
      "got ",
      shape_text(k),
      ", ",
      shape_text(v),
      " and ",
      shape_text(slot_mapping),
      ".");
  require(
      k.shape(1) == k_cache.shape(2) && k.shape(2) == k_cache.shape(3),
      kOp,
      "k and the caches must have the same num_kv_heads and head_dim; got ",
      shape_text(k),
      " and ",
      shape_text(k_cache),
      ".");

  const mx::Stream stream = mx::to_stream(s);
  require_backend(kOp, stream);
  if (k.shape(0) == 0) {
    return {k_cache, v_cache};
  }
  return make_pair(
      k_cache,
      v_cache,
      std::make_shared<KvAppend>(stream),
      {k_cache,
       v_cache,
       row_contiguous(k, stream),
       row_contiguous(v, stream),
       row_contiguous(slot_mapping, stream)});
}

std::pair<mx::array, mx::array> copy_blocks(
    const mx::array& k_cache,
    const mx::array& v_cache,
    const mx::array& block_copies,
    mx::StreamOrDevice s) {
  constexpr const char* kOp = "copy_blocks";
  constexpr const char* kDims = "[num_copies, 2]";
  require_caches(kOp, k_cache, v_cache);
  require_dtype(kOp, "block_copies", block_copies, mx::int32);
  require_ndim(kOp, "block_copies", block_copies, 2, kDims);
  require(
      block_copies.shape(1) == 2,
      kOp,
      "block_copies must have the shape ",
      kDims,
      "; got ",
      shape_text(block_copies),
      ".");

  const mx::Stream stream = mx::to_stream(s);
  require_backend(kOp, stream);
  if (block_copies.shape(0) == 0) {
    return {k_cache, v_cache};
  }
  return make_pair(
      k_cache,
      v_cache,
      std::make_shared<CopyBlocks>(stream),
      {k_cache, v_cache, row_contiguous(block_copies, stream)});
}

}  // namespace quire
