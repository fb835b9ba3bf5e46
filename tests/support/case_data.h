// The data of a decode case, laid out to catch lies: permuted tables, poison
// in every slot that must not be read, canaries round the output.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/decode_params.h"
#include "support/decode_case.h"

namespace quire::testing {

/** An id that no pool has: following it faults or is reported. */
inline constexpr std::int32_t kUnusedTableEntry = 2147480000;

/** What stands in the slots that must not influence a result. */
enum class Poison : std::uint8_t { NaN, Infinity, Zero, Large };

/** Gives a pool's memory back to where it came from. */
struct FreePool {
  std::size_t mapped_bytes = 0;  // 0: from the heap
  void operator()(void* memory) const;
};

/**
 * Host memory of one decode case.
 *
 * - q, K and V come from N(0, 1), one in 64 times 8.
 * - The table is permuted; it is wider than needed, and its unused entries are
 *   kUnusedTableEntry.
 * - Every slot past a sequence's end, every free block and block 0 hold
 *   poison (of a sparse pool: only the blocks that it uses, and block 0).
 * - A canary row stands before and after the output.
 */
class CaseData {
 public:
  explicit CaseData(const DecodeCase& decode_case, std::uint64_t seed = 0);

  /** The step as every backend takes it; out is this object's own. */
  DecodeArgs args() const;

  /** Rewrites every slot that must not be read. */
  void poison(Poison kind);

  /** Fills the output with NaN, so that what is not written shows. */
  void clear_out();

  /** Whether the rows round the output still hold what was put there. */
  bool canaries_intact() const;

  /** The output's bytes, to compare two runs bit for bit. */
  std::vector<std::uint8_t> out_bytes() const;

  std::int64_t num_out() const;

 private:
  using Memory = std::unique_ptr<void, FreePool>;
  static Memory allocate(std::size_t bytes, bool sparse);

  struct TouchedBlock {
    BlockId id;
    int valid_len;  // tokens that some sequence reads
  };

  DecodeArgs args_;
  Memory k_cache_;
  Memory v_cache_;
  std::vector<std::uint8_t> q_;
  std::vector<std::uint8_t> out_;  // with a canary row at either end
  std::vector<std::int32_t> table_;
  std::vector<std::int32_t> seq_lens_;
  std::vector<TouchedBlock> blocks_;
};

}  // namespace quire::testing
