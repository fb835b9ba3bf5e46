#pragma once
// (draft: owned by the cache layer)
#include <cstdint>
#include <optional>

#include "quire/types.h"

namespace quire {

class BlockPool {
 public:
  explicit BlockPool(int num_blocks);
  int num_blocks() const;
  int num_free() const;     // allocatable now
  int num_used() const;     // referenced
  int num_pending() const;  // released, waiting for a step in flight

  /** Takes a free block, the one after `previous` if it is free; O(1). */
  [[nodiscard]] std::optional<BlockId> allocate(
      std::optional<BlockId> previous = std::nullopt);
  void acquire(BlockId block);
  void release(BlockId block);
  int ref_count(BlockId block) const;

  /** A step that reads the cache begins; blocks released from now until the
   * steps that may read them have completed are not handed out. */
  std::int64_t begin_step();
  /** Step `step` and all before it have completed on the device. */
  void complete_step(std::int64_t step);

  void check_invariants() const;
};

}  // namespace quire
