#include "tools/bench/read_roof.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/isa.h"

namespace quire::bench {

ReadRoof::ReadRoof(std::int64_t size_bytes)
    : size_(static_cast<std::size_t>(size_bytes)),
      memory_(std::make_unique_for_overwrite<std::byte[]>(size_)) {
  // Untouched memory would all be one page of zeros.
  std::memset(memory_.get(), 1, size_);
}

void ReadRoof::read(cpu::ReadLoop loop, std::int64_t num_bytes) {
  auto left = static_cast<std::size_t>(num_bytes);
  while (left > 0) {
    const std::size_t count = std::min(left, size_ - next_);
    cpu::time_read(
        cpu::default_engine(),
        cpu::selected_isa(),
        loop,
        memory_.get() + next_,
        count);
    left -= count;
    next_ = (next_ + count) % size_;
  }
}

}  // namespace quire::bench
