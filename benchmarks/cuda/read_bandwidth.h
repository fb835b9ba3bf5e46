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

/** Which blocks of two pools are read, in the order in which they are read. */
struct BlockList {
  const void* k_cache = nullptr;
  const void* v_cache = nullptr;
  const std::int32_t* block_ids = nullptr;     // [num_blocks]
  const std::int32_t* block_tokens = nullptr;  // [num_blocks], read of each
  int num_blocks = 0;
  int block_size = 0;            // tokens of a block
  std::int64_t token_bytes = 0;  // of K, and as many of V; a multiple of 16
};

/**
 * Enqueues a kernel that reads the blocks of a list and does nothing with them:
 * what a block table's order costs whoever follows it. CTAs of 16 KB take the
 * blocks in the list's order, as fast as they come free, like the fastest of
 * the kernels above.
 */
void launch_read_blocks(
    const BlockList& list,
    void* sink,  // 16 bytes
    cudaStream_t stream);

/**
 * The same, but the list is cut beforehand into equal shares, one a
 * multiprocessor, as a kernel must cut it whose sums are to have the same bits
 * in every run: what such a cut costs. Bulk copies, 192 KB of shared memory a
 * multiprocessor; needs has_bulk_copies().
 */
void launch_read_shares(const BlockList& list, cudaStream_t stream);

/** Fills n elements (an even number) with N(0, 1). `kind`: 0 f32, 1 f16, 2
 * bf16. */
void launch_fill_normal(
    void* data,
    std::int64_t n,
    std::uint32_t seed,
    int kind,
    cudaStream_t stream);

}  // namespace quire::bench
