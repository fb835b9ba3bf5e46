#include "quire/sequence_cache.h"

#include <doctest/doctest.h>

#include <array>
#include <climits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cache/slot.h"

namespace quire {
namespace {

using doctest::Contains;

std::vector<BlockId> ids(const SequenceCache& sequence) {
  return {sequence.block_ids().begin(), sequence.block_ids().end()};
}

TEST_CASE("sequence: tokens have the slots of ascending blocks") {
  BlockPool pool(8);
  SequenceCache sequence(pool, 16);
  CHECK(sequence.append(40) == AppendResult{0, std::nullopt});
  CHECK(sequence.seq_len() == 40);
  CHECK(ids(sequence) == std::vector<BlockId>{0, 1, 2});
  for (int token = 0; token < 40; ++token) {
    CHECK(sequence.slot(token) == token);
  }
  CHECK(sequence.append(8) == AppendResult{40, std::nullopt});
  CHECK(pool.num_used() == 3);
  CHECK(sequence.append(1) == AppendResult{48, std::nullopt});
  CHECK(ids(sequence) == std::vector<BlockId>{0, 1, 2, 3});
  sequence.check_invariants();
  for (const int token : {-1, 49, INT_MAX, INT_MIN}) {
    CHECK_THROWS_WITH_AS(
        (void)sequence.slot(token),
        Contains("length 49; got"),
        std::invalid_argument);
  }
}

TEST_CASE("slot: does not wrap at 2^31") {
  CHECK(make_slot(1 << 23, 256, 17) == (std::int64_t{1} << 31) + 17);
  CHECK(make_slot(INT_MAX, 8, 7) == std::int64_t{INT_MAX} * 8 + 7);
}

TEST_CASE("sequence: a bulk append takes an ascending run") {
  BlockPool pool(256);
  SequenceCache other(pool, 16);
  REQUIRE(other.append(20 * 16));
  SequenceCache prompt(pool, 16);
  REQUIRE(prompt.append(200 * 16));
  for (std::size_t idx = 1; idx < 200; ++idx) {
    CHECK(prompt.block_ids()[idx] == prompt.block_ids()[idx - 1] + 1);
  }
  // 36 blocks are over: 18 stay for the other sequence to grow into.
  CHECK(prompt.block_ids()[0] == 20 + 18);
}

TEST_CASE("sequence: wrong arguments throw and change nothing") {
  BlockPool pool(4);
  for (const int block_size : {-8, 0, 1, 4, 7, 24, 512, INT_MIN}) {
    CAPTURE(block_size);
    CHECK_THROWS_WITH_AS(
        SequenceCache(pool, block_size),
        Contains("power of two from 8 to 256"),
        std::invalid_argument);
  }
  SequenceCache sequence(pool, 16);
  REQUIRE(sequence.append(40));
  for (const int num_tokens : {-1, INT_MIN, INT_MAX, INT_MAX - 39}) {
    CHECK_THROWS_AS((void)sequence.append(num_tokens), std::invalid_argument);
    CHECK_THROWS_AS(
        (void)sequence.blocks_needed(num_tokens), std::invalid_argument);
  }
  for (const int seq_len : {41, -1, INT_MAX, INT_MIN}) {
    CHECK_THROWS_WITH_AS(
        sequence.truncate(seq_len),
        Contains("from 0 to the sequence's length 40; got"),
        std::invalid_argument);
  }
  CHECK(sequence.seq_len() == 40);
  CHECK(pool.num_used() == 3);
  CHECK_FALSE(sequence.append(INT_MAX - 40));
  sequence.check_invariants();
}

TEST_CASE("sequence: a full pool is a value and changes nothing") {
  BlockPool pool(2);
  SequenceCache sequence(pool, 16);
  CHECK(sequence.blocks_needed(33) == 3);
  CHECK_FALSE(sequence.append(33));
  CHECK(sequence.seq_len() == 0);
  CHECK(pool.num_free() == 2);
  REQUIRE(sequence.append(31));
  const std::uint64_t version = sequence.table_version();
  CHECK(sequence.append(1) == AppendResult{31, std::nullopt});
  CHECK_FALSE(sequence.append(1));
  CHECK(sequence.append(0) == AppendResult{32, std::nullopt});
  CHECK(sequence.seq_len() == 32);
  CHECK(sequence.table_version() == version);

  // A copy of the tail needs a block, too.
  sequence.truncate(20);
  SequenceCache fork = sequence.fork();
  CHECK(fork.blocks_needed(1) == 1);
  CHECK_FALSE(fork.append(1));
  CHECK(ids(fork) == ids(sequence));
  CHECK(fork.seq_len() == 20);
  CHECK(pool.ref_count(1) == 2);
  pool.check_invariants();
  fork.check_invariants();
}

TEST_CASE("sequence: an append copies a shared, partly filled tail only") {
  BlockPool pool(16);
  SequenceCache parent(pool, 16);
  REQUIRE(parent.append(40));
  const std::uint64_t parent_version = parent.table_version();
  SequenceCache child = parent.fork();
  CHECK(child.seq_len() == 40);
  CHECK(ids(child) == ids(parent));
  CHECK(pool.num_used() == 3);

  const std::uint64_t version = child.table_version();
  CHECK(version != parent_version);
  const auto result = child.append(30);
  REQUIRE(result);
  CHECK(result->begin_token == 40);
  REQUIRE(result->copy);
  CHECK(result->copy->source == parent.block_ids()[2]);
  CHECK(result->copy->destination == child.block_ids()[2]);
  CHECK(child.block_ids()[2] != parent.block_ids()[2]);
  CHECK(child.block_ids()[1] == parent.block_ids()[1]);
  CHECK(child.table_version() != version);
  CHECK(pool.num_used() == 3 + 1 + 2);

  // The parent is the tail's only owner now.
  CHECK(parent.append(1) == AppendResult{40, std::nullopt});
  CHECK(parent.table_version() == parent_version);
  parent.check_invariants();
  child.check_invariants();
}

TEST_CASE("sequence: nothing is copied at a block boundary") {
  BlockPool pool(8);
  SequenceCache parent(pool, 16);
  REQUIRE(parent.append(32));
  SequenceCache child = parent.fork();
  CHECK(child.append(1) == AppendResult{32, std::nullopt});
  CHECK(parent.append(1) == AppendResult{32, std::nullopt});
  CHECK(ids(child) == std::vector<BlockId>{0, 1, 2});
  CHECK(parent.block_ids()[2] != 2);
  CHECK(pool.num_used() == 4);
}

TEST_CASE("sequence: truncate frees exactly the blocks above") {
  struct Case {
    int seq_len;
    int num_kept;
  };
  for (const Case c :
       {Case{0, 0},
        {1, 1},
        {15, 1},
        {16, 1},
        {17, 2},
        {32, 2},
        {33, 3},
        {40, 3}}) {
    CAPTURE(c.seq_len);
    BlockPool pool(4);
    SequenceCache sequence(pool, 16);
    REQUIRE(sequence.append(40));
    const std::uint64_t version = sequence.table_version();
    sequence.truncate(c.seq_len);
    CHECK(sequence.seq_len() == c.seq_len);
    CHECK(pool.num_used() == c.num_kept);
    CHECK((sequence.table_version() == version) == (c.num_kept == 3));
    sequence.check_invariants();
    pool.check_invariants();
    REQUIRE(sequence.append(40 - c.seq_len));
    CHECK(ids(sequence) == std::vector<BlockId>{0, 1, 2});
  }
}

TEST_CASE("sequence: truncate below shared blocks, then append") {
  BlockPool pool(8);
  SequenceCache a(pool, 16);
  REQUIRE(a.append(40));
  SequenceCache b = a.fork();
  const std::vector<BlockId> before = ids(b);
  a.truncate(20);
  CHECK(pool.num_used() == 3);
  CHECK(pool.ref_count(2) == 1);
  const auto result = a.append(1);
  REQUIRE(result);
  REQUIRE(result->copy);  // block 1 is full for b, partly filled for a
  CHECK(result->copy->source == 1);
  CHECK(ids(b) == before);
  CHECK(b.seq_len() == 40);
  CHECK(pool.num_used() == 4);
  a.check_invariants();
  b.check_invariants();
}

TEST_CASE("sequence: a slot that a step in flight may read is not rewritten") {
  BlockPool pool(8);
  SequenceCache a(pool, 16);
  REQUIRE(a.append(10));
  const std::int64_t step = pool.begin_step();
  SUBCASE("appends go on in place") {
    CHECK(a.append(2) == AppendResult{10, std::nullopt});
  }
  SUBCASE("after truncate the tail is copied") {
    a.truncate(5);
    CHECK(a.append(1) == AppendResult{5, BlockCopy{0, 4}});
    CHECK(pool.num_pending() == 1);
    pool.complete_step(step);
    CHECK(pool.num_pending() == 0);
    a.truncate(3);
    CHECK(a.append(1) == AppendResult{3, std::nullopt});
  }
  SUBCASE("after the longest owner has gone the tail is copied") {
    SequenceCache b = a.fork();
    b.truncate(5);
    a.release();
    CHECK(b.append(1) == AppendResult{5, BlockCopy{0, 4}});
  }
  SUBCASE("after the step it is written in place") {
    a.truncate(5);
    pool.complete_step(step);
    CHECK(a.append(1) == AppendResult{5, std::nullopt});
    pool.begin_step();  // reads 6 tokens
    CHECK(a.append(1) == AppendResult{6, std::nullopt});
  }
}

TEST_CASE("sequence: release, move and destruction give each block back once") {
  BlockPool pool(8);
  {
    SequenceCache a(pool, 16);
    REQUIRE(a.append(20));
    const std::uint64_t version = a.table_version();
    SequenceCache b = std::move(a);
    CHECK(b.table_version() == version);
    // NOLINTBEGIN(bugprone-use-after-move): moved-from is documented as empty
    CHECK(a.table_version() != version);
    CHECK(a.seq_len() == 0);
    CHECK(a.block_ids().empty());
    CHECK(b.seq_len() == 20);
    CHECK(pool.num_used() == 2);
    a.release();
    a.check_invariants();
    CHECK(pool.num_used() == 2);
    REQUIRE(a.append(1));
    // NOLINTEND(bugprone-use-after-move)
    CHECK(pool.num_used() == 3);
    a = std::move(b);
    CHECK(pool.num_used() == 2);
    CHECK(a.seq_len() == 20);
    SequenceCache& alias = a;
    a = std::move(alias);
    CHECK(a.seq_len() == 20);
    SequenceCache c = a.fork();
    a.release();
    a.release();
    CHECK(a.seq_len() == 0);
    CHECK(pool.num_used() == 2);
    c.check_invariants();
  }
  CHECK(pool.num_used() == 0);
  CHECK(pool.num_free() == 8);
}

TEST_CASE("append_all: all sequences grow, or none") {
  BlockPool pool(5);
  SequenceCache a(pool, 16);
  REQUIRE(a.append(20));
  SequenceCache b = a.fork();
  SequenceCache c = a.fork();
  SequenceCache d(pool, 16);
  std::array sequences{&a, &b, &c, &d};

  // Two copies and one block; the last owner of the tail keeps it.
  CHECK_FALSE(append_all(sequences, std::array{1, 1, 1, 17}));
  CHECK(pool.num_used() == 2);
  CHECK(pool.ref_count(1) == 3);
  const auto results = append_all(sequences, std::array{1, 1, 1, 16});
  REQUIRE(results);
  CHECK(results->at(0).copy->source == 1);
  CHECK(results->at(1).copy->source == 1);
  CHECK_FALSE(results->at(2).copy);
  CHECK(results->at(3) == AppendResult{0, std::nullopt});
  CHECK(pool.num_free() == 0);
  for (const SequenceCache* sequence : sequences) {
    sequence->check_invariants();
  }
  pool.check_invariants();

  CHECK(append_all({}, {})->empty());
  BlockPool other_pool(1);
  SequenceCache other(other_pool, 16);
  std::array twice{&a, &b, &a};
  std::array mixed{&a, &other};
  std::array one{&a};
  CHECK_THROWS_AS(
      (void)append_all(twice, std::array{0, 0, 0}), std::invalid_argument);
  CHECK_THROWS_AS(
      (void)append_all(mixed, std::array{0, 0}), std::invalid_argument);
  CHECK_THROWS_AS(
      (void)append_all(one, std::array{0, 0}), std::invalid_argument);
  CHECK_THROWS_AS((void)append_all(one, std::array{-1}), std::invalid_argument);
}

TEST_CASE("sequence: versions of different tables are different") {
  BlockPool pool(4);
  std::uint64_t version = 0;
  {
    SequenceCache first(pool, 16);
    REQUIRE(first.append(1));
    version = first.table_version();
  }
  SequenceCache second(pool, 16);
  REQUIRE(second.append(1));
  CHECK(second.table_version() != version);
}

}  // namespace
}  // namespace quire
