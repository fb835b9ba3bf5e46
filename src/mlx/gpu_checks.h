// QUIRE_CHECKS on GPUs: values on the device are checked before they are used,
// at the price of a synchronisation for each op.
#pragma once

#include <mlx/mlx.h>

#include "kernels/decode_params.h"

namespace quire {

namespace mx = mlx::core;

/**
 * Throws std::runtime_error for a negative length, one beyond the table's width
 * or beyond max_seq_len (0: none was promised), and a block id outside the
 * pool.
 */
void check_decode_step(
    const DecodeParams& params,
    int max_seq_len,
    const mx::array& block_table,
    const mx::array& seq_lens,
    mx::Stream stream);

/** Throws std::runtime_error for a slot outside [-1, num_slots). */
void check_slots(
    const mx::array& slots,
    std::int64_t num_slots,
    mx::Stream stream);

/** Throws std::runtime_error for a block id outside [0, num_blocks). */
void check_block_copies(
    const mx::array& copies,
    std::int32_t num_blocks,
    mx::Stream stream);

/**
 * Waits until all work enqueued on the stream is done, then copies the bytes of
 * a row contiguous array to the host. One implementation a GPU backend.
 */
void download(const mx::array& a, void* to, mx::Stream stream);

}  // namespace quire
