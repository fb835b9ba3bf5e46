#include "tools/bench/cell.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <memory>
#include <utility>

#include "tools/bench/check.h"
#include "tools/bench/interleave.h"

namespace quire::bench {
namespace {

// Quartiles of the pure read further apart than this say that something else
// used the memory or the cores.
constexpr double kQuietSpread = 0.15;

std::vector<Path> make_paths(
    const CacheData& data,
    std::int64_t rotation,
    const CellOptions& options,
    Device& device) {
  std::map<DType, std::shared_ptr<const DenseSets>> dense;
  const auto dense_sets = [&](DType dtype) {
    auto& sets = dense[dtype];
    if (sets == nullptr) {
      sets = std::make_shared<const DenseSets>(
          make_dense_sets(data, dtype, rotation, options.poll));
    }
    return sets;
  };
  std::vector<Path> paths;
  for (const std::string& name : options.paths) {
    options.poll();
    if (name == "dense") {
      paths.push_back(
          make_dense_path(data, name, dense_sets(data.shape().q_dtype)));
    } else if (name == "dense_best") {
      paths.push_back(make_dense_path(
          data, name, dense_sets(fastest_dense_dtype(data, options.poll))));
    } else if (name == "gather") {
      paths.push_back(make_gather_path(data));
    } else {
      paths.push_back(make_fused_path(data, device.fused_path()));
      paths.push_back(device.make_kernel_path(data));
    }
  }
  return paths;
}

struct CheckedPath {
  const Path* path;
  Check check;
};

// How often the counters of `ran` must have moved while `timed` were timed.
std::int64_t expected_count(
    const std::vector<CheckedPath>& timed,
    std::span<const Series> times,
    const std::string& ran) {
  std::int64_t count = 0;
  for (std::size_t i = 0; i < timed.size(); ++i) {
    const Path& path = *timed[i].path;
    if (path.must_run == ran && path.uncounted != ran) {
      count +=
          path.steps * (static_cast<std::int64_t>(times[i].seconds.size()) +
                        kWarmUpIterations);
    }
  }
  return count;
}

std::string whole(double value) {
  return std::to_string(std::llround(value));
}

}  // namespace

void CellResult::append(CellResult other) {
  const auto move_all = [](auto& from, auto& to) {
    to.insert(
        to.end(),
        std::make_move_iterator(from.begin()),
        std::make_move_iterator(from.end()));
  };
  move_all(other.rows, rows);
  move_all(other.refusals, refusals);
  move_all(other.notes, notes);
}

CellResult measure(
    const CacheData& data,
    const std::vector<Path>& paths,
    std::int64_t read_bytes,
    const CellOptions& options,
    Device& device) {
  const Shape& shape = data.shape();
  CellResult result;
  const auto refuse = [&](const Path& path, const std::string& reason) {
    result.refusals.push_back({shape, path.name, path.timing, reason});
  };

  const testing::Expected expected =
      expect_set(data, 0, device.rounding(), options.poll);
  std::vector<CheckedPath> timed;
  for (const Path& path : paths) {
    options.poll();
    Check check = check_path(path, 0, expected);
    if (check.refusal.empty()) {
      timed.push_back({&path, std::move(check)});
    } else {
      refuse(path, check.refusal);
    }
  }

  // One counter turns the sets for all paths: had each its own, one would read
  // what another has just left in the cache.
  std::map<std::int64_t, std::pair<std::size_t, std::size_t>>
      reads;  // [begin, end) of the tasks, by bytes
  std::vector<Task> tasks;
  std::vector<int> steps;
  int turn = 0;
  for (const CheckedPath& checked : timed) {
    tasks.emplace_back(
        [path = checked.path, &turn] { path->run(turn++ % path->num_sets); });
    steps.push_back(checked.path->steps);
  }
  for (const CheckedPath& checked : timed) {
    const std::int64_t bytes = kv_bytes(shape, checked.path->kv_dtype);
    if (!reads.contains(bytes)) {
      const std::size_t begin = tasks.size();
      for (Read& read : device.make_reads(read_bytes, bytes)) {
        tasks.push_back(std::move(read.run));
        steps.push_back(read.steps);
      }
      reads[bytes] = {begin, tasks.size()};
    }
  }
  const PathCounts before = path_counts();
  std::vector<Series> times =
      interleave(tasks, options.min_seconds, options.poll);
  const PathCounts after = path_counts();
  for (std::size_t i = 0; i < times.size(); ++i) {
    for (double& seconds : times[i].seconds) {
      seconds /= steps[i];
    }
  }
  const double multiply_add_rate = device.multiply_add_rate();

  double spread = 0.0;
  const auto best_read = [&](std::int64_t bytes) {
    const auto [begin, end] = reads[bytes];
    const auto best = std::min_element(
        times.begin() + static_cast<std::ptrdiff_t>(begin),
        times.begin() + static_cast<std::ptrdiff_t>(end),
        [](const Series& a, const Series& b) {
          return a.median() < b.median();
        });
    spread = std::max(spread, best->spread());
    return best->median();
  };

  bool is_counted = true;
  for (const std::string& name : {device.fused_path(), std::string("gather")}) {
    is_counted = is_counted && count_of(after, name) - count_of(before, name) ==
                                   expected_count(timed, times, name);
  }
  for (std::size_t i = 0; i < timed.size(); ++i) {
    const auto& [path, check] = timed[i];
    if (!is_counted && path->must_run != path->uncounted) {
      refuse(
          *path, "The counters say that another path ran while it was timed.");
      continue;
    }
    const std::int64_t bytes = kv_bytes(shape, path->kv_dtype);
    const double read_seconds = best_read(bytes);
    result.rows.push_back({
        .shape = shape,
        .path = path->name,
        .ran = check.ran,
        .timing = path->timing,
        .dtype = path->q_dtype,
        .kv_dtype = path->kv_dtype,
        .seconds_median = times[i].median(),
        .seconds_min = times[i].min(),
        .iterations = static_cast<int>(times[i].seconds.size()),
        .kv_bytes = bytes,
        .read_seconds = read_seconds,
        .limit_seconds =
            std::max(read_seconds, multiply_adds(shape) / multiply_add_rate),
        .allocated_bytes = check.allocated_bytes,
        .max_abs_error = check.max_abs_error,
    });
  }
  if (spread > kQuietSpread) {
    result.notes.push_back(
        describe(shape) + ": the quartiles of the pure read lie " +
        whole(100 * spread) +
        " % of its median apart: the machine is too noisy for small "
        "differences.");
  }
  return result;
}

CellResult run_cell(const CellOptions& options, Device& device) {
  const Shape& shape = options.shape;
  const std::int64_t rotation = rotation_bytes(device);
  const CacheData data(shape, rotation);
  const std::vector<Path> paths = make_paths(data, rotation, options, device);
  CellResult result = measure(data, paths, rotation, options, device);
  const std::int64_t cache = device.cache_bytes();
  if (data.total_kv_bytes() < 2 * cache) {
    result.notes.push_back(
        describe(shape) + ": K and V rotate over " +
        whole(1e-6 * static_cast<double>(data.total_kv_bytes())) +
        " MB only, less than twice the last-level cache of " +
        whole(1e-6 * static_cast<double>(cache)) +
        " MB: part of them may come from there.");
  }
  return result;
}

}  // namespace quire::bench
