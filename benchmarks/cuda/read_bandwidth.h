#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace quire::bench {

/** Whether the GPU has bulk copies: Hopper or newer. */
bool has_bulk_copies();

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

/**
 * Enqueues a kernel that reads the blocks `block_ids` of two pools and does
 * nothing with them: what a block table's order costs whoever follows it. CTAs
 * of 16 KB take the blocks in the list's order, as fast as they come free, like
 * the fastest of the kernels above.
 *
 * @param block_tokens  of each of the num_blocks entries of the list, how many
 *                      tokens of the block are read
 * @param block_size    tokens of a block, of token_bytes bytes (a multiple of
 *                      16) each
 */
void launch_read_blocks(
    const void* k_cache,
    const void* v_cache,
    const std::int32_t* block_ids,
    const std::int32_t* block_tokens,
    int num_blocks,
    int block_size,
    std::int64_t token_bytes,
    void* sink,  // 16 bytes
    cudaStream_t stream);

/**
 * The same, but the list is cut beforehand into equal shares, one a
 * multiprocessor, as a kernel must cut it whose sums are to have the same bits
 * in every run: what such a cut costs. Bulk copies, 192 KB of shared memory a
 * multiprocessor; needs has_bulk_copies().
 */
void launch_read_shares(
    const void* k_cache,
    const void* v_cache,
    const std::int32_t* block_ids,
    const std::int32_t* block_tokens,
    int num_blocks,
    int block_size,
    std::int64_t token_bytes,
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
