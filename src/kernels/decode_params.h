// What one decode step means, as plain data that host and device share.
#pragma once

#include <cstdint>

#include "quire/types.h"

namespace quire {

/**
 * Shapes of one paged-attention decode step. Counts are elements, tokens or
 * heads as the glossary says; num_q_heads is a multiple of num_kv_heads.
 */
struct DecodeParams {
  std::int32_t num_seqs = 0;
  std::int32_t num_q_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int32_t num_blocks = 0;          // blocks of the pool
  std::int32_t block_size = 0;          // tokens a block, a power of two
  std::int32_t max_blocks_per_seq = 0;  // width of the block table
  std::int32_t num_splits = 0;          // 0: the kernel chooses
  float scale = 1.0f;                   // softmax scale, natural units
};

/** One decode step on host memory; no array may be null unless it is empty. */
struct DecodeArgs {
  DecodeParams params;
  DType q_dtype = DType::Float32;   // of q and out
  DType kv_dtype = DType::Float32;  // of both caches
  const void* q = nullptr;          // [num_seqs, num_q_heads, head_dim]
  const void* k_cache = nullptr;    // [num_blocks, block_size, num_kv_heads,
                                    //  head_dim]
  const void* v_cache = nullptr;    // as k_cache
  const std::int32_t* block_table = nullptr;  // [num_seqs, max_blocks_per_seq]
  const std::int32_t* seq_lens = nullptr;     // [num_seqs], tokens
  void* out = nullptr;  // [num_seqs, num_q_heads, head_dim]; must not alias
};

}  // namespace quire
