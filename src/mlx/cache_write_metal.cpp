// kv_append and copy_blocks on Metal.
#include "mlx/cache_write.h"

#include "common/env.h"
#include "mlx/checks.h"
#include "mlx/gpu_checks.h"
#include "mlx/metal_launch.h"

namespace quire {
namespace {

constexpr DType kDTypes[] = {DType::Float32, DType::Float16, DType::BFloat16};

}  // namespace

// Compiles all of them: they are few and small.
KernelSupport gpu_supports_cache_write() {
  KernelSupport support =
      compile_metal_kernel(metal::make_copy_blocks_launch(1, 1, 16));
  for (const DType dtype : kDTypes) {
    for (const DType kv_dtype : kDTypes) {
      for (const int token_elems : {1, 8}) {
        if (support.ok) {
          support = compile_metal_kernel(
              metal::make_kv_append_launch(1, 1, token_elems, dtype, kv_dtype));
        }
      }
    }
  }
  return support;
}

void KvAppend::eval_gpu(
    const std::vector<mx::array>& inputs,
    std::vector<mx::array>& outputs) {
  require_row_contiguous("kv_append", "k_cache", inputs[0]);
  require_row_contiguous("kv_append", "v_cache", inputs[1]);
  outputs[0].copy_shared_buffer(inputs[0]);
  outputs[1].copy_shared_buffer(inputs[1]);
  mx::array k = inputs[2];
  mx::array v = inputs[3];
  mx::array slot_mapping = inputs[4];
  const std::int64_t num_slots =
      static_cast<std::int64_t>(inputs[0].shape(0)) * inputs[0].shape(1);
  if (env().checks) {
    check_slots(slot_mapping, num_slots, stream());
  }
  const auto launch = metal::make_kv_append_launch(
      k.shape(0),
      num_slots,
      k.shape(1) * k.shape(2),
      require_float("kv_append", "k", k),
      require_float("kv_append", "k_cache", inputs[0]));
  enqueue_metal_kernel(
      launch,
      [&](metal::Operand operand) -> mx::array& {
        switch (operand) {
          case metal::Operand::K:
            return k;
          case metal::Operand::V:
            return v;
          case metal::Operand::SlotMapping:
            return slot_mapping;
          case metal::Operand::KCache:
            return outputs[0];
          default:
            return outputs[1];
        }
      },
      stream());
}

void CopyBlocks::eval_gpu(
    const std::vector<mx::array>& inputs,
    std::vector<mx::array>& outputs) {
  require_row_contiguous("copy_blocks", "k_cache", inputs[0]);
  require_row_contiguous("copy_blocks", "v_cache", inputs[1]);
  outputs[0].copy_shared_buffer(inputs[0]);
  outputs[1].copy_shared_buffer(inputs[1]);
  mx::array block_copies = inputs[2];
  const int num_blocks = inputs[0].shape(0);
  if (env().checks) {
    check_block_copies(block_copies, num_blocks, stream());
  }
  const auto launch = metal::make_copy_blocks_launch(
      block_copies.shape(0),
      num_blocks,
      static_cast<std::int64_t>(
          inputs[0].nbytes() / static_cast<std::size_t>(num_blocks)));
  enqueue_metal_kernel(
      launch,
      [&](metal::Operand operand) -> mx::array& {
        switch (operand) {
          case metal::Operand::BlockCopies:
            return block_copies;
          case metal::Operand::KCache:
            return outputs[0];
          default:
            return outputs[1];
        }
      },
      stream());
}

}  // namespace quire
