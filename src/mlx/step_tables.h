// Block tables of successive steps, made incrementally.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <vector>

#include <mlx/mlx.h>

#include "quire/sequence_cache.h"

namespace quire {

namespace mx = mlx::core;

/**
 * Keeps a few table buffers and, for each row of each buffer, which version of
 * which sequence's table it holds and how far. A step takes a buffer that
 * nobody reads any more and brings its rows up to date: for a sequence that
 * only grew, that is the entries added since the buffer was last used.
 *
 * Whether somebody reads a buffer is its reference count: arrays of earlier
 * steps, and tasks that MLX has scheduled, hold one reference each. So a
 * buffer never changes under a step in flight, however the rows change.
 */
class StepTables {
 public:
  /**
   * The table of these sequences, [num_seqs, width] int32, row i of
   * sequences[i]; unused entries hold anything. width is table_width() of the
   * most blocks. Row contiguous and available.
   */
  mx::array make(std::span<SequenceCache* const> sequences);

  /** Entries written since construction: the cost of all make() so far. */
  std::int64_t entries_written() const {
    return entries_written_;
  }

  /**
   * Columns for sequences of up to max_blocks blocks: at least 1, and rounded
   * up by at most an eighth, so that a width lasts for many steps.
   */
  static int table_width(int max_blocks);

 private:
  struct Row {
    std::uint64_t table_version = 0;  // SequenceCache's; 0 is never used
    std::size_t num_entries = 0;
  };
  struct Buffer {
    mx::array storage;  // [rows.size(), width]
    int width;
    std::vector<Row> rows;
  };
  static constexpr std::size_t kMaxBuffers = 4;

  Buffer& take_buffer(int num_seqs, int width);
  void update(Row& row, std::int32_t* entries, const SequenceCache& sequence);

  std::list<Buffer> buffers_;  // the last used first
  std::int64_t entries_written_ = 0;
};

}  // namespace quire
