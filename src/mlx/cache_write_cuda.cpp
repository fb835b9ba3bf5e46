// kv_append and copy_blocks on CUDA: bind arrays, enqueue the launches.
#include <mlx/backend/cuda/device.h>
#include <mlx/backend/cuda/utils.h>

#include "common/env.h"
#include "kernels/cuda/launch.h"
#include "mlx/cache_write.h"
#include "mlx/checks.h"
#include "mlx/gpu_checks.h"

namespace quire {
namespace {

// Makes the outputs the caches' own buffers and names them as written.
void take_over_caches(
    const char* op,
    const std::vector<mx::array>& inputs,
    std::vector<mx::array>& outputs,
    mx::cu::CommandEncoder& encoder) {
  require_row_contiguous(op, "k_cache", inputs[0]);
  require_row_contiguous(op, "v_cache", inputs[1]);
  for (std::size_t i = 0; i < 2; ++i) {
    outputs[i].copy_shared_buffer(inputs[i]);
    encoder.set_output_array(outputs[i]);
  }
}

}  // namespace

KernelSupport gpu_supports_cache_write() {
  try {
    cuda::device_limits(0, false);
  } catch (const std::runtime_error& e) {
    return {false, e.what()};
  }
  return {true, ""};
}

void KvAppend::eval_gpu(
    const std::vector<mx::array>& inputs,
    std::vector<mx::array>& outputs) {
  const mx::array& k_cache = inputs[0];
  const mx::array& k = inputs[2];
  const mx::array& v = inputs[3];
  const mx::array& slots = inputs[4];
  auto& encoder = mx::cu::get_command_encoder(stream());
  cuda::KvAppendArgs args;
  args.num_slots =
      static_cast<std::int64_t>(k_cache.shape(0)) * k_cache.shape(1);
  if (env().checks) {
    check_slots(slots, args.num_slots, stream());
  }
  take_over_caches("kv_append", inputs, outputs, encoder);
  args.num_tokens = k.shape(0);
  args.token_elems = k.shape(1) * k.shape(2);
  args.k_stride = args.v_stride = args.token_elems;
  args.k = mx::gpu_ptr<void>(k);
  args.v = mx::gpu_ptr<void>(v);
  args.slots = mx::gpu_ptr<std::int64_t>(slots);
  args.k_cache = mx::gpu_ptr<void>(outputs[0]);
  args.v_cache = mx::gpu_ptr<void>(outputs[1]);
  cuda::KvAppendLaunch launch = cuda::make_kv_append_launch(
      args,
      require_float("kv_append", "k", k),
      require_float("kv_append", "k_cache", k_cache));
  for (const mx::array* input : {&k, &v, &slots}) {
    encoder.set_input_array(*input);
  }
  encoder.add_kernel_node_ex(
      cuda::kv_append_function(launch),
      dim3(static_cast<unsigned>(launch.grid)),
      dim3(cuda::kWriteThreads),
      {},
      0,
      launch.args);
}

void CopyBlocks::eval_gpu(
    const std::vector<mx::array>& inputs,
    std::vector<mx::array>& outputs) {
  const mx::array& k_cache = inputs[0];
  const mx::array& copies = inputs[2];
  auto& encoder = mx::cu::get_command_encoder(stream());
  if (env().checks) {
    check_block_copies(copies, k_cache.shape(0), stream());
  }
  take_over_caches("copy_blocks", inputs, outputs, encoder);
  cuda::CopyBlocksArgs args;
  args.num_copies = copies.shape(0);
  args.num_blocks = k_cache.shape(0);
  args.block_bytes = static_cast<std::int64_t>(
      k_cache.nbytes() / static_cast<std::size_t>(k_cache.shape(0)));
  args.copies = mx::gpu_ptr<std::int32_t>(copies);
  args.k_cache = mx::gpu_ptr<void>(outputs[0]);
  args.v_cache = mx::gpu_ptr<void>(outputs[1]);
  cuda::CopyBlocksLaunch launch = cuda::make_copy_blocks_launch(args);
  encoder.set_input_array(copies);
  encoder.add_kernel_node_ex(
      cuda::copy_blocks_function(),
      dim3(
          static_cast<unsigned>(launch.grid_x),
          static_cast<unsigned>(launch.grid_y)),
      dim3(cuda::kWriteThreads),
      {},
      0,
      launch.args);
}

}  // namespace quire
