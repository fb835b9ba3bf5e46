// Constants of one launch: the same text, and the same layout, on the host and
// in MSL.
#pragma once

#if !defined(__METAL_VERSION__)
#include <cstdint>
namespace quire::metal {
#endif

/// What paged_decode needs to know. Strides follow from it, in elements.
struct PagedDecodeParams {
  int num_q_heads;
  int num_kv_heads;
  int group_size;          // num_q_heads / num_kv_heads
  int num_head_slices;     // threadgroups that share one KV head's query heads
  int max_blocks_per_seq;  // width of the block table
  int block_size_log2;
  int split_size;    // tokens a split, a multiple of every step
  int num_splits;    // the last split takes whatever is left
  float scale_log2;  // softmax scale * log2(e)
};

/// What paged_combine needs to know.
struct PagedCombineParams {
  int num_splits;
  int num_columns;  // head_dim / 4
};

/// What kv_append needs to know.
struct KvAppendParams {
  int64_t num_slots;   // num_blocks * block_size
  int64_t num_pieces;  // in one token's row; no padding, which would be noise
};

/// What copy_blocks needs to know.
struct CopyBlocksParams {
  int num_copies;
  int num_blocks;
  int num_pieces;  // pieces of 16 bytes in one block of one cache
};

#if !defined(__METAL_VERSION__)
}  // namespace quire::metal
#endif
