#pragma once

#include "kernels/decode_params.h"

namespace quire::cpu {

/** Whether a fused kernel exists, and if not, why, in the user's words. */
struct Support {
  bool ok;
  const char* reason;  // empty when ok
};

/** Whether paged_decode() accepts these shapes and dtypes. */
Support supports_paged_decode(
    const DecodeParams& params,
    DType q_dtype,
    DType kv_dtype);

/**
 * Fused attention of one decode step on the CPU: reads the scattered blocks in
 * place, accumulates in float32, splits the work over the library's threads.
 *
 * Every block id is checked against params.num_blocks before it is followed.
 * Requires: supports_paged_decode(). Safe to call from several threads.
 * Throws std::runtime_error for a block id outside the pool, a negative
 * seq_len, or one beyond the table's width; out is then unspecified.
 * Allocates nothing that grows with the context.
 */
void paged_decode(const DecodeArgs& args);

}  // namespace quire::cpu
