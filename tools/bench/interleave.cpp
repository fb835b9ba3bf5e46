#include "tools/bench/interleave.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace quire::bench {
namespace {

constexpr int kRounds = 10;

double time_once(const Task& task) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  task();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

double Series::quantile(double share) const {
  std::vector<double> sorted = seconds;
  std::sort(sorted.begin(), sorted.end());
  const double position = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(
      sorted[below], sorted[above], position - static_cast<double>(below));
}

double Series::spread() const {
  return (quantile(0.75) - quantile(0.25)) / median();
}

std::vector<Series> interleave(
    std::span<const Task> tasks,
    double min_seconds,
    const std::function<void()>& poll) {
  for (int i = 0; i < kWarmUpIterations; ++i) {
    for (const Task& task : tasks) {
      poll();
      task();
    }
  }

  std::vector<Series> series(tasks.size());
  std::vector<double> totals(tasks.size(), 0.0);
  const auto is_done = [&](std::size_t i) {
    return totals[i] >= min_seconds &&
           series[i].seconds.size() >= std::size_t{kMinIterations};
  };
  bool all_done = false;
  while (!all_done) {
    all_done = true;
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      if (is_done(i)) {
        continue;
      }
      // At least one run a round, and as many as its share of the time holds.
      const double end_total = totals[i] + min_seconds / kRounds;
      do {
        poll();
        series[i].seconds.push_back(time_once(tasks[i]));
        totals[i] += series[i].seconds.back();
      } while (totals[i] < end_total);
      all_done = all_done && is_done(i);
    }
  }
  return series;
}

}  // namespace quire::bench
