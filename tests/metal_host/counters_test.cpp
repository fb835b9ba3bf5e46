// What the shipped kernels load, store and compute, counted and compared with
// what their design says, exactly: a counter that is one off is a wrong loop.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "host_case.h"
#include "lockstep.h"

using namespace quire;
using namespace quire::metal_host;

namespace {

int log2_of(int x) {
  int result = 0;
  for (; x > 1; x /= 2) {
    ++result;
  }
  return result;
}

lockstep::Counters operator-(
    const lockstep::Counters& a,
    const lockstep::Counters& b) {
  return {
      a.reductions - b.reductions,
      a.shuffles - b.shuffles,
      a.votes - b.votes,
      a.products - b.products,
      a.exps - b.exps,
      a.threadgroup_barriers - b.threadgroup_barriers,
      a.simdgroup_barriers - b.simdgroup_barriers,
      a.threadgroup_loads - b.threadgroup_loads,
      a.threadgroup_stores - b.threadgroup_stores};
}

// The shape's arithmetic, as paged_decode.metal names it, or
// paged_decode_matrix.h, where the two differ.
struct Design {
  const HostCase& c;
  metal::DecodeVariant v;
  int kv_bytes = static_cast<int>(dtype_bytes(c.kv_dtype));
  int elems = c.head_dim / v.lanes;
  int words = elems * kv_bytes / 4;
  int head_lanes = v.matrix ? 1 : v.lanes / v.heads;
  int count = std::min(v.rows, head_lanes);
  int scores = v.matrix ? 2 : v.rows / count;
  int copies = head_lanes / count;
  int row_groups = 32 / v.lanes;
  int slices = v.num_head_slices(c.group_size);
  int token_simdgroups = v.simdgroups / v.head_parts;

  // Of q, by each lane.
  int q_elems() const {
    return (v.matrix ? 2 : v.heads) * elems;
  }
  // Lane-wide shuffles of one step: the sums' reduce-scatter, the maximum, a
  // weight for each row and head.
  int sum_shuffles() const {
    int halvings = 0;
    for (int live = v.heads * count; live > 1;) {
      halvings += live /= 2;
    }
    return scores * (halvings + log2_of(copies));
  }
  int step_shuffles() const {
    return v.matrix ? 2
                    : sum_shuffles() + log2_of(head_lanes / copies) +
                          v.heads * v.rows;
  }
  // Of a step in which a maximum grows: with matrices, maxima of two columns
  // and a transpose.
  int rescale_shuffles() const {
    return v.matrix ? 2 * 3 + 2 : v.heads;
  }
  int rescale_exps() const {
    return v.matrix ? 2 : 1;
  }
  // Of the merge of a simdgroup's lanes at its end.
  int end_shuffles() const {
    return v.matrix ? 2 * 3
                    : log2_of(head_lanes / copies) + 2 * log2_of(row_groups) +
                          v.heads + v.heads * elems * log2_of(row_groups);
  }
  int end_exps() const {
    return v.matrix ? 0 : 1;
  }
  // 8 x 8 x 8, of one step: K and V.
  int step_products() const {
    return v.matrix ? 2 * words : 0;
  }
  int passes() const {
    int pass = v.heads;
    while (pass > 1 && v.simdgroups * pass * c.head_dim > 4096) {
      pass /= 2;
    }
    return v.heads / pass;
  }
};

struct Work {
  std::uint64_t tokens = 0;         // of all sequences
  std::uint64_t steps = 0;          // of all simdgroups
  std::uint64_t table_entries = 0;  // read by all simdgroups
  std::uint64_t partial_rows = 0;   // splits with tokens, times query heads
  std::uint64_t threadgroups = 0;
};

Work count_work(const Design& d, const DecodePlan& plan, int width) {
  const HostCase& c = d.c;
  Work work;
  const int step = d.v.step_size();
  const int steps_a_split = plan.split_size / step;
  for (const int seq_len : c.seq_lens) {
    work.tokens += static_cast<std::uint64_t>(seq_len);
    for (int split = 0; split < plan.num_splits; ++split) {
      work.partial_rows += seq_len > split * plan.split_size;
      for (int sg = 0; sg < d.token_simdgroups; ++sg) {
        const int begin = split * steps_a_split + sg;
        int end = (seq_len + step - 1) / step;
        if (split + 1 < plan.num_splits) {
          end = std::min(end, (split + 1) * steps_a_split);
        }
        const int steps = begin < end ? (end - begin + d.token_simdgroups - 1) /
                                            d.token_simdgroups
                                      : 0;
        work.steps += static_cast<std::uint64_t>(steps);
        work.table_entries += begin * step / c.block_size < width;
        work.table_entries +=
            static_cast<std::uint64_t>(std::max(0, steps - 1));
      }
    }
  }
  const auto simdgroups_a_token =
      static_cast<std::uint64_t>(c.num_kv_heads * d.slices * d.v.head_parts);
  work.steps *= simdgroups_a_token;
  work.table_entries *= simdgroups_a_token;
  work.partial_rows *=
      static_cast<std::uint64_t>(c.num_kv_heads * c.group_size);
  work.threadgroups = static_cast<std::uint64_t>(c.num_kv_heads * d.slices) *
                      c.seq_lens.size() *
                      static_cast<std::uint64_t>(plan.num_splits);
  return work;
}

// Returns whether the case's kernels are compiled in.
bool check_counters(const HostCase& c) {
  CAPTURE(c);
  HostProblem problem(c);
  const Design d{
      c,
      metal::default_variant(c.q_dtype, c.kv_dtype, c.head_dim, c.group_size)};
  metal::DecodeLaunch launch = make_launch(problem.args());
  if (!is_compiled_in(launch)) {
    return false;
  }
  const DecodePlan plan = make_decode_plan(
      {.num_seqs = static_cast<int>(c.seq_lens.size()),
       .max_seq_len = *std::max_element(c.seq_lens.begin(), c.seq_lens.end()),
       .num_splits = c.num_splits},
      {});
  REQUIRE(launch.kernels[0].num_threadgroups[1] == plan.num_splits);
  const bool combines = launch.kernels.size() == 2;
  launch.kernels.resize(1);
  problem.watch(launch);
  const auto before = lockstep::counters();
  REQUIRE_NOTHROW(problem.run(launch));
  const auto ops = lockstep::counters() - before;
  const Work work = count_work(d, plan, problem.params().max_blocks_per_seq);
  const auto k = lockstep::traffic("k");
  const auto v = lockstep::traffic("v");
  const auto q = lockstep::traffic("q");
  const auto out = lockstep::traffic("out");
  const auto workspace = lockstep::traffic("workspace");

  const auto u64 = [](auto x) { return static_cast<std::uint64_t>(x); };
  const std::uint64_t simdgroups = work.threadgroups * u64(d.v.simdgroups);
  const std::uint64_t kv_once =
      work.tokens * u64(c.num_kv_heads * c.head_dim * d.kv_bytes);
  const std::uint64_t row_reads =
      work.tokens * u64(c.num_kv_heads * d.slices * d.v.head_parts);
  const std::uint64_t rows =
      c.seq_lens.size() * u64(c.num_kv_heads * c.group_size);
  for (const auto& cache : {k, v}) {
    CHECK(cache.distinct_load_bytes == kv_once);
    CHECK(cache.load_bytes == kv_once * u64(d.slices * d.v.head_parts));
    CHECK(cache.loads[16] == row_reads * u64(d.v.lanes * (d.words / 4)));
    CHECK(cache.loads[8] == row_reads * u64(d.v.lanes * (d.words >> 1 & 1)));
    CHECK(cache.loads[4] == row_reads * u64(d.v.lanes * (d.words & 1)));
    CHECK(cache.loads[2] == 0);
  }
  CHECK(lockstep::traffic("table").load_bytes == work.table_entries * 128);
  CHECK(
      q.load_bytes ==
      simdgroups * u64(32 * d.q_elems()) * dtype_bytes(c.q_dtype));
  const std::uint64_t out_bytes =
      rows * u64(c.head_dim) * dtype_bytes(c.q_dtype);
  CHECK(q.distinct_load_bytes == out_bytes);
  CHECK(out.store_bytes == (combines ? 0 : out_bytes));
  CHECK(
      workspace.store_bytes == (combines
                                    ? work.partial_rows * u64(c.head_dim) * 4 +
                                          rows * u64(plan.num_splits) * 4
                                    : 0));
  CHECK(workspace.load_bytes == 0);

  CHECK(ops.reductions == 0);
  CHECK(ops.votes == 32 * work.steps);
  CHECK(ops.simdgroup_barriers == 0);
  CHECK(
      ops.threadgroup_barriers == simdgroups * u64(32 * (2 * d.passes() - 1)));
  CHECK(ops.products == 32 * work.steps * u64(d.step_products()));
  // Exponentials: of the scores, of a simdgroup's lanes at their end, of the
  // merge of simdgroups; the rest are rescales, which cost shuffles too.
  const std::uint64_t merge_exps =
      rows * u64(plan.num_splits * (c.head_dim / 4) * d.token_simdgroups);
  const std::uint64_t fixed_exps = 32 * u64(d.scores) * work.steps +
                                   32 * simdgroups * u64(d.end_exps()) +
                                   merge_exps;
  REQUIRE(ops.exps >= fixed_exps);
  const std::uint64_t rescale_exps = 32 * u64(d.rescale_exps());
  CHECK((ops.exps - fixed_exps) % rescale_exps == 0);
  const std::uint64_t rescales = (ops.exps - fixed_exps) / rescale_exps;
  CHECK(rescales <= work.steps);
  CHECK(
      ops.shuffles == 32 * (work.steps * u64(d.step_shuffles()) +
                            rescales * u64(d.rescale_shuffles()) +
                            simdgroups * u64(d.end_shuffles())));
  CHECK(
      lockstep::threadgroup_bytes() ==
      u64(launch.kernels[0].threadgroup_bytes));
  return true;
}

struct Floor {
  DType kv_dtype;
  int head_dim, group_size;
  double kv_reads;                    // of each byte
  double loads_16, loads_8, loads_4;  // lane-wide, K and V, a (token, KV head)
  double shuffles, exps;
};

// What a loop must at least be as good as: up to 4 heads, and at head_dim 256,
// the design study's table; else what matrices made of it.
constexpr Floor kFloors[] = {
    {DType::Float16, 64, 1, 1, 0.5, 0, 0, 0.75, 0.125},
    {DType::Float16, 64, 2, 1, 0.5, 0, 0, 1.125, 0.125},
    {DType::Float16, 64, 4, 1, 0.5, 0, 0, 2.0, 0.125},
    {DType::Float16, 64, 8, 1, 0.5, 0, 0, 0.25, 0.25},
    {DType::Float16, 80, 1, 1, 0.5, 0, 0.5, 0.75, 0.125},
    {DType::Float16, 80, 4, 1, 0.5, 0, 0.5, 2.0, 0.125},
    {DType::Float16, 80, 8, 1, 0.5, 0.25, 0, 0.25, 0.25},
    {DType::Float16, 96, 1, 1, 0.5, 0.5, 0, 0.75, 0.125},
    {DType::Float16, 96, 4, 1, 0, 1, 1, 4.125, 0.125},
    {DType::Float16, 96, 8, 1, 0.75, 0, 0, 0.25, 0.25},
    {DType::Float16, 128, 1, 1, 1, 0, 0, 1.375, 0.125},
    {DType::Float16, 128, 2, 1, 1, 0, 0, 2.25, 0.125},
    {DType::Float16, 128, 3, 1, 1, 0, 0, 4.125, 0.125},
    {DType::Float16, 128, 4, 1, 1, 0, 0, 4.125, 0.125},
    {DType::Float16, 128, 8, 1, 1, 0, 0, 0.25, 0.25},
    {DType::Float16, 256, 1, 1, 2, 0, 0, 3.0, 0.25},
    {DType::Float16, 256, 2, 1, 2, 0, 0, 4.75, 0.25},
    {DType::Float16, 256, 4, 1, 2, 0, 0, 8.5, 0.25},
    {DType::Float16, 256, 8, 2, 4, 0, 0, 17.0, 0.5},
};

}  // namespace

TEST_CASE("counters follow from the design, exactly") {
  int num_cases = 0;
  for (const DType kv : {DType::Float16, DType::Float32}) {
    for (const int head_dim : metal::kHeadDims) {
      for (const int group_size : {1, 2, 3, 4, 7, 8, 16}) {
        HostCase c{
            .q_dtype = kv,
            .kv_dtype = kv,
            .head_dim = head_dim,
            .group_size = group_size};
        c.block_size = group_size == 7 ? 8 : 32;
        c.num_kv_heads = group_size == 4 ? 2 : 1;
        c.seq_lens = {1, 131, 0, 32};
        c.num_splits = group_size % 2 == 0 ? 3 : 1;
        num_cases += check_counters(c);
      }
    }
  }
  MESSAGE(num_cases << " cases");
  CHECK(num_cases > 0);
}

TEST_CASE("counters with q of another type") {
  for (const DType q : {DType::BFloat16, DType::Float32}) {
    for (const int group_size : {1, 4, 8}) {
      HostCase c{
          .q_dtype = q,
          .head_dim = 80,
          .group_size = group_size,
          .seq_lens = {77, 257}};
      c.num_splits = 2;
      check_counters(c);
    }
  }
}

TEST_CASE("a loop iteration costs no more than it did") {
  std::printf(
      "head_dim group | K/V bytes  loads 16 B  8 B  4 B | shuffles  exp2 "
      "products | a (token, KV head) in the loop\n");
  for (const Floor& floor : kFloors) {
    HostCase c{
        .kv_dtype = floor.kv_dtype,
        .head_dim = floor.head_dim,
        .group_size = floor.group_size};
    const Design d{
        c,
        metal::default_variant(
            c.q_dtype, c.kv_dtype, c.head_dim, c.group_size)};
    const double parts = d.slices * d.v.head_parts;
    const double tokens = d.v.step_size();
    const double rows_a_load = d.row_groups;
    const double loads_16 = 2 * parts * (d.words / 4) / rows_a_load;
    const double loads_8 = 2 * parts * (d.words >> 1 & 1) / rows_a_load;
    const double loads_4 = 2 * parts * (d.words & 1) / rows_a_load;
    const double shuffles = parts * d.step_shuffles() / tokens;
    const double exps = parts * d.scores / tokens;
    const double products = parts * d.step_products() / tokens;
    std::printf(
        "%8d %5d | %8.2fx  %10.2f %4.2f %4.2f | %8.3f %5.3f %8.2f |\n",
        c.head_dim,
        c.group_size,
        parts,
        loads_16,
        loads_8,
        loads_4,
        shuffles,
        exps,
        products);
    CAPTURE(c);
    CHECK(parts <= floor.kv_reads);
    CHECK(
        loads_16 + loads_8 + loads_4 <=
        floor.loads_16 + floor.loads_8 + floor.loads_4);
    CHECK(shuffles <= floor.shuffles);
    CHECK(exps <= floor.exps);
  }
}
