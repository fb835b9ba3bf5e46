// What touches the CUDA runtime on the host: device facts, kernels as the
// driver knows them, and launches on a stream.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "kernels/cuda/cache_write.h"
#include "kernels/cuda/decode_launch.h"

namespace quire::cuda {

/** Throws std::runtime_error("[cuda] CALL failed: ...") unless it succeeded. */
void check_cuda(const char* call, cudaError_t status);
#define QUIRE_CHECK_CUDA(call) ::quire::cuda::check_cuda(#call, call)

/**
 * Facts about `device` (cached after the first call).
 * Throws std::runtime_error where there is no such device, its driver is older
 * than the CUDA runtime that Quire was built with, or the build has no kernels
 * for its architecture.
 *
 * `clusters`: whether launches may carry a cluster shape. Say false for
 * launches that go into a graph which is updated from another one: updating a
 * kernel node across cluster shapes goes wrong without an error.
 */
DeviceLimits device_limits(int device, bool clusters);

/**
 * The kernel of `launch` on the current device, ready for its shared memory.
 * For whoever enqueues by driver handle; the argument is `launch.args` alone.
 */
CUfunction decode_function(const DecodeLaunch& launch);

/**
 * Enqueues a decode step. `launch.args` has its pointers; args.mail points to
 * launch.workspace_bytes bytes that read 0xff (init_workspace) and that no
 * other stream uses.
 */
void launch_decode(const DecodeLaunch& launch, cudaStream_t stream);

/** Fills a workspace before its first use; every launch leaves it so. */
void init_workspace(void* workspace, std::int64_t bytes, cudaStream_t stream);

/** The kernels below as the driver knows them, for the current device. */
CUfunction kv_append_function(const KvAppendLaunch& launch);
CUfunction copy_blocks_function();
CUfunction fill_function();

void launch_kv_append(const KvAppendLaunch& launch, cudaStream_t stream);
void launch_copy_blocks(const CopyBlocksLaunch& launch, cudaStream_t stream);

}  // namespace quire::cuda
