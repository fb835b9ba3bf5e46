// The fused path on the CPU: binds arrays, enqueues quire::cpu::paged_decode.
#include <mlx/allocator.h>
#include <mlx/backend/cpu/encoder.h>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/paged_decode.h"
#include "kernels/cpu/thread_pool.h"
#include "mlx/checks.h"
#include "mlx/decode_checks.h"
#include "mlx/paged_attention.h"
#include "mlx/path_counts.h"

namespace quire {

CpuKernelInfo cpu_kernel_info() {
  return {
      std::string(cpu::isa_name(cpu::selected_isa())),
      cpu::default_num_threads()};
}

KernelSupport cpu_supports_paged_attention(const DecodeSignature& c) {
  cpu::selected_isa();  // throws now for a QUIRE_CPU_ISA that cannot be had
  const cpu::Support support =
      cpu::supports_paged_decode(c.params, c.q_dtype, c.kv_dtype);
  return {support.ok, support.reason};
}

void PagedAttention::eval_cpu(
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

  out.set_data(mx::allocator::malloc(out.nbytes()));
  const DecodeSignature c =
      decode_signature(q, k_cache, block_table, scale_, num_splits_);
  const DecodeArgs args{
      .params = c.params,
      .q_dtype = c.q_dtype,
      .kv_dtype = c.kv_dtype,
      .q = q.data<void>(),
      .k_cache = k_cache.data<void>(),
      .v_cache = v_cache.data<void>(),
      .block_table = block_table.data<std::int32_t>(),
      .seq_lens = seq_lens.data<std::int32_t>(),
      .out = out.data<void>(),
  };

  // The task holds pointers, not arrays: MLX keeps the buffers of a node's
  // inputs alive until the node's tasks have run, and those of its output
  // while anything evaluated needs them.
  auto& encoder = mx::cpu::get_command_encoder(stream());
  for (const mx::array& input : inputs) {
    encoder.set_input_array(input);
  }
  encoder.set_output_array(out);
  encoder.dispatch([args, max_seq_len = max_seq_len_] {
    check_max_seq_len(args.seq_lens, args.params.num_seqs, max_seq_len);
    cpu::paged_decode(args);
    count_path(Path::FusedCpu);
  });
}

}  // namespace quire
