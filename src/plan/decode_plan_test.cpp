#include "quire/decode_plan.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <stdexcept>
#include <vector>

using namespace quire;

namespace {

int working_splits(const DecodePlan& plan, const std::vector<int>& lens) {
  int sum = 0;
  for (const int seq_len : lens) {
    for (int split = 0; split < plan.num_splits; ++split) {
      const int begin = plan.begin_token(split, seq_len);
      sum += plan.begin_token(split + 1, seq_len) > begin || split == 0;
    }
  }
  return sum;
}

std::vector<int> random_lens(std::mt19937& random) {
  const int num_seqs = std::uniform_int_distribution<int>(1, 64)(random);
  const int max_len = 1 << std::uniform_int_distribution<int>(0, 17)(random);
  std::uniform_int_distribution<int> len(0, max_len);
  std::vector<int> lens;
  lens.reserve(static_cast<std::size_t>(num_seqs));
  for (int seq = 0; seq < num_seqs; ++seq) {
    lens.push_back(len(random));
  }
  return lens;
}

}  // namespace

TEST_CASE("splits cover every token exactly once") {
  std::mt19937 random(1);
  for (int run = 0; run < 300; ++run) {
    const auto lens = random_lens(random);
    const int max_len = *std::max_element(lens.begin(), lens.end());
    const DecodePlanRequest request{
        .num_seqs = static_cast<int>(lens.size()),
        .max_seq_len = max_len,
        .seq_lens = lens,
        .groups_per_split = run % 9 + 1,
        .num_splits = run % 3 == 0 ? run % 40 : 0};
    const DecodeDevice device{.num_cores = run % 80 + 1, .groups_per_core = 2};
    const DecodePlan plan = make_decode_plan(request, device);
    CAPTURE(run);
    CHECK(plan.split_size % kSplitGranule == 0);
    CHECK(plan.num_splits >= 1);
    CHECK(plan == make_decode_plan(request, device));
    for (const int seq_len : lens) {
      int next = 0;
      for (int split = 0; split < plan.num_splits; ++split) {
        CHECK(plan.begin_token(split, seq_len) == next);
        next = plan.begin_token(split + 1, seq_len);
        CHECK(next >= plan.begin_token(split, seq_len));
      }
      CHECK(next == seq_len);
    }
  }
}

TEST_CASE("a small batch fills one wave and no more") {
  // 1 sequence, 8 KV heads, 40 cores with 2 threadgroups each: 10 splits.
  const DecodeDevice device{.num_cores = 40, .groups_per_core = 2};
  const auto plan_for = [&](int num_seqs, int len) {
    return make_decode_plan(
        {.num_seqs = num_seqs, .max_seq_len = len, .groups_per_split = 8},
        device);
  };
  CHECK(plan_for(1, 16384).num_splits == 10);
  CHECK(plan_for(1, 1024).num_splits == 8);  // the granule: 128 tokens a split
  CHECK(plan_for(1, 128).num_splits == 2);
  CHECK(plan_for(1, 64).num_splits == 1);
  CHECK(plan_for(4, 4096).num_splits == 2);
  CHECK(plan_for(10, 4096).num_splits == 1);
  CHECK(plan_for(64, 16384).num_splits == 1);
  CHECK(plan_for(1, 0).num_splits == 1);
  CHECK(plan_for(0, 0).num_splits == 1);
}

TEST_CASE("one long sequence among short ones is cut to a fair share") {
  std::vector<int> lens(63, 1024);
  lens.push_back(65536);
  const DecodePlan plan = make_decode_plan(
      {.num_seqs = 64,
       .max_seq_len = 65536,
       .seq_lens = lens,
       .groups_per_split = 8},
      {.num_cores = 40, .groups_per_core = 2});
  // 130,048 tokens over 10 slots of 8 threadgroups: 13,005 tokens each.
  CHECK(plan.split_size == 13056);
  CHECK(plan.num_splits == 6);
}

TEST_CASE("known lengths are used to fill the wave") {
  const std::vector<int> lens = {8192, 64, 64, 64};
  const DecodePlan plan = make_decode_plan(
      {.num_seqs = 4,
       .max_seq_len = 8192,
       .seq_lens = lens,
       .groups_per_split = 8},
      {.num_cores = 40, .groups_per_core = 2});
  CHECK(working_splits(plan, lens) == 10);
  CHECK(plan.num_splits == 7);
}

TEST_CASE("a forced number of splits is rounded to what the granule allows") {
  const auto forced = [](int len, int num_splits) {
    return make_decode_plan(
               {.num_seqs = 1, .max_seq_len = len, .num_splits = num_splits},
               {})
        .num_splits;
  };
  CHECK(forced(1000, 1) == 1);
  CHECK(forced(1000, 4) == 4);
  CHECK(forced(1000, 100) == 16);
  CHECK(forced(10, 5) == 1);
  CHECK(forced(0, 5) == 1);
}

TEST_CASE("impossible requests are refused") {
  CHECK_THROWS_AS(
      make_decode_plan({.num_seqs = -1}, {}), std::invalid_argument);
  CHECK_THROWS_AS(
      make_decode_plan({.num_seqs = 1, .groups_per_split = 0}, {}),
      std::invalid_argument);
  const std::vector<int> lens = {1, 2};
  CHECK_THROWS_AS(
      make_decode_plan({.num_seqs = 1, .seq_lens = lens}, {}),
      std::invalid_argument);
}
