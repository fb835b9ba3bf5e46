#pragma once

#include <cstdint>

#include "kernels/decode_params.h"

namespace quire::cpu {

/** New tokens of one layer to be written into the caches, in place. */
struct KvAppendArgs {
  std::int64_t num_tokens = 0;
  std::int64_t num_slots = 0;    // num_blocks * block_size
  std::int64_t token_elems = 0;  // num_kv_heads * head_dim
  DType dtype = DType::Float32;  // of k and v
  DType kv_dtype = DType::Float32;
  const void* k = nullptr;              // [num_tokens, token_elems]
  const void* v = nullptr;              // [num_tokens, token_elems]
  const std::int64_t* slots = nullptr;  // [num_tokens]
  void* k_cache = nullptr;              // [num_slots, token_elems]
  void* v_cache = nullptr;              // as k_cache
};

/**
 * Writes token i of k and v to slot slots[i], converting with round to nearest
 * even; NaN stays NaN. Slot -1 is skipped (padding).
 * Throws std::runtime_error for any other slot outside [0, num_slots), before
 * anything is written.
 */
void kv_append(const KvAppendArgs& args);

/** Whole-block copies within the caches, in place. */
struct CopyBlocksArgs {
  std::int64_t num_copies = 0;
  std::int64_t num_blocks = 0;
  std::int64_t block_bytes = 0;          // of one cache
  const std::int32_t* copies = nullptr;  // [num_copies, 2]: source, target
  void* k_cache = nullptr;
  void* v_cache = nullptr;
};

/**
 * Copies block copies[i][0] onto block copies[i][1], in order.
 * Throws std::runtime_error for an id outside the pool, before any copy.
 */
void copy_blocks(const CopyBlocksArgs& args);

}  // namespace quire::cpu
