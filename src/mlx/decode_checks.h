// Checks of the values of a decode step on the host, made when it runs.
#pragma once

#include <cstdint>

namespace quire {

/**
 * Throws std::runtime_error if one of the lengths exceeds max_seq_len, the
 * bound that the caller promised; 0 promises nothing.
 */
void check_max_seq_len(
    const std::int32_t* seq_lens,
    std::int32_t num_seqs,
    std::int32_t max_seq_len);

/** Shape of a block table and of the pool that its ids point into. */
struct TableShape {
  std::int32_t num_seqs;
  std::int32_t max_blocks_per_seq;
  std::int32_t num_blocks;
  std::int32_t block_size;
};

/**
 * Throws std::runtime_error for a negative length, one beyond the table's
 * width, and a block id outside the pool among those that a length reaches.
 */
void check_block_table(
    const std::int32_t* block_table,
    const std::int32_t* seq_lens,
    const TableShape& shape);

}  // namespace quire
