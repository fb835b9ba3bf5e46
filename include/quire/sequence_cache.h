#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "quire/api.h"
#include "quire/block_pool.h"

namespace quire {

/** What an append needs from the device before tokens are written. */
struct AppendResult {
  int begin_token;                // first new token: the old seq_len
  std::optional<BlockCopy> copy;  // copy-on-write of the tail block

  friend bool operator==(const AppendResult&, const AppendResult&) = default;
};

/**
 * One sequence's block table: which blocks hold its tokens, in token order.
 *
 * Invariants, each one checked by check_invariants():
 *  - block_ids() has ceil(seq_len / block_size) entries, all different;
 *  - the sequence holds one reference to each of them;
 *  - the slots of its tokens are within the blocks' written_len.
 *
 * Sharing: a fork holds references to the same blocks. A token is written only
 * into a block that no other sequence references and into a slot that no step
 * in flight can read; where the tail block is not such a block, append() moves
 * the sequence to a copy of it first (copy-on-write). Full blocks are never
 * copied.
 *
 * Copies: append() only says that the tail block must be copied. The next step
 * that begins carries the copies out, in the order of the appends and before it
 * writes tokens; copies and writes of successive steps follow one another. So
 * the source may be released, and even handed out again, before it was copied:
 * what its new owner copies or writes into it comes later. If no sequence is
 * released or truncated and no step completes between the appends and
 * begin_step(), no block is both a source and a destination of that step, and
 * its copies may run in any order; append_all() is such a batch.
 *
 * The pool must outlive its sequences. A moved-from sequence is empty and as
 * good as new. Not thread-safe: see BlockPool.
 */
class QUIRE_API SequenceCache {
 public:
  /** An empty sequence. Requires: block_size is a power of two from
   * kMinBlockSize to kMaxBlockSize, else std::invalid_argument. */
  explicit SequenceCache(BlockPool& pool, int block_size = kDefaultBlockSize);
  ~SequenceCache();
  SequenceCache(SequenceCache&& other) noexcept;
  SequenceCache& operator=(SequenceCache&& other) noexcept;

  int seq_len() const;     // tokens
  int block_size() const;  // tokens per block
  BlockPool& pool() const;

  /** Ids of the sequence's blocks in token order; valid until the next call
   * that is not const. */
  std::span<const BlockId> block_ids() const;

  /** Blocks that append(num_tokens) would take from the pool now. */
  int blocks_needed(int num_tokens) const;

  /**
   * Makes room for num_tokens more and says what must be copied first; nullopt,
   * with the sequence and the pool unchanged, if the pool has too few free
   * blocks. num_tokens 0 changes nothing.
   *
   * A tail block that is partly filled and not the sequence's own is copied
   * (see Copies above); at a block boundary there is nothing to copy. New
   * blocks follow the last one in ascending order where the pool can.
   *
   * Requires: num_tokens is not negative and seq_len stays below 2^31, else
   * std::invalid_argument. O(blocks taken).
   */
  [[nodiscard]] std::optional<AppendResult> append(int num_tokens);

  /**
   * A sequence with the same tokens that shares all blocks; copies none of
   * them. Fork once the step that writes the last tokens has begun: a copy of
   * the tail block that is made in the step that writes them misses them.
   * O(blocks), for their reference counts.
   */
  SequenceCache fork() const;

  /**
   * Keeps the first seq_len tokens and releases the blocks that hold none of
   * them. Requires: 0 <= seq_len <= seq_len(), else std::invalid_argument and
   * nothing changed.
   */
  void truncate(int seq_len);

  /** Releases all blocks; the sequence is empty and can be used again. */
  void release();

  /** Where the token's key and value are: block_id * block_size + offset.
   * Requires: 0 <= token < seq_len(), else std::invalid_argument. */
  std::int64_t slot(int token) const;

  /**
   * Identifies the entries of block_ids(): changes whenever one of them is
   * replaced or removed (copy-on-write, truncate, release, move), and not when
   * entries are added. No two sequences of a process ever have the same value,
   * so a reader that remembers it and how many entries it read needs only the
   * entries past these while the value is the same.
   */
  std::uint64_t table_version() const;

  /** Throws std::logic_error, naming the invariant, if one does not hold:
   * O(blocks log blocks). */
  void check_invariants() const;

 private:
  friend std::optional<std::vector<AppendResult>> append_all(
      std::span<SequenceCache* const> sequences,
      std::span<const int> num_tokens);

  int tail_len() const;  // tokens in a partly filled tail block, else 0
  bool must_copy_tail() const;
  void require_appendable(int num_tokens) const;
  void append_block(int num_wanted);
  void mark_written(int begin_token);
  void keep(int seq_len);

  BlockPool* pool_;
  int block_size_;
  int seq_len_ = 0;
  std::vector<BlockId> block_ids_;
  std::uint64_t table_version_;
};

/**
 * Appends num_tokens[i] tokens to sequences[i], in order, or changes nothing
 * and returns nullopt if the pool has too few free blocks for all of them.
 *
 * Requires: one number for each sequence, and sequences that are different and
 * of one pool, else std::invalid_argument. Forks of one sequence may be in the
 * batch: the last owner of a shared tail block keeps it.
 */
[[nodiscard]] QUIRE_API std::optional<std::vector<AppendResult>> append_all(
    std::span<SequenceCache* const> sequences,
    std::span<const int> num_tokens);

}  // namespace quire
