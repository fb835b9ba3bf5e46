#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace quire::bench {

int num_read_kernels();
const char* read_kernel_name(int kernel);

/**
 * Enqueues a kernel that reads `bytes` bytes at `a` and as many at `b` and does
 * nothing with them. Both are 16-byte aligned, `bytes` is a multiple of 16.
 */
void launch_read(
    int kernel,
    const void* a,
    const void* b,
    std::int64_t bytes,
    void* sink,  // 16 bytes
    cudaStream_t stream);

/** Fills n elements (an even number) with N(0, 1). `kind`: 0 f32, 1 f16, 2
 * bf16. */
void launch_fill_normal(
    void* data,
    std::int64_t n,
    std::uint32_t seed,
    int kind,
    cudaStream_t stream);

}  // namespace quire::bench
