// kv_append and copy_blocks on the CPU: bind arrays, enqueue quire::cpu.
#include <mlx/backend/cpu/encoder.h>

#include "kernels/cpu/cache_write.h"
#include "mlx/cache_write.h"
#include "mlx/checks.h"

namespace quire {
namespace {

// Makes the outputs the caches' own buffers. The tasks hold raw pointers: MLX
// keeps the buffers of a node's inputs until the node's tasks have run.
void take_over_caches(
    const char* op,
    const std::vector<mx::array>& inputs,
    std::vector<mx::array>& outputs) {
  require_row_contiguous(op, "k_cache", inputs[0]);
  require_row_contiguous(op, "v_cache", inputs[1]);
  outputs[0].copy_shared_buffer(inputs[0]);
  outputs[1].copy_shared_buffer(inputs[1]);
}

mx::cpu::CommandEncoder& encoder_for(
    mx::Stream stream,
    const std::vector<mx::array>& inputs,
    std::vector<mx::array>& outputs) {
  auto& encoder = mx::cpu::get_command_encoder(stream);
  for (const mx::array& input : inputs) {
    encoder.set_input_array(input);
  }
  for (mx::array& output : outputs) {
    encoder.set_output_array(output);
  }
  return encoder;
}

}  // namespace

void KvAppend::eval_cpu(
    const std::vector<mx::array>& inputs,
    std::vector<mx::array>& outputs) {
  take_over_caches("kv_append", inputs, outputs);
  const mx::array& k_cache = inputs[0];
  const mx::array& k = inputs[2];
  const cpu::KvAppendArgs args{
      .num_tokens = k.shape(0),
      .num_slots =
          static_cast<std::int64_t>(k_cache.shape(0)) * k_cache.shape(1),
      .token_elems = static_cast<std::int64_t>(k.shape(1)) * k.shape(2),
      .dtype = require_float("kv_append", "k", k),
      .kv_dtype = require_float("kv_append", "k_cache", k_cache),
      .k = k.data<void>(),
      .v = inputs[3].data<void>(),
      .slots = inputs[4].data<std::int64_t>(),
      .k_cache = outputs[0].data<void>(),
      .v_cache = outputs[1].data<void>(),
  };
  encoder_for(stream(), inputs, outputs).dispatch([args] {
    cpu::kv_append(args);
  });
}

void CopyBlocks::eval_cpu(
    const std::vector<mx::array>& inputs,
    std::vector<mx::array>& outputs) {
  take_over_caches("copy_blocks", inputs, outputs);
  const mx::array& k_cache = inputs[0];
  const cpu::CopyBlocksArgs args{
      .num_copies = inputs[2].shape(0),
      .num_blocks = k_cache.shape(0),
      .block_bytes = static_cast<std::int64_t>(
          k_cache.nbytes() / static_cast<std::size_t>(k_cache.shape(0))),
      .copies = inputs[2].data<std::int32_t>(),
      .k_cache = outputs[0].data<void>(),
      .v_cache = outputs[1].data<void>(),
  };
  encoder_for(stream(), inputs, outputs).dispatch([args] {
    cpu::copy_blocks(args);
  });
}

}  // namespace quire
