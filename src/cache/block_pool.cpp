#include "quire/block_pool.h"

#include <algorithm>
#include <bit>

#include "cache/invariant.h"
#include "common/error.h"

namespace quire {
namespace {

// Bits of run_len: runs of class c are from 2^(c-1) to 2^c - 1 long.
std::size_t size_class(int run_len) {
  return static_cast<std::size_t>(
      std::bit_width(static_cast<unsigned>(run_len)));
}

}  // namespace

BlockPool::BlockPool(int num_blocks) {
  require(
      num_blocks > 0,
      "BlockPool",
      "num_blocks must be positive; got ",
      num_blocks,
      ".");
  blocks_.resize(static_cast<std::size_t>(num_blocks));
  runs_.fill(kNone);
  insert_run(0, num_blocks);
  num_free_ = num_blocks;
}

int BlockPool::num_blocks() const {
  return static_cast<int>(blocks_.size());
}

int BlockPool::num_free() const {
  return num_free_;
}

int BlockPool::num_used() const {
  return num_blocks() - num_free_ - num_pending_;
}

int BlockPool::num_pending() const {
  return num_pending_;
}

std::optional<BlockId> BlockPool::allocate(
    std::optional<BlockId> previous,
    int num_wanted) {
  if (previous) {
    require_used(*previous, "allocate");
  }
  require(
      num_wanted > 0,
      "allocate",
      "num_wanted must be positive; got ",
      num_wanted,
      ".");
  if (num_free_ == 0) {
    return std::nullopt;
  }
  if (previous && is_free(*previous + 1)) {
    const BlockId run = *previous + 1;
    take(run, run);
    return run;
  }
  // A run that does not begin the pool has a neighbour below that may want to
  // grow into it: leave it half of what this sequence does not need now.
  const BlockId run = runs_[std::bit_width(nonempty_classes_) - 1U];
  const int spare_len = std::max(at(run).run_len - num_wanted, 0);
  const BlockId block = run == 0 ? run : run + spare_len / 2;
  take(run, block);
  return block;
}

void BlockPool::acquire(BlockId block) {
  require_used(block, "acquire");
  ++at(block).ref_count;
}

void BlockPool::release(BlockId block) {
  require_used(block, "release");
  Block& b = at(block);
  if (--b.ref_count > 0) {
    return;
  }
  if (!step_in_flight()) {
    make_free(block);
    return;
  }
  b.state = State::Pending;
  b.step = begun_step_;
  b.next = kNone;
  (pending_back_ == kNone ? pending_front_ : at(pending_back_).next) = block;
  pending_back_ = block;
  ++num_pending_;
}

int BlockPool::ref_count(BlockId block) const {
  require_id(block, "ref_count");
  return at(block).ref_count;
}

int BlockPool::written_len(BlockId block) const {
  require_id(block, "written_len");
  return at(block).written_len;
}

void BlockPool::set_written_len(BlockId block, int written_len) {
  require_used(block, "set_written_len");
  require(
      written_len >= 0,
      "set_written_len",
      "written_len must not be negative; got ",
      written_len,
      ".");
  at(block).written_len = written_len;
}

std::int64_t BlockPool::begin_step() {
  return ++begun_step_;
}

void BlockPool::complete_step(std::int64_t step) {
  require(
      step > 0 && step <= begun_step_,
      "complete_step",
      "step must be one that begin_step() returned, from 1 to ",
      begun_step_,
      "; got ",
      step,
      ".");
  completed_step_ = std::max(completed_step_, step);
  while (pending_front_ != kNone && at(pending_front_).step <= step) {
    const BlockId block = pending_front_;
    pending_front_ = at(block).next;
    --num_pending_;
    make_free(block);
  }
  if (pending_front_ == kNone) {
    pending_back_ = kNone;
  }
}

bool BlockPool::step_in_flight() const {
  return completed_step_ < begun_step_;
}

BlockPool::Block& BlockPool::at(BlockId block) {
  return blocks_[static_cast<std::size_t>(block)];
}

const BlockPool::Block& BlockPool::at(BlockId block) const {
  return blocks_[static_cast<std::size_t>(block)];
}

bool BlockPool::is_free(BlockId block) const {
  return block >= 0 && block < num_blocks() && at(block).state == State::Free;
}

void BlockPool::require_id(BlockId block, const char* op) const {
  require(
      block >= 0 && block < num_blocks(),
      op,
      "block must be from 0 to ",
      num_blocks() - 1,
      "; got ",
      block,
      ".");
}

void BlockPool::require_used(BlockId block, const char* op) const {
  require_id(block, op);
  require(
      at(block).state == State::Used,
      op,
      "block must be one that is allocated and not yet released; got ",
      block,
      ".");
}

void BlockPool::insert_run(BlockId begin, int run_len) {
  const std::size_t size = size_class(run_len);
  BlockId& head = runs_[size];
  Block& first = at(begin);
  first.run_len = run_len;
  at(begin + run_len - 1).run_len = run_len;
  first.prev = kNone;
  first.next = head;
  if (head != kNone) {
    at(head).prev = begin;
  }
  head = begin;
  nonempty_classes_ |= 1U << size;
}

void BlockPool::remove_run(BlockId begin) {
  const Block& first = at(begin);
  const std::size_t size = size_class(first.run_len);
  BlockId& head = runs_[size];
  (first.prev == kNone ? head : at(first.prev).next) = first.next;
  if (first.next != kNone) {
    at(first.next).prev = first.prev;
  }
  if (head == kNone) {
    nonempty_classes_ &= ~(1U << size);
  }
}

// Makes `block` of the free run that begins at `run` a used one; what is left
// of the run on either side goes back.
void BlockPool::take(BlockId run, BlockId block) {
  const BlockId end = run + at(run).run_len;
  remove_run(run);
  if (block > run) {
    insert_run(run, block - run);
  }
  if (block + 1 < end) {
    insert_run(block + 1, end - block - 1);
  }
  Block& b = at(block);
  b.state = State::Used;
  b.ref_count = 1;
  b.written_len = 0;
  --num_free_;
}

// Joins the block with the free runs that it touches.
void BlockPool::make_free(BlockId block) {
  at(block).state = State::Free;
  ++num_free_;
  BlockId begin = block;
  BlockId end = block + 1;
  if (is_free(block - 1)) {
    begin -= at(block - 1).run_len;
    remove_run(begin);
  }
  if (is_free(end)) {
    const BlockId right = end;
    end += at(right).run_len;
    remove_run(right);
  }
  insert_run(begin, end - begin);
}

void BlockPool::check_invariants() const {
  check_states();
  check_runs();
  check_queue();
}

void BlockPool::check_states() const {
  int counts[3] = {};
  for (BlockId block = 0; block < num_blocks(); ++block) {
    const Block& b = at(block);
    ++counts[static_cast<int>(b.state)];
    ensure(
        b.state == State::Used ? b.ref_count > 0 : b.ref_count == 0,
        "BlockPool",
        "a block is referenced exactly if it is used; block ",
        block,
        " has ",
        b.ref_count,
        " references.");
  }
  ensure(
      counts[static_cast<int>(State::Free)] == num_free() &&
          counts[static_cast<int>(State::Pending)] == num_pending() &&
          counts[static_cast<int>(State::Used)] == num_used(),
      "BlockPool",
      "the counts must be those of the blocks; got ",
      num_free(),
      " free, ",
      num_pending(),
      " pending, ",
      num_used(),
      " used.");
}

void BlockPool::check_runs() const {
  int num_listed = 0;
  for (std::size_t size = 0; size < kNumSizeClasses; ++size) {
    const BlockId head = runs_[size];
    ensure(
        (nonempty_classes_ >> size & 1U) == (head == kNone ? 0U : 1U),
        "BlockPool",
        "the bit of size class ",
        size,
        " must say whether it has a run.");
    BlockId prev = kNone;
    for (BlockId run = head; run != kNone; prev = run, run = at(run).next) {
      const int run_len = at(run).run_len;
      ensure(
          is_free(run) && run_len > 0 && run + run_len <= num_blocks() &&
              size_class(run_len) == size && at(run).prev == prev &&
              at(run + run_len - 1).run_len == run_len,
          "BlockPool",
          "the run at ",
          run,
          " must be in the list of its size and hold its length at both ends.");
      ensure(
          !is_free(run - 1) && !is_free(run + run_len),
          "BlockPool",
          "free runs must not touch; the one at ",
          run,
          " does.");
      for (BlockId block = run; block < run + run_len; ++block) {
        ensure(
            is_free(block),
            "BlockPool",
            "all blocks of a free run must be free; got ",
            block,
            ".");
      }
      num_listed += run_len;
      ensure(
          num_listed <= num_free_, "BlockPool", "a run is listed only once.");
    }
  }
  ensure(
      num_listed == num_free_,
      "BlockPool",
      "every free block must be in a run; got ",
      num_listed,
      " of ",
      num_free_,
      ".");
}

void BlockPool::check_queue() const {
  int num_queued = 0;
  std::int64_t step = completed_step_ + 1;
  BlockId last = kNone;
  for (BlockId block = pending_front_; block != kNone;
       last = block, block = at(block).next) {
    const Block& b = at(block);
    ensure(
        b.state == State::Pending && b.step >= step && b.step <= begun_step_,
        "BlockPool",
        "queued blocks must be pending and in the order of their steps, which "
        "are in flight; got block ",
        block,
        " with step ",
        b.step,
        ".");
    step = b.step;
    ++num_queued;
    ensure(
        num_queued <= num_pending_,
        "BlockPool",
        "a block is queued only once.");
  }
  ensure(
      num_queued == num_pending_ && last == pending_back_,
      "BlockPool",
      "every pending block must be queued; got ",
      num_queued,
      " of ",
      num_pending_,
      ".");
}

}  // namespace quire
