// Gather-then-SDPA: the reference for every case that the op accepts, and the
// path where no fused kernel exists.
#include <memory>

#include <mlx/backend/cpu/encoder.h>

#include "mlx/decode_checks.h"
#include "mlx/paged_attention.h"
#include "mlx/path_counts.h"

namespace quire {
namespace {

/**
 * Passes block_table and seq_lens through, counts the path and, on the CPU,
 * checks the values. Ops behind a failed check still run before the error
 * reaches the caller, so the graph below stays in bounds for any values.
 */
class CheckedTable : public mx::Primitive {
 public:
  CheckedTable(
      mx::Stream stream,
      int num_blocks,
      int block_size,
      int max_seq_len,
      std::string fallback_reason)
      : mx::Primitive(stream),
        num_blocks_(num_blocks),
        block_size_(block_size),
        max_seq_len_(max_seq_len),
        fallback_reason_(std::move(fallback_reason)) {}

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override {
    pass_through(inputs, outputs);
    const TableShape shape{
        .num_seqs = inputs[0].shape(0),
        .max_blocks_per_seq = inputs[0].shape(1),
        .num_blocks = num_blocks_,
        .block_size = block_size_,
    };
    auto& encoder = mx::cpu::get_command_encoder(stream());
    encoder.set_input_array(inputs[0]);
    encoder.set_input_array(inputs[1]);
    encoder.dispatch([shape,
                      block_table = inputs[0].data<std::int32_t>(),
                      seq_lens = inputs[1].data<std::int32_t>(),
                      max_seq_len = max_seq_len_,
                      reason = fallback_reason_] {
      check_max_seq_len(seq_lens, shape.num_seqs, max_seq_len);
      check_block_table(block_table, seq_lens, shape);
      count_path(Path::Gather, reason);
    });
  }

  void eval_gpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override {
    pass_through(inputs, outputs);
    count_path(Path::Gather, fallback_reason_);
  }

  const char* name() const override {
    return "CheckedTable";
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const CheckedTable&>(other);
    return num_blocks_ == o.num_blocks_ && block_size_ == o.block_size_ &&
           max_seq_len_ == o.max_seq_len_ &&
           fallback_reason_ == o.fallback_reason_;
  }

  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape(), inputs[1].shape()};
  }

 private:
  static void pass_through(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) {
    outputs[0].copy_shared_buffer(inputs[0]);
    outputs[1].copy_shared_buffer(inputs[1]);
  }

  int num_blocks_;
  int block_size_;
  int max_seq_len_;
  std::string fallback_reason_;
};

// One cache's tokens in sequence order, [num_seqs, num_kv_heads, width, dim],
// zero where `valid` is false: 0 * NaN is NaN, so a mask on the logits alone
// would let stale memory through.
mx::array gather_tokens(
    const mx::array& cache,
    const mx::array& block_table,  // [num_seqs, num_blocks], all in the pool
    const mx::array& valid,        // [num_seqs, 1, width, 1] bool
    mx::Dtype dtype,
    mx::Stream s) {
  const int num_seqs = block_table.shape(0);
  const int width = block_table.shape(1) * cache.shape(1);
  const mx::array blocks = mx::take(cache, mx::flatten(block_table, s), 0, s);
  const mx::array tokens = mx::transpose(
      mx::reshape(blocks, {num_seqs, width, cache.shape(2), cache.shape(3)}, s),
      {0, 2, 1, 3},
      s);
  // SDPA over the transposed view would be several times slower.
  const mx::array dense =
      mx::astype(mx::contiguous(tokens, false, s), dtype, s);
  return mx::where(valid, dense, mx::array(0.0f, dtype), s);
}

}  // namespace

mx::array gather_attention(
    const mx::array& q,
    const mx::array& k_cache,
    const mx::array& v_cache,
    const mx::array& block_table,
    const mx::array& seq_lens,
    float scale,
    int max_seq_len,
    const std::string& fallback_reason,
    mx::Stream s) {
  const int num_seqs = q.shape(0);
  const int num_blocks = k_cache.shape(0);
  const int block_size = k_cache.shape(1);

  const std::vector<mx::array> checked = mx::array::make_arrays(
      {block_table.shape(), seq_lens.shape()},
      {mx::int32, mx::int32},
      std::make_shared<CheckedTable>(
          s, num_blocks, block_size, max_seq_len, fallback_reason),
      {mx::contiguous(block_table, false, s),
       mx::contiguous(seq_lens, false, s)});
  mx::array table = checked[0];
  const mx::array& lens = checked[1];

  if (table.shape(1) == 0) {
    table = mx::zeros({num_seqs, 1}, mx::int32, s);
  }
  table = mx::clip(
      table, mx::array(0, mx::int32), mx::array(num_blocks - 1, mx::int32), s);

  const int width = table.shape(1) * block_size;
  const mx::array positions = mx::arange(0, width, mx::int32, s);
  const mx::array valid = mx::less(
      mx::reshape(positions, {1, 1, width, 1}, s),
      mx::reshape(lens, {num_seqs, 1, 1, 1}, s),
      s);

  const mx::Dtype dtype = s.device == mx::Device::cpu
                              ? mx::float32
                              : mx::promote_types(q.dtype(), k_cache.dtype());
  const mx::array out = mx::fast::scaled_dot_product_attention(
      mx::astype(mx::expand_dims(q, 2, s), dtype, s),
      gather_tokens(k_cache, table, valid, dtype, s),
      gather_tokens(v_cache, table, valid, dtype, s),
      scale,
      "array",
      mx::swapaxes(valid, 2, 3, s),
      std::nullopt,
      false,
      s);
  // A row without keys is zero by definition, not the mean of what SDPA saw.
  return mx::where(
      mx::greater(mx::reshape(lens, {num_seqs, 1, 1}, s), mx::array(0), s),
      mx::astype(mx::squeeze(out, 2, s), q.dtype(), s),
      mx::array(0.0f, q.dtype()),
      s);
}

}  // namespace quire
