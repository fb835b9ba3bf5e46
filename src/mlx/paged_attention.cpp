#include "mlx/paged_attention.h"

#include <cmath>
#include <memory>

#include "common/env.h"
#include "common/error.h"
#include "mlx/checks.h"

namespace quire {
namespace {

constexpr const char* kOp = "paged_attention";

void validate(
    const mx::array& q,
    const mx::array& k_cache,
    const mx::array& v_cache,
    const mx::array& block_table,
    const mx::array& seq_lens,
    float scale,
    const PagedAttentionOptions& options) {
  require_float(kOp, "q", q);
  require_ndim(kOp, "q", q, 3, "[num_seqs, num_q_heads, head_dim]");
  require_caches(kOp, k_cache, v_cache);
  require_dtype(kOp, "block_table", block_table, mx::int32);
  require_ndim(
      kOp, "block_table", block_table, 2, "[num_seqs, max_blocks_per_seq]");
  require_dtype(kOp, "seq_lens", seq_lens, mx::int32);
  require_ndim(kOp, "seq_lens", seq_lens, 1, "[num_seqs]");

  require(
      block_table.shape(0) == q.shape(0) && seq_lens.shape(0) == q.shape(0),
      kOp,
      "q, block_table and seq_lens must have one num_seqs; got ",
      q.shape(0),
      ", ",
      block_table.shape(0),
      " and ",
      seq_lens.shape(0),
      ".");
  require(
      q.shape(2) == k_cache.shape(3),
      kOp,
      "q and the caches must have one head_dim; got ",
      q.shape(2),
      " and ",
      k_cache.shape(3),
      ".");
  require(
      q.shape(1) >= 1 && q.shape(1) % k_cache.shape(2) == 0,
      kOp,
      "num_q_heads must be a multiple of num_kv_heads; got ",
      q.shape(1),
      " and ",
      k_cache.shape(2),
      ".");
  require(std::isfinite(scale), kOp, "scale must be finite; got ", scale, ".");
  require(
      options.max_seq_len >= 0,
      kOp,
      "max_seq_len must not be negative; got ",
      options.max_seq_len,
      ".");
  require(
      options.num_splits >= 0,
      kOp,
      "num_splits must not be negative; got ",
      options.num_splits,
      ".");
}

}  // namespace

DecodeSignature decode_signature(
    const mx::array& q,
    const mx::array& k_cache,
    const mx::array& block_table,
    float scale,
    int num_splits) {
  return {
      .params =
          {
              .num_seqs = q.shape(0),
              .num_q_heads = q.shape(1),
              .num_kv_heads = k_cache.shape(2),
              .head_dim = q.shape(2),
              .num_blocks = k_cache.shape(0),
              .block_size = k_cache.shape(1),
              .max_blocks_per_seq = block_table.shape(1),
              .num_splits = num_splits,
              .scale = scale,
          },
      .q_dtype = require_float(kOp, "q", q),
      .kv_dtype = require_float(kOp, "k_cache", k_cache),
  };
}

bool PagedAttention::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const PagedAttention&>(other);
  return scale_ == o.scale_ && num_splits_ == o.num_splits_ &&
         max_seq_len_ == o.max_seq_len_;
}

mx::array paged_attention(
    const mx::array& q,
    const mx::array& k_cache,
    const mx::array& v_cache,
    const mx::array& block_table,
    const mx::array& seq_lens,
    float scale,
    const PagedAttentionOptions& options,
    mx::StreamOrDevice s) {
  validate(q, k_cache, v_cache, block_table, seq_lens, scale, options);
  const mx::Stream stream = mx::to_stream(s);
  const int num_splits =
      options.num_splits > 0 ? options.num_splits : env().num_splits;

  const DecodeSignature c =
      decode_signature(q, k_cache, block_table, scale, num_splits);
  const PathChoice choice = choose_path(
      options.use_native_paged_kernel,
      env().native_paged_kernel,
      stream.device == mx::Device::cpu ? cpu_supports_paged_attention(c)
                                       : gpu_supports_paged_attention(c));
  if (q.shape(0) == 0) {
    return mx::zeros(q.shape(), q.dtype(), stream);
  }
  if (!choice.fused) {
    return gather_attention(
        q,
        k_cache,
        v_cache,
        block_table,
        seq_lens,
        scale,
        options.max_seq_len,
        choice.fallback_reason,
        stream);
  }
  return mx::array(
      q.shape(),
      q.dtype(),
      std::make_shared<PagedAttention>(
          stream, scale, num_splits, options.max_seq_len),
      {row_contiguous(q, stream),
       k_cache,
       v_cache,
       row_contiguous(block_table, stream),
       row_contiguous(seq_lens, stream)});
}

}  // namespace quire
