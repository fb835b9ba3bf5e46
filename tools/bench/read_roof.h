// The memory roof of a cell: pure reads of as many bytes as its steps read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/cpu/roofs.h"

namespace quire::bench {

/**
 * Memory of its own to read, as large as what the paths rotate over. Reading
 * theirs would leave parts of it in the cache for them, and the other way
 * round.
 */
class ReadRoof {
 public:
  explicit ReadRoof(std::int64_t size_bytes);

  /** Reads the next `num_bytes`, of all the memory in turn. */
  void read(cpu::ReadLoop loop, std::int64_t num_bytes);

 private:
  std::size_t size_;
  std::size_t next_ = 0;
  std::unique_ptr<std::byte[]> memory_;
};

}  // namespace quire::bench
