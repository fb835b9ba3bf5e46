#include "quire/block_pool.h"

#include <doctest/doctest.h>

#include <climits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

namespace quire {
namespace {

using doctest::Contains;

// Blocks over places where the next one is not the neighbour above.
double mean_run_len(const std::vector<BlockId>& blocks) {
  int num_runs = 1;
  for (std::size_t idx = 1; idx < blocks.size(); ++idx) {
    num_runs += blocks[idx] != blocks[idx - 1] + 1 ? 1 : 0;
  }
  return static_cast<double>(blocks.size()) / num_runs;
}

// Grows the sequence by one block, or says that the pool is full.
bool grow(BlockPool& pool, std::vector<BlockId>& blocks) {
  const auto previous =
      blocks.empty() ? std::nullopt : std::optional(blocks.back());
  const auto block = pool.allocate(previous);
  if (block) {
    blocks.push_back(*block);
  }
  return block.has_value();
}

void release_all(BlockPool& pool, std::vector<BlockId>& blocks) {
  for (const BlockId block : blocks) {
    pool.release(block);
  }
  blocks.clear();
}

TEST_CASE("block pool: every block is handed out once, then none") {
  for (const int num_blocks : {1, 2, 3, 31, 32, 33, 1000}) {
    CAPTURE(num_blocks);
    BlockPool pool(num_blocks);
    std::vector<bool> seen(static_cast<std::size_t>(num_blocks));
    for (int i = 0; i < num_blocks; ++i) {
      const auto block = pool.allocate();
      REQUIRE(block);
      CHECK_FALSE(seen.at(static_cast<std::size_t>(*block)));
      seen.at(static_cast<std::size_t>(*block)) = true;
      pool.check_invariants();
    }
    CHECK(pool.num_free() == 0);
    CHECK(pool.num_used() == num_blocks);
    CHECK_FALSE(pool.allocate());
    CHECK_FALSE(pool.allocate(0));
    pool.check_invariants();
    for (BlockId block = 0; block < num_blocks; ++block) {
      pool.release(block);
    }
    CHECK(pool.num_free() == num_blocks);
    pool.check_invariants();
  }
}

TEST_CASE("block pool: a block is free when its last reference is dropped") {
  BlockPool pool(4);
  const BlockId block = *pool.allocate();
  pool.acquire(block);
  CHECK(pool.ref_count(block) == 2);
  pool.release(block);
  CHECK(pool.ref_count(block) == 1);
  CHECK(pool.num_used() == 1);
  pool.release(block);
  CHECK(pool.ref_count(block) == 0);
  CHECK(pool.num_free() == 4);
}

TEST_CASE("block pool: wrong calls throw and change nothing") {
  BlockPool pool(4);
  const BlockId block = *pool.allocate();
  const BlockId freed = *pool.allocate();
  pool.release(freed);
  const BlockId pending = *pool.allocate(block);
  pool.begin_step();
  pool.release(pending);

  CHECK_THROWS_WITH_AS(
      pool.release(pending),
      "[release] block must be one that is allocated and not yet released; "
      "got 1.",
      std::invalid_argument);
  CHECK_THROWS_AS(pool.acquire(pending), std::invalid_argument);
  CHECK_THROWS_AS((void)pool.allocate(pending), std::invalid_argument);
  CHECK_THROWS_AS(pool.set_written_len(pending, 1), std::invalid_argument);
  CHECK_THROWS_AS(pool.set_written_len(block, -1), std::invalid_argument);
  CHECK_THROWS_AS(pool.release(freed), std::invalid_argument);
  CHECK_THROWS_AS(pool.acquire(freed), std::invalid_argument);
  CHECK_THROWS_AS((void)pool.allocate(freed), std::invalid_argument);
  CHECK_THROWS_AS((void)pool.allocate(block, 0), std::invalid_argument);
  for (const BlockId id : {-1, 4, INT_MIN, INT_MAX}) {
    CAPTURE(id);
    CHECK_THROWS_WITH_AS(
        pool.release(id), Contains("from 0 to 3; got"), std::invalid_argument);
    CHECK_THROWS_AS(pool.acquire(id), std::invalid_argument);
    CHECK_THROWS_AS((void)pool.allocate(id), std::invalid_argument);
    CHECK_THROWS_AS((void)pool.ref_count(id), std::invalid_argument);
    CHECK_THROWS_AS((void)pool.written_len(id), std::invalid_argument);
  }
  for (const std::int64_t step : {-1, 0, 2}) {
    CHECK_THROWS_WITH_AS(
        pool.complete_step(step),
        Contains("from 1 to 1"),
        std::invalid_argument);
  }
  CHECK(pool.num_used() == 1);
  CHECK(pool.num_pending() == 1);
  CHECK(pool.num_free() == 2);
  pool.check_invariants();
  for (const int num_blocks : {0, -1, INT_MIN}) {
    CHECK_THROWS_WITH_AS(
        BlockPool{num_blocks},
        Contains("must be positive; got"),
        std::invalid_argument);
  }
}

TEST_CASE("block pool: what is released twice is not handed out twice") {
  BlockPool pool(3);
  const BlockId block = *pool.allocate();
  pool.release(block);
  CHECK_THROWS_AS(pool.release(block), std::invalid_argument);
  CHECK(pool.num_free() == 3);
  std::vector<BlockId> blocks;
  while (grow(pool, blocks)) {
  }
  CHECK(blocks == std::vector<BlockId>{0, 1, 2});
}

TEST_CASE("block pool: a new block is not written, whatever it held before") {
  BlockPool pool(1);
  const BlockId block = *pool.allocate();
  CHECK(pool.written_len(block) == 0);
  pool.set_written_len(block, 5);
  CHECK(pool.written_len(block) == 5);
  pool.release(block);
  CHECK(*pool.allocate() == block);
  CHECK(pool.written_len(block) == 0);
}

TEST_CASE("block pool: a released block waits for the steps in flight") {
  BlockPool pool(3);
  const BlockId first = *pool.allocate();
  const BlockId second = *pool.allocate(first);
  CHECK(pool.begin_step() == 1);
  pool.release(first);
  CHECK(pool.begin_step() == 2);
  pool.release(second);
  CHECK(pool.num_pending() == 2);
  CHECK(pool.num_used() == 0);
  CHECK(pool.num_free() == 1);
  CHECK(*pool.allocate() == 2);
  CHECK_FALSE(pool.allocate());
  pool.check_invariants();

  pool.complete_step(1);
  pool.check_invariants();
  CHECK(pool.num_pending() == 1);
  CHECK(pool.step_in_flight());
  CHECK(*pool.allocate() == first);
  CHECK_FALSE(pool.allocate());

  pool.complete_step(2);
  CHECK_FALSE(pool.step_in_flight());
  CHECK(pool.num_pending() == 0);
  CHECK(*pool.allocate() == second);
  pool.check_invariants();
  pool.release(second);
  CHECK(pool.num_free() == 1);  // no step in flight: at once
}

TEST_CASE("block pool: a later step's completion covers the earlier ones") {
  BlockPool pool(2);
  const BlockId block = *pool.allocate();
  pool.begin_step();
  pool.release(block);
  pool.begin_step();
  pool.complete_step(2);
  CHECK(pool.num_free() == 2);
  pool.complete_step(1);  // reported late, says nothing new
  CHECK(pool.num_free() == 2);
  CHECK_FALSE(pool.step_in_flight());
  pool.check_invariants();
}

TEST_CASE("block pool: one sequence gets the pool in ascending order") {
  BlockPool pool(100);
  std::vector<BlockId> blocks;
  while (grow(pool, blocks)) {
  }
  std::vector<BlockId> expected(100);
  std::iota(expected.begin(), expected.end(), 0);
  CHECK(blocks == expected);
}

TEST_CASE("block pool: a sequence starts where it has room") {
  BlockPool pool(100);
  std::vector<BlockId> first;
  for (int i = 0; i < 10; ++i) {
    grow(pool, first);
  }
  // 90 free blocks above the first sequence: it keeps half of what is over.
  CHECK(*pool.allocate(std::nullopt, 50) == 30);
  pool.release(30);
  CHECK(*pool.allocate(std::nullopt, 90) == 10);
  pool.release(10);
  CHECK(*pool.allocate(std::nullopt, 91) == 10);
  pool.release(10);
  CHECK(*pool.allocate() == 54);
  // In the middle of the larger of the two runs left.
  CHECK(*pool.allocate() == 77);
  // A sequence that cannot grow in place moves to the largest run.
  CHECK(*pool.allocate(first.back()) == 10);
  CHECK(*pool.allocate(first.back()) == 32);
}

TEST_CASE("block pool: sequences that grow in turns do not interleave") {
  for (const int num_seqs : {2, 48, 64, 100}) {
    CAPTURE(num_seqs);
    BlockPool pool(1 << 14);
    std::vector<std::vector<BlockId>> sequences(
        static_cast<std::size_t>(num_seqs));
    const int target = pool.num_blocks() * 3 / 4 / num_seqs * num_seqs;
    while (pool.num_used() < target) {
      for (auto& blocks : sequences) {
        REQUIRE(grow(pool, blocks));
      }
    }
    pool.check_invariants();
    double sum = 0;
    for (const auto& blocks : sequences) {
      sum += mean_run_len(blocks);
    }
    const double ideal = static_cast<double>(target) / num_seqs;
    const double mean = sum / num_seqs;
    MESSAGE(num_seqs, " sequences: mean run ", mean, " of ", ideal);
    // Halving runs is exact for powers of two; else some have half the room.
    CHECK(mean >= ((num_seqs & (num_seqs - 1)) == 0 ? ideal : ideal / 2));
  }
}

TEST_CASE("block pool: runs stay long after churn") {
  BlockPool pool(1 << 14);
  std::mt19937 random(7);
  const auto below = [&](int n) {
    return std::uniform_int_distribution<int>(0, n - 1)(random);
  };
  // 64 sequences of 1 to 256 blocks, half the pool on average, that grow in
  // turns; one that is done is replaced.
  std::vector<std::vector<BlockId>> sequences(64);
  std::vector<int> lengths;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    lengths.push_back(1 + below(256));
  }
  double num_blocks = 0;
  double num_runs = 0;
  for (int round = 0; round < 4000; ++round) {
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      auto& blocks = sequences[i];
      if (static_cast<int>(blocks.size()) == lengths[i]) {
        num_blocks += static_cast<double>(blocks.size());
        num_runs += static_cast<double>(blocks.size()) / mean_run_len(blocks);
        release_all(pool, blocks);
        lengths[i] = 1 + below(256);
      }
      REQUIRE(grow(pool, blocks));
    }
  }
  pool.check_invariants();
  MESSAGE("mean run ", num_blocks / num_runs, " of a mean length of 129");
  CHECK(num_blocks / num_runs > 32);
}

}  // namespace
}  // namespace quire
