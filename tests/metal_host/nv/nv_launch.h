// Runs a Metal launch on NVIDIA lanes: the value that MLX's encoder would get.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <string>
#include <vector>

#include "kernels/decode_params.h"
#include "kernels/metal/launch.h"
#include "nv_slots.h"

namespace quire::metal_nv {

/** The operands of a launch in device memory, indexed by metal::Operand. */
using Operands = std::array<void*, 11>;

/** Whether all kernels of a launch are compiled into this program. */
bool is_compiled_in(const metal::DecodeLaunch& launch);

/** The kernel of a name; throws std::runtime_error if there is none. */
const void* find_kernel(const std::string& name);

/** Sets an integer function constant of MLX's kernels. */
void set_function_constant(const std::string& name, int value);

/** Enqueues a kernel with its slots filled. */
void enqueue(
    const void* kernel,
    const std::array<int, 3>& num_threadgroups,
    const std::array<int, 3>& num_threads,
    const nv::Slots& slots,
    cudaStream_t stream);

/** Enqueues one launch: binds buffers and constants in slot order. */
void enqueue(
    const metal::KernelLaunch& launch,
    const Operands& operands,
    cudaStream_t stream);

/**
 * Attention of one decode step, from and to host memory, waiting for it. The
 * workspace is filled with NaN; everything is freed again.
 * Throws std::runtime_error where CUDA reports an error.
 */
void paged_decode(const DecodeArgs& args, const metal::DecodeLaunch& launch);

/** The launch that the Metal op would make for a device of `num_cores`. */
metal::DecodeLaunch make_launch(
    const DecodeArgs& args,
    const metal::DecodeVariant& variant,
    int num_cores);

}  // namespace quire::metal_nv
