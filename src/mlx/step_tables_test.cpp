#include "mlx/step_tables.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

namespace quire {
namespace {

struct Batch {
  Batch(int num_blocks, int num_seqs) : pool(num_blocks) {
    for (int i = 0; i < num_seqs; ++i) {
      sequences.emplace_back(pool, 32);
    }
  }
  std::vector<SequenceCache*> pointers() {
    std::vector<SequenceCache*> out;
    for (SequenceCache& sequence : sequences) {
      out.push_back(&sequence);
    }
    return out;
  }
  void append(int num_tokens) {
    for (SequenceCache& sequence : sequences) {
      REQUIRE(sequence.append(num_tokens));
    }
  }
  BlockPool pool;
  std::vector<SequenceCache> sequences;
};

void check_table(const mx::array& table, Batch& batch) {
  const auto* row = table.data<std::int32_t>();
  REQUIRE(table.shape(0) == static_cast<int>(batch.sequences.size()));
  REQUIRE(table.flags().row_contiguous);
  for (const SequenceCache& sequence : batch.sequences) {
    const auto ids = sequence.block_ids();
    REQUIRE(static_cast<int>(ids.size()) <= table.shape(1));
    CHECK(std::equal(ids.begin(), ids.end(), row));
    row += table.shape(1);
  }
}

TEST_CASE("step tables: widths last, and waste an eighth at most") {
  CHECK(StepTables::table_width(0) == 1);
  int num_widths = 0;
  for (int blocks = 1; blocks < 5000; ++blocks) {
    const int width = StepTables::table_width(blocks);
    CHECK(width >= blocks);
    CHECK(width - blocks <= blocks / 8);
    num_widths += width != StepTables::table_width(blocks + 1);
  }
  CHECK(num_widths < 100);
}

// 256 sequences of 16,384 tokens have tables of 131,072 entries.
TEST_CASE("step tables: a token for each of 256 long sequences is cheap") {
  Batch batch(256 * 600, 256);
  batch.append(16 * 1024);
  StepTables tables;
  { const mx::array first = tables.make(batch.pointers()); }
  CHECK(tables.entries_written() == 256 * 512);

  // The first new token opens a block in each sequence and makes the table
  // wider; the 64 blocks after that are entries of their own, one a sequence
  // every 32 steps, and once more for each buffer in turn.
  batch.append(1);
  std::optional<mx::array> in_flight = tables.make(batch.pointers());
  const std::int64_t before = tables.entries_written();
  constexpr int kSteps = 320;
  for (int i = 0; i < kSteps; ++i) {
    batch.append(1);
    const mx::array table = tables.make(batch.pointers());
    if (i % 64 == 0) {
      check_table(table, batch);
    }
    in_flight = table;  // the one before is free from here on
  }
  const std::int64_t written = tables.entries_written() - before;
  const std::int64_t rebuilt_once = 256 * 513;
  CHECK(written <= rebuilt_once + 2 * 256 * (kSteps / 32));
}

TEST_CASE("step tables: replaced entries are written again") {
  Batch batch(64, 3);
  batch.append(70);
  StepTables tables;
  check_table(tables.make(batch.pointers()), batch);
  std::int64_t written = tables.entries_written();
  CHECK(written == 9);

  SUBCASE("after a fork, copy-on-write") {
    const SequenceCache fork = batch.sequences[1].fork();
    const auto result = batch.sequences[1].append(1);
    REQUIRE((result && result->copy));
    check_table(tables.make(batch.pointers()), batch);
    CHECK(tables.entries_written() == written + 3);
  }
  SUBCASE("after truncate and append") {
    batch.sequences[0].truncate(10);
    const SequenceCache taker = [&] {
      SequenceCache s(batch.pool, 32);
      REQUIRE(s.append(32 * 5));
      return s;
    }();
    REQUIRE(batch.sequences[0].append(60));
    check_table(tables.make(batch.pointers()), batch);
  }
  SUBCASE("in another order") {
    std::swap(batch.sequences[0], batch.sequences[2]);
    check_table(tables.make(batch.pointers()), batch);
  }
  SUBCASE("with fewer rows, in the same buffer") {
    batch.sequences.pop_back();
    check_table(tables.make(batch.pointers()), batch);
    CHECK(tables.entries_written() == written);
  }
  SUBCASE("by a new sequence in the old one's place") {
    batch.sequences[2] = SequenceCache(batch.pool, 32);
    REQUIRE(batch.sequences[2].append(70));
    check_table(tables.make(batch.pointers()), batch);
    CHECK(tables.entries_written() == written + 3);
  }
}

TEST_CASE("step tables: a table that is in use never changes") {
  Batch batch(400, 2);
  batch.append(33);
  StepTables tables;
  std::vector<mx::array> kept;
  std::vector<std::vector<std::int32_t>> values;
  for (int i = 0; i < 12; ++i) {
    const mx::array table = tables.make(batch.pointers());
    check_table(table, batch);
    kept.push_back(table);
    const auto* data = table.data<std::int32_t>();
    values.emplace_back(data, data + table.size());
    std::swap(batch.sequences[0], batch.sequences[1]);
    batch.sequences[0].truncate(1);
    batch.append(33);
  }
  for (std::size_t i = 0; i < kept.size(); ++i) {
    CHECK(std::equal(
        values[i].begin(), values[i].end(), kept[i].data<std::int32_t>()));
  }
}

TEST_CASE("step tables: an op that reads a table keeps it from being reused") {
  Batch batch(64, 1);
  batch.append(40);
  StepTables tables;
  // The array of the step is gone; the op's input is what holds the buffer.
  const mx::array reader =
      mx::add(tables.make(batch.pointers()), mx::zeros({1, 2}, mx::int32));
  const BlockId first = batch.sequences[0].block_ids()[0];
  const SequenceCache other = batch.sequences[0].fork();
  batch.sequences[0].release();
  batch.append(40);
  check_table(tables.make(batch.pointers()), batch);
  CHECK(mx::slice(reader, {0, 0}, {1, 1}).item<std::int32_t>() == first);
}

}  // namespace
}  // namespace quire
