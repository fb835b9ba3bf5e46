#include "mlx/decode_checks.h"

#include <sstream>
#include <stdexcept>

namespace quire {
namespace {

template <typename... Parts>
void check(bool ok, const Parts&... parts) {
  if (ok) [[likely]] {
    return;
  }
  std::ostringstream message;
  message << "[paged_attention] ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace

void check_max_seq_len(
    const std::int32_t* seq_lens,
    std::int32_t num_seqs,
    std::int32_t max_seq_len) {
  for (std::int32_t i = 0; max_seq_len > 0 && i < num_seqs; ++i) {
    check(
        seq_lens[i] <= max_seq_len,
        "seq_lens must not exceed max_seq_len = ",
        max_seq_len,
        "; got ",
        seq_lens[i],
        " for sequence ",
        i,
        ".");
  }
}

void check_block_table(
    const std::int32_t* block_table,
    const std::int32_t* seq_lens,
    const TableShape& shape) {
  const std::int64_t capacity =
      static_cast<std::int64_t>(shape.max_blocks_per_seq) * shape.block_size;
  for (std::int32_t i = 0; i < shape.num_seqs; ++i) {
    const std::int64_t seq_len = seq_lens[i];
    check(
        seq_len >= 0 && seq_len <= capacity,
        "seq_lens must be from 0 to the block table's ",
        capacity,
        " tokens; got ",
        seq_len,
        " for sequence ",
        i,
        ".");
    const std::int32_t* row =
        block_table + static_cast<std::int64_t>(i) * shape.max_blocks_per_seq;
    const std::int64_t num_blocks =
        (seq_len + shape.block_size - 1) / shape.block_size;
    for (std::int64_t j = 0; j < num_blocks; ++j) {
      check(
          row[j] >= 0 && row[j] < shape.num_blocks,
          "Block ids must be from 0 to ",
          shape.num_blocks - 1,
          "; got ",
          row[j],
          " at block_table[",
          i,
          ", ",
          j,
          "].");
    }
  }
}

}  // namespace quire
