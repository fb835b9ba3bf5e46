// The fused path on CUDA: binds arrays, enqueues the launch that
// choose_decode_launch makes.
#include <mlx/backend/cuda/device.h>
#include <mlx/backend/cuda/utils.h>

#include "common/env.h"
#include "kernels/cuda/launch.h"
#include "mlx/checks.h"
#include "mlx/cuda_buffers.h"
#include "mlx/gpu_checks.h"
#include "mlx/paged_attention.h"
#include "mlx/path_counts.h"

namespace quire {
namespace {

// No clusters: MLX updates its graphs from one another by their shape alone,
// and a kernel node updated across cluster shapes goes wrong silently.
constexpr bool kClusters = false;

}  // namespace

const char* gpu_kernel_name() {
  return "cuda";
}

KernelSupport gpu_supports_paged_attention(const DecodeSignature& c) {
  try {
    const cuda::DecodeChoice choice = cuda::choose_decode_launch(
        c.params, c.q_dtype, c.kv_dtype, cuda::device_limits(0, kClusters));
    return {static_cast<bool>(choice), choice.reason};
  } catch (const std::runtime_error& e) {
    return {false, e.what()};
  }
}

void PagedAttention::eval_gpu(
    const std::vector<mx::array>& inputs,
    std::vector<mx::array>& outputs) {
  const mx::array& q = inputs[0];
  const mx::array& k_cache = inputs[1];
  const mx::array& v_cache = inputs[2];
  const mx::array& block_table = inputs[3];
  const mx::array& seq_lens = inputs[4];
  mx::array& out = outputs[0];
  require_row_contiguous("paged_attention", "k_cache", k_cache);
  require_row_contiguous("paged_attention", "v_cache", v_cache);

  auto& encoder = mx::cu::get_command_encoder(stream());
  const DecodeSignature c =
      decode_signature(q, k_cache, block_table, scale_, num_splits_);
  const cuda::DecodeChoice choice = cuda::choose_decode_launch(
      c.params,
      c.q_dtype,
      c.kv_dtype,
      cuda::device_limits(encoder.device().cuda_device(), kClusters),
      {.max_seq_len = max_seq_len_});
  if (!choice) {
    throw std::runtime_error(
        std::string("[paged_attention] ") + choice.reason + ".");
  }
  if (env().checks) {
    check_decode_step(c.params, max_seq_len_, block_table, seq_lens, stream());
  }

  allocate_on_device(out, encoder);
  cuda::DecodeLaunch launch = choice.launch;
  launch.args.q = mx::gpu_ptr<void>(q);
  launch.args.k_cache = mx::gpu_ptr<void>(k_cache);
  launch.args.v_cache = mx::gpu_ptr<void>(v_cache);
  launch.args.block_table = mx::gpu_ptr<std::int32_t>(block_table);
  launch.args.seq_lens = mx::gpu_ptr<std::int32_t>(seq_lens);
  launch.args.out = mx::gpu_ptr<void>(out);
  for (const void* p :
       {launch.args.q, launch.args.k_cache, launch.args.v_cache}) {
    if (reinterpret_cast<std::uintptr_t>(p) % 16 != 0) {
      throw std::runtime_error(
          "[paged_attention] q and the caches must start at a multiple of 16 "
          "bytes on CUDA; got a view with another offset.");
    }
  }
  if (launch.workspace_bytes > 0) {
    const mx::array& workspace =
        stream_workspace(stream(), encoder, launch.workspace_bytes);
    launch.args.mail = const_cast<float*>(mx::gpu_ptr<float>(workspace));
    encoder.set_output_array(workspace);
  }
  encoder.set_input_array(q);
  encoder.set_input_array(block_table);
  encoder.set_input_array(seq_lens);
  // The caches are named as outputs. A graph has edges to a buffer's last
  // writer only: as the last one, this reader is waited for by the next append.
  // And inputs count towards the bytes after which MLX ends a graph, which a
  // cache would exceed with every layer.
  encoder.set_output_array(k_cache);
  encoder.set_output_array(v_cache);
  encoder.set_output_array(out);
  encoder.add_kernel_node_ex(
      cuda::decode_function(launch),
      dim3(static_cast<unsigned>(launch.grid)),
      dim3(static_cast<unsigned>(launch.cta_threads)),
      {},
      static_cast<std::uint32_t>(launch.smem_bytes),
      launch.args);
  count_path(Path::FusedCuda);
}

}  // namespace quire
