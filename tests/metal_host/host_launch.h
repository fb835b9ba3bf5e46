// Runs a Metal launch on the CPU: the value that MLX's encoder would get.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "kernels/cpu/cache_write.h"
#include "kernels/decode_params.h"
#include "kernels/metal/launch.h"

namespace quire::metal_host {

/** The operands of a launch in host memory, indexed by metal::Operand. */
class Operands {
 public:
  const void*& operator[](metal::Operand operand) {
    return data_[static_cast<std::size_t>(operand)];
  }
  const void* operator[](metal::Operand operand) const {
    return data_[static_cast<std::size_t>(operand)];
  }

 private:
  std::array<const void*, 11> data_ = {};
};

/** Names of the kernels that were compiled into this program. */
std::vector<std::string> kernel_names();

/** Whether all kernels of a launch are among them. */
bool is_compiled_in(const metal::DecodeLaunch& launch);

/**
 * Runs one launch: binds buffers and constants in slot order, nothing else.
 * `schedule` as in lockstep::dispatch.
 * Throws std::runtime_error for a kernel that was not compiled in, or what the
 * lock-step runtime finds wrong with the kernel.
 */
void run(
    const metal::KernelLaunch& launch,
    const Operands& operands,
    unsigned schedule = 0);

/** How paged_decode() launches. */
struct DecodeOptions {
  DecodeDevice device = {.num_cores = 40, .groups_per_core = 2};
  metal::DeviceLimits limits = {};
  std::vector<metal::DecodeVariant>
      variants;         // the first is used; none: default
  int max_seq_len = 0;  // 0: the longest of seq_lens
  unsigned schedule = 0;
};

/** The launch of one decode step as the Metal op would make it. The number of
 * splits is that of args.params, 0: chosen. */
metal::DecodeLaunch make_launch(
    const DecodeArgs& args,
    const DecodeOptions& options = {});

/** Runs all kernels of a launch over args; `workspace` has its bytes. Buffers
 * must be aligned to 16 bytes, as on a device; malloc does. */
void run(
    const metal::DecodeLaunch& launch,
    const DecodeArgs& args,
    void* workspace,
    unsigned schedule = 0);

/** Attention of one decode step: make_launch() and run() with a workspace of
 * NaNs. */
void paged_decode(const DecodeArgs& args, const DecodeOptions& options = {});

/** kv_append and copy_blocks through their Metal kernels. */
void kv_append(const cpu::KvAppendArgs& args, unsigned schedule = 0);
void copy_blocks(const cpu::CopyBlocksArgs& args, unsigned schedule = 0);

}  // namespace quire::metal_host
