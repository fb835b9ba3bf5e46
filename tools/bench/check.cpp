#include "tools/bench/check.h"

#include <algorithm>
#include <exception>
#include <limits>
#include <utility>
#include <vector>

namespace quire::bench {
namespace {

namespace mx = mlx::core;

constexpr std::pair<const char*, std::int64_t PathCounts::*> kCounters[] = {
    {"fused_cpu", &PathCounts::fused_cpu},
    {"fused_metal", &PathCounts::fused_metal},
    {"fused_cuda", &PathCounts::fused_cuda},
    {"fused_metal_host", &PathCounts::fused_metal_host},
    {"gather", &PathCounts::gather}};

// Leaves NaN in the memory that an output of this size is likely to get, so
// that a path which writes nothing does not show an earlier path's result.
void spoil_free_memory(mx::Shape shape, mx::Dtype dtype) {
  mx::eval(mx::full(
      std::move(shape), std::numeric_limits<float>::quiet_NaN(), dtype));
}

/** Sets check.max_abs_error and, if the output is wrong, check.refusal. */
void judge(const Path& path, const testing::Expected& expected, Check& check) {
  const std::vector<double> no_bound(
      expected.out.size(), std::numeric_limits<double>::infinity());
  const testing::ErrorStats stats = testing::compare(
      path.output(),
      path.q_dtype,
      expected.out,
      path.is_bounded ? expected.bound : no_bound);
  testing::Limits limits = testing::limits_of(stats);
  limits.rms = std::max(limits.rms, path.max_rms);
  limits.relative_rms = std::max(limits.relative_rms, path.max_rms);
  check.max_abs_error = stats.max_abs;
  check.refusal = testing::verdict(stats, limits);
}

}  // namespace

std::int64_t count_of(const PathCounts& counts, const std::string& name) {
  for (const auto& [counter, count] : kCounters) {
    if (name == counter) {
      return counts.*count;
    }
  }
  return 0;
}

std::string count_ran(
    const PathCounts& before,
    const PathCounts& after,
    const std::string& uncounted) {
  std::string ran;
  for (const auto& [name, count] : kCounters) {
    if (after.*count != before.*count) {
      ran += (ran.empty() ? "" : "+") + std::string(name);
    }
  }
  return ran.empty() ? uncounted : ran;
}

testing::Expected expect_set(
    const CacheData& data,
    int set,
    const testing::Rounding& rounding,
    const std::function<void()>& poll) {
  const DecodeArgs all = data.args(set);
  const DecodeParams& p = all.params;
  const std::int64_t q_bytes =
      std::int64_t{p.num_q_heads} * p.head_dim *
      static_cast<std::int64_t>(dtype_bytes(all.q_dtype));
  testing::Expected expected;
  for (int seq = 0; seq < p.num_seqs; ++seq) {
    poll();
    DecodeArgs one = all;
    one.params.num_seqs = 1;
    one.q = static_cast<const std::byte*>(all.q) + seq * q_bytes;
    one.block_table += std::int64_t{seq} * p.max_blocks_per_seq;
    one.seq_lens += seq;
    const testing::Expected row = testing::expect(one, rounding);
    expected.out.insert(expected.out.end(), row.out.begin(), row.out.end());
    expected.bound.insert(
        expected.bound.end(), row.bound.begin(), row.bound.end());
  }
  return expected;
}

Check check_path(const Path& path, int set, const testing::Expected& expected) {
  Check check;
  const PathCounts before = path_counts();
  try {
    spoil_free_memory(
        {static_cast<int>(expected.out.size())}, mlx_dtype(path.q_dtype));
    mx::reset_peak_memory();
    const std::size_t active = mx::get_active_memory();
    path.run(set);
    const std::size_t peak = mx::get_peak_memory();
    check.allocated_bytes =
        static_cast<std::int64_t>(peak > active ? peak - active : 0);
    check.ran = count_ran(before, path_counts(), path.uncounted);
    judge(path, expected, check);
  } catch (const std::exception& error) {
    check.refusal = error.what();
  }
  if (check.refusal.empty() && check.ran != path.must_run) {
    check.refusal = path.must_run + " must run; " + check.ran + " did.";
  }
  return check;
}

}  // namespace quire::bench
