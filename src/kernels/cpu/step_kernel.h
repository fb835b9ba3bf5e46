// The contract between the walk over the cache (paged_decode.cpp, compiled for
// the baseline) and the vector code (step_*.cpp, one unit an instruction set).
//
// Nothing in this header may need code: an inline function used on both sides
// would exist twice, and the linker could keep the AVX-512 copy for everybody.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quire/types.h"

namespace quire::cpu {

/** Most tokens a tile can have. */
inline constexpr int kMaxTileTokens = 64;
/** A sum of weights is kept in this many parts until a range ends. */
inline constexpr int kSumLanes = 16;

/** Bytes side by side in a cache that will be read soon. */
struct PrefetchSegment {
  const std::byte* begin;
  const std::byte* end;  // a whole number of lines after begin
};

/**
 * Lines to ask for, in the order in which they will be read. The segments end
 * with one of no bytes, on which the stream stays.
 */
struct PrefetchStream {
  const std::byte* at;
  const std::byte* end;
  const PrefetchSegment* next;
};

/**
 * One step: all query heads of one KV head against one tile of tokens.
 * "Load order" is the order in which the vector code finds it cheapest to
 * unpack a cache row; q and acc are in it, `finish` undoes it.
 */
struct StepArgs {
  const std::byte* k;  // this KV head's row of slot 0, block 0
  const std::byte* v;
  const std::int64_t* row_offset;  // [num_tokens] bytes; the same in K and V
  int num_tokens;                  // 1 to kMaxTileTokens
  PrefetchStream* ahead;           // what the next tile reads
  const float* q;                  // [group_size, head_dim] load order
  int group_size;
  float scale_log2;  // softmax scale * log2(e)
  float* acc;        // [group_size, head_dim] load order
  float* max_log2;   // [group_size], -inf before the first token
  float* sum;        // [group_size, kSumLanes]
};

/** The vector code of one instruction set, q dtype, cache dtype, head_dim. */
struct StepKernel {
  void (*step)(const StepArgs&) = nullptr;
  /** q [num_heads, head_dim] as f32 in load order. */
  void (*prepare_q)(const void* q, int num_heads, float* prepared) = nullptr;
  /** acc [head_dim] times `factor`, in natural order, in q's dtype. */
  void (*finish)(const float* acc, float factor, void* out) = nullptr;
  /** into = into * a + from * b, [head_dim]. */
  void (*combine)(float* into, float a, const float* from, float b) = nullptr;
  /** The sum of kSumLanes lanes. */
  float (*total)(const float* sum) = nullptr;
};

/** Each returns an empty kernel for a head_dim it does not have. */
StepKernel find_step_portable(DType q_dtype, DType kv_dtype, int head_dim);
StepKernel find_step_neon(DType q_dtype, DType kv_dtype, int head_dim);
StepKernel find_step_avx2(DType q_dtype, DType kv_dtype, int head_dim);
StepKernel find_step_avx512(DType q_dtype, DType kv_dtype, int head_dim);
StepKernel find_step_avx512_bf16(DType q_dtype, DType kv_dtype, int head_dim);

}  // namespace quire::cpu
