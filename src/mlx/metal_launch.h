// From a Metal launch as plain data to MLX's command encoder. Nothing here
// decides anything about a kernel: kernels/metal/launch.h has done that.
#pragma once

#include <functional>

#include <mlx/mlx.h>

#include "kernels/metal/launch.h"
#include "mlx/gate.h"

namespace quire {

namespace mx = mlx::core;

/**
 * Compiles a launch's kernel in this process, if it has not been tried yet,
 * and says whether this device runs it. A compile error is the reason, with
 * the compiler's text; it is remembered, never thrown. Thread-safe.
 */
KernelSupport compile_metal_kernel(const metal::KernelLaunch& launch);

/** The array of an operand; Workspace is enqueue's own. */
using OperandArray = std::function<mx::array&(metal::Operand)>;

/**
 * Enqueues a compiled kernel: buffers in slot order, constants, dispatch. The
 * encoder orders it after the writers of its inputs and before its readers.
 */
void enqueue_metal_kernel(
    const metal::KernelLaunch& launch,
    const OperandArray& array_of,
    mx::Stream stream);

/** What the planner needs to know of the default device. */
DecodeDevice metal_decode_device();

}  // namespace quire
