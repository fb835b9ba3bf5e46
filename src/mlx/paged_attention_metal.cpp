// The fused path on Metal: plans, makes the launch, hands it to the encoder.
#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include <mlx/allocator.h>
#include <mlx/backend/metal/device.h>

#include "common/env.h"
#include "mlx/checks.h"
#include "mlx/gpu_checks.h"
#include "mlx/metal_launch.h"
#include "mlx/paged_attention.h"
#include "mlx/path_counts.h"

namespace quire {
namespace {

metal::DecodeLaunch launch_of(
    const DecodeSignature& c,
    const DecodePlan& plan,
    const metal::DecodeVariant& variant) {
  return metal::make_decode_launch(
      c.params, c.q_dtype, c.kv_dtype, plan, variant);
}

struct CompiledVariant {
  metal::DecodeVariant variant;
  KernelSupport support;
};

// Compiles a variant's kernels: the number of splits is known only when the op
// runs, and may change from step to step.
KernelSupport compile(
    const DecodeSignature& c,
    const metal::DecodeVariant& variant) {
  const DecodePlan two_splits{.num_splits = 2, .split_size = kSplitGranule};
  for (const auto& kernel : launch_of(c, two_splits, variant).kernels) {
    if (KernelSupport compiled = compile_metal_kernel(kernel); !compiled.ok) {
      return compiled;
    }
  }
  return {true, ""};
}

// The first variant that this system's compiler takes, or the default and why
// it is refused: a system without matrices of bfloat, say, still has the other
// kernel.
CompiledVariant find_variant(const DecodeSignature& c, int group_size) {
  const auto variants = metal::decode_variants(
      c.q_dtype, c.kv_dtype, c.params.head_dim, group_size);
  for (const metal::DecodeVariant& variant : variants) {
    if (KernelSupport compiled = compile(c, variant); compiled.ok) {
      return {variant, compiled};
    }
  }
  return {variants.front(), compile(c, variants.front())};
}

// Kept for every shape, since each step of each layer asks.
const CompiledVariant& choose_variant(const DecodeSignature& c) {
  static std::mutex mutex;
  static std::map<std::tuple<DType, DType, int, int>, CompiledVariant> known;
  const int group_size = c.params.num_q_heads / c.params.num_kv_heads;
  const std::tuple key{c.q_dtype, c.kv_dtype, c.params.head_dim, group_size};
  const std::lock_guard lock(mutex);
  auto found = known.find(key);
  if (found == known.end()) {
    found = known.emplace(key, find_variant(c, group_size)).first;
  }
  return found->second;
}

}  // namespace

const char* gpu_kernel_name() {
  return "metal";
}

// Compiles the kernels, so that a fallback is still possible.
KernelSupport gpu_supports_paged_attention(const DecodeSignature& c) {
  const metal::Support support = metal::supports_paged_decode(c.params);
  if (!support.ok) {
    return {false, support.reason};
  }
  return choose_variant(c).support;
}

void PagedAttention::eval_gpu(
    const std::vector<mx::array>& inputs,
    std::vector<mx::array>& outputs) {
  mx::array q = inputs[0];
  mx::array k_cache = inputs[1];
  mx::array v_cache = inputs[2];
  mx::array block_table = inputs[3];
  mx::array seq_lens = inputs[4];
  mx::array& out = outputs[0];
  require_row_contiguous("paged_attention", "k_cache", k_cache);
  require_row_contiguous("paged_attention", "v_cache", v_cache);
  const DecodeSignature c =
      decode_signature(q, k_cache, block_table, scale_, num_splits_);
  const int table_tokens = c.params.max_blocks_per_seq * c.params.block_size;

  if (env().checks) {
    check_decode_step(c.params, max_seq_len_, block_table, seq_lens, stream());
  }
  out.set_data(mx::allocator::malloc(out.nbytes()));
  const metal::DecodeVariant& variant = choose_variant(c).variant;
  const DecodePlan plan = make_decode_plan(
      {.num_seqs = c.params.num_seqs,
       .max_seq_len = max_seq_len_ > 0 ? std::min(max_seq_len_, table_tokens)
                                       : table_tokens,
       .groups_per_split = metal::groups_per_split(c.params, variant),
       .num_splits = num_splits_},
      metal_decode_device());
  const metal::DecodeLaunch launch = launch_of(c, plan, variant);

  mx::array workspace(
      {static_cast<int>(launch.workspace_bytes / 4)}, mx::float32, nullptr, {});
  if (launch.workspace_bytes > 0) {
    workspace.set_data(mx::allocator::malloc(
        static_cast<std::size_t>(launch.workspace_bytes)));
    mx::metal::get_command_encoder(stream()).add_temporary(workspace);
  }
  const auto array_of = [&](metal::Operand operand) -> mx::array& {
    switch (operand) {
      case metal::Operand::Q:
        return q;
      case metal::Operand::KCache:
        return k_cache;
      case metal::Operand::VCache:
        return v_cache;
      case metal::Operand::BlockTable:
        return block_table;
      case metal::Operand::SeqLens:
        return seq_lens;
      case metal::Operand::Workspace:
        return workspace;
      default:
        return out;
    }
  };
  for (const metal::KernelLaunch& kernel : launch.kernels) {
    enqueue_metal_kernel(kernel, array_of, stream());
  }
  count_path(Path::FusedMetal);
}

}  // namespace quire
