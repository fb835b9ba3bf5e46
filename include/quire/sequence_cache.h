#pragma once
// (draft: owned by the cache layer)
#include <optional>
#include <span>

#include "quire/block_pool.h"

namespace quire {

/** What an append needs from the device before tokens are written. */
struct AppendResult {
  int begin_token;                 // first new token
  std::optional<BlockCopy> copy;   // copy-on-write of the tail block
};

class SequenceCache {
 public:
  SequenceCache(BlockPool& pool, int block_size);  // move-only; ~ releases
  int seq_len() const;
  std::span<const BlockId> block_ids() const;
  /** Room for num_tokens more; nullopt and no change if the pool is full. */
  [[nodiscard]] std::optional<AppendResult> append(int num_tokens);
  SequenceCache fork() const;
  void truncate(int seq_len);
  void release();
  std::int64_t slot(int token) const;   // block_id * block_size + offset
  /** Grows whenever an entry of block_ids() below the old end was replaced
   * (copy-on-write, truncate): an incremental reader must re-read the row. */
  std::uint64_t table_version() const;
  void check_invariants() const;
};

}  // namespace quire
