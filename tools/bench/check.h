// What a path must show before it is timed: the right result, computed by what
// it claims to run.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "quire/runtime.h"
#include "support/compare.h"
#include "tools/bench/path.h"

namespace quire::bench {

/** The counter that a path's name stands for. */
std::int64_t count_of(const PathCounts& counts, const std::string& name);

/**
 * Which paths the library's counters saw between two snapshots ("fused_cpu";
 * several are joined by "+"); `uncounted` if none moved.
 */
std::string count_ran(
    const PathCounts& before,
    const PathCounts& after,
    const std::string& uncounted);

/** The reference's result for one set, and its bound for paths that round so;
 * calls `poll` between sequences. */
testing::Expected expect_set(
    const CacheData& data,
    int set,
    const testing::Rounding& rounding,
    const std::function<void()>& poll);

struct Check {
  double max_abs_error = 0;
  std::string ran;
  std::int64_t allocated_bytes = 0;  // MLX's alone, at the step's peak
  std::string refusal;  // why the path is not to be timed; empty: it is
};

/** Runs `path` once on `set` and judges it; what it throws is a refusal. */
Check check_path(const Path& path, int set, const testing::Expected& expected);

}  // namespace quire::bench
