#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "quire/api.h"
#include "quire/types.h"

namespace quire {

/**
 * Owner of all block ids and their reference counts; knows no tensors.
 *
 * Invariants, each one checked by check_invariants():
 *  - a block is used (ref_count > 0), pending (released while a step was in
 *    flight) or free, and num_used + num_pending + num_free == num_blocks;
 *  - free blocks form maximal runs: no two runs touch, the first and the last
 *    block of a run hold its length, and every run is in the list of its size
 *    class, the number of bits of its length, exactly once;
 *  - pending blocks are queued in the order of the steps they wait for, and
 *    each waits for a step that is begun and not completed.
 *
 * Growing sequences get neighbouring blocks in ascending order: allocate()
 * takes the block after `previous` if it is free. Where a sequence starts, it
 * takes a place inside one of the largest free runs (within a factor of two)
 * that leaves as much room to the sequence that grows into the run from below
 * as to itself, so many sequences that grow in turns do not interleave.
 *
 * Steps: a step is whatever work reads the cache on a device. Between
 * begin_step() and complete_step() it is in flight, and the pool assumes that
 * it reads every block that is referenced when it begins. A block released
 * while steps are in flight is handed out again only after all of them have
 * completed, because devices do not order a later write after an earlier read.
 *
 * A wrong id, a release of a block that is not used and the like are the
 * caller's bugs: they throw std::invalid_argument in every build and change
 * nothing, so a double release never hands a block to two owners.
 *
 * Not thread-safe: one thread at a time uses a pool and its sequences. The
 * constructor and check_invariants() take O(num_blocks); every other function
 * takes constant time, complete_step() for each block that it frees.
 */
class QUIRE_API BlockPool {
 public:
  /** A pool of blocks 0 to num_blocks - 1, all free. Requires: num_blocks is
   * positive, else std::invalid_argument. */
  explicit BlockPool(int num_blocks);
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  int num_blocks() const;
  int num_free() const;     // can be allocated now
  int num_used() const;     // referenced
  int num_pending() const;  // released, waiting for a step in flight

  /**
   * Takes a free block and gives the caller the only reference to it, or
   * returns nullopt, and changes nothing, when none is free.
   *
   * It is the block after `previous` if that is free. Otherwise it is a place
   * where `num_wanted` blocks, this one included, fit in ascending order if a
   * run that long is at hand; a hint, which reserves nothing.
   *
   * Requires: `previous` is used and num_wanted positive, else
   * std::invalid_argument. The block's contents are unspecified: they may hold
   * NaN.
   */
  [[nodiscard]] std::optional<BlockId> allocate(
      std::optional<BlockId> previous = std::nullopt,
      int num_wanted = 1);

  /** Adds a reference. Requires: the block is used, else
   * std::invalid_argument. */
  void acquire(BlockId block);

  /** Drops a reference; with the last one the block is free at once, or
   * pending while steps are in flight. Requires: the block is used, else
   * std::invalid_argument. */
  void release(BlockId block);

  /** References to the block; 0 if it is free or pending. */
  int ref_count(BlockId block) const;

  /**
   * Number of slots at the block's start that may hold tokens: 0 when it is
   * allocated, and what set_written_len() said since. A step in flight may read
   * these slots, even through a reference that was dropped since, and no
   * others: this is what tells whether a slot may be written in place.
   */
  int written_len(BlockId block) const;
  void set_written_len(BlockId block, int written_len);

  /** Begins a step and returns its id; ids increase by one from 1. */
  std::int64_t begin_step();

  /**
   * Says that `step` and all steps before it have completed on the device, and
   * frees the blocks that waited for them. A step that failed has completed,
   * too. After a later step it says nothing new, and is no error. Requires: the
   * step was begun, else std::invalid_argument.
   */
  void complete_step(std::int64_t step);

  /** Whether a step was begun that has not completed. */
  bool step_in_flight() const;

  /** Throws std::logic_error, naming the invariant, if one does not hold:
   * O(num_blocks). */
  void check_invariants() const;

 private:
  enum class State : std::uint8_t { Free, Used, Pending };
  static constexpr BlockId kNone = -1;
  static constexpr std::size_t kNumSizeClasses = 32;  // lengths below 2^31

  struct Block {
    State state = State::Free;
    int ref_count = 0;
    int written_len = 0;
    int run_len = 0;        // first and last block of a free run
    BlockId prev = kNone;   // first block of a free run: list of its class
    BlockId next = kNone;   // likewise; pending block: the queue
    std::int64_t step = 0;  // pending block: frees when this has completed
  };

  Block& at(BlockId block);
  const Block& at(BlockId block) const;
  bool is_free(BlockId block) const;  // false for ids outside the pool
  void require_id(BlockId block, const char* op) const;
  void require_used(BlockId block, const char* op) const;

  void insert_run(BlockId begin, int run_len);
  void remove_run(BlockId begin);
  void take(BlockId run, BlockId block);
  void make_free(BlockId block);
  void check_states() const;
  void check_runs() const;
  void check_queue() const;

  std::vector<Block> blocks_;
  std::array<BlockId, kNumSizeClasses> runs_;  // heads of the class lists
  std::uint32_t nonempty_classes_ = 0;         // bit c: runs_[c] has a run
  BlockId pending_front_ = kNone;
  BlockId pending_back_ = kNone;
  int num_free_ = 0;
  int num_pending_ = 0;
  std::int64_t begun_step_ = 0;
  std::int64_t completed_step_ = 0;
};

}  // namespace quire
