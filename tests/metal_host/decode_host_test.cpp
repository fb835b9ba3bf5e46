// The shipped decode kernels on the CPU: right, whatever the order in which
// threads run. Compiled once a flavour; checks the kernels that are linked in.
#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "host_case.h"
#include "support/conformance.h"

using namespace quire;
using namespace quire::metal_host;

namespace {

constexpr DType kDTypes[] = {DType::Float16, DType::BFloat16, DType::Float32};
constexpr bool kFull = QUIRE_METAL_HOST_FULL != 0;

// Runs the case if its kernels are there; returns whether they are.
bool check(
    const HostCase& c,
    const DecodeOptions& options = {},
    unsigned schedule = 0) {
  CAPTURE(c);
  HostProblem problem(c);
  const auto launch = make_launch(problem.args(), options);
  if (!is_compiled_in(launch)) {
    return false;
  }
  problem.watch(launch);
  CHECK_NOTHROW(problem.run(launch, schedule));
  CHECK(problem.max_error() <= error_bound(c));
  return true;
}

// Calls run(case) for each instantiation that is linked in: types, head dims,
// groups that fill it and groups that are padded.
template <typename Run>
void for_each_shape(const std::vector<int>& groups, Run run) {
  for (const DType q : kDTypes) {
    for (const DType kv : kDTypes) {
      for (const int head_dim : metal::kHeadDims) {
        for (const int group_size : groups) {
          run(HostCase{
              .q_dtype = q,
              .kv_dtype = kv,
              .head_dim = head_dim,
              .group_size = group_size});
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("ragged sequences in several splits") {
  int num_cases = 0;
  int num_runs = 0;
  for_each_shape({1, 2, 3, 4, 5, 7, 8}, [&](HostCase c) {
    const std::vector<int> all = {8, 16, 32, 64, 128, 256};
    const auto turn = static_cast<std::size_t>(num_cases++) % all.size();
    const auto blocks = kFull ? all : std::vector<int>{all[turn]};
    for (const int block_size : blocks) {
      c.block_size = block_size;
      c.num_kv_heads = 2;
      c.seq_lens = {1, block_size, block_size + 1, 0, 257, block_size - 1};
      c.num_splits = 4;
      num_runs += check(c, {}, c.seed);
    }
  });
  MESSAGE(num_runs << " runs");
  CHECK(num_runs > 0);
}

TEST_CASE("one split writes the output itself") {
  for_each_shape({1, 3, 4, 5, 8, 16}, [&](HostCase c) {
    c.block_size = c.group_size == 4 ? 64 : 16;
    c.seq_lens = {2 * c.block_size + 5, 0, 1};
    check(c, {}, 2);
  });
}

TEST_CASE("maxima that keep growing") {
  for_each_shape({2, 8, 16}, [&](HostCase c) {
    c.seq_lens = {200};
    c.num_splits = 3;
    c.q_scale = 30.0f;
    check(c);
  });
}

TEST_CASE("any group size") {
  for (const int group_size : {6, 9, 12, 24, 71}) {
    HostCase c{.group_size = group_size, .seq_lens = {70, 9}};
    c.num_splits = 2;
    check(c);
  }
}

TEST_CASE("many short sequences") {
  HostCase c{.head_dim = 64, .group_size = 3, .num_kv_heads = 3};
  for (int seq = 0; seq < 64; ++seq) {
    c.seq_lens.push_back(seq * 7 % 50);
  }
  check(c);
}

TEST_CASE("the order of threads does not change a bit") {
  for (const int group_size : {4, 8}) {
    HostCase c{.group_size = group_size, .num_kv_heads = 2};
    c.seq_lens = {300, 77};
    c.num_splits = 3;
    CAPTURE(c);
    std::vector<unsigned char> first;
    for (unsigned schedule = 0; schedule < (kFull ? 200u : 8u); ++schedule) {
      CAPTURE(schedule);
      HostProblem problem(c);
      const auto launch = make_launch(problem.args());
      if (!is_compiled_in(launch)) {
        break;
      }
      problem.watch(launch);
      REQUIRE_NOTHROW(problem.run(launch, schedule));
      if (first.empty()) {
        first = problem.result();
      }
      CHECK(problem.result() == first);
    }
  }
}

TEST_CASE("lengths around the planner's thresholds, on every path") {
  // 32 query heads, 8 KV heads: where the number of splits changes.
  HostCase c{.group_size = 4, .num_kv_heads = 8};
  const auto splits_of = [&](int seq_len) {
    c.seq_lens = {seq_len};
    c.num_splits = 0;
    HostProblem problem(c);
    return make_launch(problem.args()).kernels[0].num_threadgroups[1];
  };
  int num_thresholds = 0;
  for (int seq_len = 64; num_thresholds < (kFull ? 8 : 2); seq_len += 64) {
    REQUIRE(seq_len < 4096);
    if (splits_of(seq_len) == splits_of(seq_len + 1)) {
      continue;
    }
    ++num_thresholds;
    for (const int near : {seq_len - 1, seq_len, seq_len + 1}) {
      for (const int num_splits : {0, 1, 2, 64}) {
        c.seq_lens = {near};
        c.num_splits = num_splits;
        check(c);
      }
    }
  }
}

TEST_CASE("max_seq_len sizes the launch, never the result") {
  for (const int max_seq_len : {1, 64, 300, 100000}) {
    HostCase c{.group_size = 4, .seq_lens = {400, 3}};
    c.num_splits = 0;
    check(c, {.max_seq_len = max_seq_len});
  }
}

TEST_CASE("permuting the blocks does not change a bit") {
  for (const int group_size : {4, 8}) {
    HostCase c{.group_size = group_size, .num_kv_heads = 2};
    c.seq_lens = {150};
    HostProblem problem(c);
    const auto launch = make_launch(problem.args());
    if (!is_compiled_in(launch)) {
      continue;
    }
    problem.run(launch);
    const auto first = problem.result();
    problem.permute_blocks();
    problem.run(launch);
    CHECK(problem.result() == first);
  }
}

TEST_CASE("a head's row ends where the next head's begins") {
  // 80 and 96 elements do not fill 32 lanes evenly.
  for (const int head_dim : metal::kHeadDims) {
    for (const int group_size : {1, 4, 8}) {
      HostCase c{.head_dim = head_dim, .group_size = group_size};
      c.num_kv_heads = 3;
      c.seq_lens = {75};
      CAPTURE(c);
      HostProblem problem(c);
      const auto launch = make_launch(problem.args());
      if (!is_compiled_in(launch)) {
        continue;
      }
      problem.run(launch);
      const auto first = problem.result();
      problem.fill_head_with_nan(0);
      problem.fill_head_with_nan(2);
      problem.run(launch);
      const auto second = problem.result();
      const auto third = static_cast<std::ptrdiff_t>(first.size() / 3);
      CHECK(std::equal(
          first.begin() + third,
          first.begin() + 2 * third,
          second.begin() + third));
      CHECK(first != second);
    }
  }
}

TEST_CASE("every variant worth trying is right") {
  for (const int head_dim : {64, 128}) {
    for (const int group_size : {1, 2, 4, 8, 16}) {
      for (const auto& variant : metal::decode_variants(
               DType::Float16, DType::Float16, head_dim, group_size)) {
        HostCase c{.head_dim = head_dim, .group_size = group_size};
        c.seq_lens = {1, 257, 0, 90};
        c.num_splits = 2;
        check(c, {.variants = {variant}});
      }
    }
  }
}

TEST_CASE("pools of more than 2^31 elements") {
  const testing::Backend backend{
      .name = "metal_host",
      .rounding = {},
      .skip = [](const testing::DecodeCase&) { return ""; },
      .run = [](const DecodeArgs& args) { paged_decode(args); }};
  for (testing::DecodeCase c : testing::decode_cases()) {
    if (c.cost != testing::Cost::Sparse ||
        !is_compiled_in(make_launch(testing::CaseData(c).args()))) {
      continue;
    }
    CAPTURE(c.name);
    CHECK(testing::check_case(c, {&backend, 1}) == "");
    // Long enough for a simdgroup's second and third step.
    c.seq_lens = {180, 33};
    c.num_splits = 1;
    CHECK(testing::check_case(c, {&backend, 1}) == "");
  }
}

TEST_CASE("maxima that grow past a float's exponent") {
  for (const int group_size : {4, 8}) {
    HostCase c{.group_size = group_size, .seq_lens = {300}};
    c.q_scale = 150.0f;
    check(c);
  }
}
