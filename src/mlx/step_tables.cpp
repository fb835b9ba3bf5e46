#include "mlx/step_tables.h"

#include <algorithm>
#include <atomic>
#include <bit>

namespace quire {
namespace {

// Whether nothing but `storage` refers to its buffer.
bool is_unread(const mx::array& storage) {
  if (storage.data_shared_ptr().use_count() > 1) {
    return false;
  }
  // What the last reader did comes before what is written next.
  std::atomic_thread_fence(std::memory_order_acquire);
  return true;
}

}  // namespace

int StepTables::table_width(int max_blocks) {
  const auto blocks = static_cast<unsigned>(std::max(max_blocks, 1));
  const unsigned step = std::max(std::bit_floor(blocks) / 8, 1u);
  return static_cast<int>((blocks + step - 1) / step * step);
}

StepTables::Buffer& StepTables::take_buffer(int num_seqs, int width) {
  const auto rows = static_cast<std::size_t>(num_seqs);
  const auto fits = [&](const Buffer& b) {
    return b.width == width && b.rows.size() >= rows && is_unread(b.storage);
  };
  if (const auto found = std::find_if(buffers_.begin(), buffers_.end(), fits);
      found != buffers_.end()) {
    buffers_.splice(buffers_.begin(), buffers_, found);
    return buffers_.front();
  }
  const std::size_t bytes =
      rows * static_cast<std::size_t>(width) * sizeof(std::int32_t);
  buffers_.push_front(Buffer{
      .storage =
          mx::array(mx::allocator::malloc(bytes), {num_seqs, width}, mx::int32),
      .width = width,
      .rows = std::vector<Row>(rows)});
  if (buffers_.size() > kMaxBuffers) {
    buffers_.pop_back();  // its readers keep the memory
  }
  return buffers_.front();
}

void StepTables::update(
    Row& row,
    std::int32_t* entries,
    const SequenceCache& sequence) {
  const std::span<const BlockId> ids = sequence.block_ids();
  const bool only_grew = row.table_version == sequence.table_version();
  const std::size_t begin = only_grew ? row.num_entries : 0;
  std::copy(
      ids.begin() + static_cast<std::ptrdiff_t>(begin),
      ids.end(),
      entries + begin);
  entries_written_ += static_cast<std::int64_t>(ids.size() - begin);
  row = {sequence.table_version(), ids.size()};
}

mx::array StepTables::make(std::span<SequenceCache* const> sequences) {
  std::size_t max_blocks = 0;
  for (const SequenceCache* sequence : sequences) {
    max_blocks = std::max(max_blocks, sequence->block_ids().size());
  }
  const int num_seqs = static_cast<int>(sequences.size());
  const int width = table_width(static_cast<int>(max_blocks));
  Buffer& buffer = take_buffer(num_seqs, width);

  auto* const table = buffer.storage.data<std::int32_t>();
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    update(
        buffer.rows[i],
        table + i * static_cast<std::size_t>(width),
        *sequences[i]);
  }

  // A view with a reference of its own: that is what is_unread() counts.
  mx::array view({num_seqs, width}, mx::int32, nullptr, {});
  view.copy_shared_buffer(
      buffer.storage,
      buffer.storage.strides(),
      buffer.storage.flags(),
      view.size());
  view.set_status(mx::array::Status::available);
  return view;
}

}  // namespace quire
