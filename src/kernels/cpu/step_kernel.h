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
 * What a stage asks for while it runs, a line for each line that it reads. A
 * line is asked for twice, half a tile apart: a core drops requests while its
 * queue to memory is full.
 */
struct Lookahead {
  PrefetchStream first;
  PrefetchStream again;
};

/**
 * One step: a tile of tokens against all query heads of some KV heads, which
 * lie side by side in the cache, in q and in the state.
 * "Load order" is the order in which the vector code finds it cheapest to
 * unpack a cache row; q and acc are in it, `finish` undoes it.
 */
struct StepArgs {
  const std::byte* k;  // the first KV head's row of slot 0, block 0
  const std::byte* v;
  const std::int64_t* row_offset;  // [num_tokens] bytes; the same in K and V
  int num_tokens;                  // 1 to kMaxTileTokens
  int num_kv_heads;
  int group_size;
  Lookahead* in_scores;  // asked for while K is read
  Lookahead* in_sum;     // and while V is
  const float* q;        // [num_kv_heads * group_size, head_dim] load order
  float scale_log2;      // softmax scale * log2(e)
  float* scores;         // [num_kv_heads * group_size, kMaxTileTokens] scratch
  float* alpha;          // [num_kv_heads * group_size] scratch
  float* acc;            // [num_kv_heads * group_size, head_dim] load order
  float* max_log2;       // [num_kv_heads * group_size], -inf at first
  float* sum;            // [num_kv_heads * group_size, kSumLanes]
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
