#pragma once

#include <cuda_runtime_api.h>

#include "kernels/decode_params.h"

namespace quire::bench {

/**
 * Attention of one decode step in double on the GPU, plain and slow, for cells
 * too large for the host's reference. The pointers of `args` are device memory;
 * `out` is [num_seqs, num_q_heads, head_dim] in float32.
 */
void launch_device_reference(
    const DecodeArgs& args,
    float* out,
    cudaStream_t stream);

/** Largest |out - reference| of n elements; NaN counts as infinite. */
double max_abs_error(
    const void* out,
    DType dtype,
    const float* reference,
    std::int64_t n);

}  // namespace quire::bench
