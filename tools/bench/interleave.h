// The timing loop: several tasks in turn, in one process, in rounds.
#pragma once

#include <functional>
#include <span>
#include <vector>

namespace quire::bench {

/** The times of one task, in seconds, in the order of the runs. */
struct Series {
  std::vector<double> seconds;

  double quantile(double share) const;  // 0.5: the median
  double median() const {
    return quantile(0.5);
  }
  double min() const {
    return quantile(0.0);
  }
  /** Distance of the quartiles over the median: what noise makes of it. */
  double spread() const;
};

using Task = std::function<void()>;

inline constexpr int kWarmUpIterations = 1;
inline constexpr int kMinIterations = 5;

/**
 * Times every task until it has run for `min_seconds` in all, at least
 * kMinIterations times, after kWarmUpIterations that do not count.
 *
 * The tasks alternate in rounds, so that a machine that changes its speed does
 * so for all of them; a fast task runs several times a round, and one that has
 * enough drops out. `poll` is called between runs and may throw to end it.
 */
std::vector<Series> interleave(
    std::span<const Task> tasks,
    double min_seconds,
    const std::function<void()>& poll);

}  // namespace quire::bench
