#include "quire/sequence_cache.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <limits>
#include <utility>

#include "cache/invariant.h"
#include "cache/slot.h"
#include "common/error.h"

namespace quire {
namespace {

std::uint64_t next_table_version() {
  static std::atomic<std::uint64_t> version{0};
  return version.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

SequenceCache::SequenceCache(BlockPool& pool, int block_size)
    : pool_(&pool),
      block_size_(block_size),
      table_version_(next_table_version()) {
  require(
      block_size >= kMinBlockSize && block_size <= kMaxBlockSize &&
          std::has_single_bit(static_cast<unsigned>(block_size)),
      "SequenceCache",
      "block_size must be a power of two from ",
      kMinBlockSize,
      " to ",
      kMaxBlockSize,
      "; got ",
      block_size,
      ".");
}

SequenceCache::~SequenceCache() {
  release();
}

SequenceCache::SequenceCache(SequenceCache&& other) noexcept
    : pool_(other.pool_),
      block_size_(other.block_size_),
      seq_len_(std::exchange(other.seq_len_, 0)),
      block_ids_(std::exchange(other.block_ids_, {})),
      table_version_(
          std::exchange(other.table_version_, next_table_version())) {}

SequenceCache& SequenceCache::operator=(SequenceCache&& other) noexcept {
  if (this != &other) {
    release();
    pool_ = other.pool_;
    block_size_ = other.block_size_;
    seq_len_ = std::exchange(other.seq_len_, 0);
    block_ids_ = std::exchange(other.block_ids_, {});
    table_version_ = std::exchange(other.table_version_, next_table_version());
  }
  return *this;
}

int SequenceCache::seq_len() const {
  return seq_len_;
}

int SequenceCache::block_size() const {
  return block_size_;
}

BlockPool& SequenceCache::pool() const {
  return *pool_;
}

std::span<const BlockId> SequenceCache::block_ids() const {
  return block_ids_;
}

int SequenceCache::blocks_needed(int num_tokens) const {
  require_appendable(num_tokens);
  if (num_tokens == 0) {
    return 0;
  }
  const int last_idx = (seq_len_ + num_tokens - 1) / block_size_;
  const int num_new = last_idx + 1 - static_cast<int>(block_ids_.size());
  return num_new + (must_copy_tail() ? 1 : 0);
}

std::optional<AppendResult> SequenceCache::append(int num_tokens) {
  int num_needed = blocks_needed(num_tokens);
  if (num_needed > pool_->num_free()) {
    return std::nullopt;
  }
  AppendResult result{seq_len_, std::nullopt};
  if (num_tokens == 0) {
    return result;
  }
  // The only thing below that could fail; geometric, as push_back does it.
  const std::size_t max_size =
      block_ids_.size() + static_cast<std::size_t>(num_needed);
  if (max_size > block_ids_.capacity()) {
    block_ids_.reserve(std::max(max_size, 2 * block_ids_.capacity()));
  }

  if (must_copy_tail()) {
    const BlockId source = block_ids_.back();
    block_ids_.pop_back();
    append_block(num_needed--);
    result.copy = BlockCopy{source, block_ids_.back()};
    pool_->release(source);  // after the copy's block was taken: they differ
    table_version_ = next_table_version();
  }
  while (num_needed > 0) {
    append_block(num_needed--);
  }
  seq_len_ += num_tokens;
  mark_written(result.begin_token);
  return result;
}

SequenceCache SequenceCache::fork() const {
  SequenceCache child(*pool_, block_size_);
  child.block_ids_ = block_ids_;
  child.seq_len_ = seq_len_;
  for (const BlockId block : block_ids_) {
    pool_->acquire(block);
  }
  return child;
}

void SequenceCache::truncate(int seq_len) {
  require(
      seq_len >= 0 && seq_len <= seq_len_,
      "truncate",
      "seq_len must be from 0 to the sequence's length ",
      seq_len_,
      "; got ",
      seq_len,
      ".");
  keep(seq_len);
}

void SequenceCache::release() {
  keep(0);
}

std::int64_t SequenceCache::slot(int token) const {
  require(
      token >= 0 && token < seq_len_,
      "slot",
      "token must be from 0 to below the sequence's length ",
      seq_len_,
      "; got ",
      token,
      ".");
  const auto block_idx = static_cast<std::size_t>(token / block_size_);
  return make_slot(block_ids_[block_idx], block_size_, token % block_size_);
}

std::uint64_t SequenceCache::table_version() const {
  return table_version_;
}

void SequenceCache::require_appendable(int num_tokens) const {
  require(
      num_tokens >= 0 &&
          num_tokens <= std::numeric_limits<int>::max() - seq_len_,
      "append",
      "num_tokens must not be negative, and seq_len + num_tokens below 2^31; "
      "got ",
      num_tokens,
      " with seq_len ",
      seq_len_,
      ".");
}

void SequenceCache::keep(int seq_len) {
  const int num_kept =
      seq_len / block_size_ + (seq_len % block_size_ != 0 ? 1 : 0);
  seq_len_ = seq_len;
  if (block_ids_.size() == static_cast<std::size_t>(num_kept)) {
    return;
  }
  while (block_ids_.size() > static_cast<std::size_t>(num_kept)) {
    pool_->release(block_ids_.back());
    block_ids_.pop_back();
  }
  table_version_ = next_table_version();
}

int SequenceCache::tail_len() const {
  return seq_len_ % block_size_;
}

bool SequenceCache::must_copy_tail() const {
  if (tail_len() == 0) {
    return false;
  }
  const BlockId tail = block_ids_.back();
  return pool_->ref_count(tail) > 1 ||
         (pool_->step_in_flight() && pool_->written_len(tail) > tail_len());
}

void SequenceCache::append_block(int num_wanted) {
  const auto last =
      block_ids_.empty() ? std::nullopt : std::optional(block_ids_.back());
  block_ids_.push_back(*pool_->allocate(last, num_wanted));
}

void SequenceCache::mark_written(int begin_token) {
  const auto size = static_cast<std::size_t>(block_size_);
  auto block_idx = static_cast<std::size_t>(begin_token) / size;
  for (; block_idx < block_ids_.size(); ++block_idx) {
    const bool last = block_idx + 1 == block_ids_.size();
    pool_->set_written_len(
        block_ids_[block_idx],
        last && tail_len() != 0 ? tail_len() : block_size_);
  }
}

void SequenceCache::check_invariants() const {
  const std::int64_t num_slots =
      static_cast<std::int64_t>(block_ids_.size()) * block_size_;
  ensure(
      seq_len_ >= 0 && seq_len_ <= num_slots &&
          num_slots - seq_len_ < block_size_,
      "SequenceCache",
      "a sequence must have as many blocks as its tokens fill; got ",
      block_ids_.size(),
      " for seq_len ",
      seq_len_,
      ".");
  std::vector<BlockId> sorted = block_ids_;
  std::sort(sorted.begin(), sorted.end());
  ensure(
      std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(),
      "SequenceCache",
      "the blocks of a sequence must be different.");
  for (std::size_t idx = 0; idx < block_ids_.size(); ++idx) {
    const BlockId block = block_ids_[idx];
    ensure(
        pool_->ref_count(block) > 0,
        "SequenceCache",
        "a sequence must hold references to its blocks; block ",
        block,
        " has none.");
    const std::int64_t begin = static_cast<std::int64_t>(idx) * block_size_;
    const std::int64_t num_tokens =
        std::min<std::int64_t>(seq_len_ - begin, block_size_);
    ensure(
        pool_->written_len(block) >= num_tokens,
        "SequenceCache",
        "a token's slot must be written; block ",
        block,
        " has ",
        pool_->written_len(block),
        " written slots for ",
        num_tokens,
        " tokens.");
  }
}

std::optional<std::vector<AppendResult>> append_all(
    std::span<SequenceCache* const> sequences,
    std::span<const int> num_tokens) {
  require(
      sequences.size() == num_tokens.size(),
      "append_all",
      "num_tokens must have one number for each sequence; got ",
      num_tokens.size(),
      " for ",
      sequences.size(),
      " sequences.");
  std::vector<SequenceCache*> sorted(sequences.begin(), sequences.end());
  std::sort(sorted.begin(), sorted.end());
  require(
      std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(),
      "append_all",
      "sequences must be different.");
  std::vector<AppendResult> results;
  results.reserve(sequences.size());
  if (sequences.empty()) {
    return results;
  }
  BlockPool& pool = sequences.front()->pool();
  for (std::size_t idx = 0; idx < sequences.size(); ++idx) {
    require(
        &sequences[idx]->pool() == &pool,
        "append_all",
        "sequences must be of one pool.");
    sequences[idx]->require_appendable(num_tokens[idx]);
  }

  // An append that copies a shared tail block drops its reference to it, and
  // so may spare a later one the copy. Drop these references to count, and
  // take them back.
  std::vector<BlockId> dropped;
  dropped.reserve(sequences.size());
  std::int64_t num_needed = 0;
  for (std::size_t idx = 0; idx < sequences.size(); ++idx) {
    const SequenceCache& sequence = *sequences[idx];
    num_needed += sequence.blocks_needed(num_tokens[idx]);
    if (num_tokens[idx] > 0 && sequence.must_copy_tail() &&
        pool.ref_count(sequence.block_ids_.back()) > 1) {
      dropped.push_back(sequence.block_ids_.back());
      pool.release(dropped.back());
    }
  }
  for (const BlockId block : dropped) {
    pool.acquire(block);
  }
  if (num_needed > pool.num_free()) {
    return std::nullopt;
  }
  for (std::size_t idx = 0; idx < sequences.size(); ++idx) {
    results.push_back(*sequences[idx]->append(num_tokens[idx]));
  }
  return results;
}

}  // namespace quire
