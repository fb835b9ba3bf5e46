#include "tools/bench/interleave.h"

#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>

#include <doctest/doctest.h>

namespace quire::bench {
namespace {

void do_nothing() {}

TEST_CASE("A series' quantiles interpolate between its sorted times") {
  const Series series{{4.0, 1.0, 2.0, 3.0}};
  CHECK(series.min() == 1.0);
  CHECK(series.median() == doctest::Approx(2.5));
  CHECK(series.quantile(1.0) == 4.0);
  CHECK(series.spread() == doctest::Approx((3.25 - 1.75) / 2.5));
  CHECK(Series{{7.0}}.median() == 7.0);
}

TEST_CASE("A slow task runs kMinIterations times and warm-ups do not count") {
  int runs = 0;
  const Task tasks[] = {[&] { ++runs; }};
  const auto series = interleave(tasks, 0.0, do_nothing);
  CHECK(series[0].seconds.size() == std::size_t{kMinIterations});
  CHECK(runs == kMinIterations + kWarmUpIterations);
}

TEST_CASE("Tasks alternate, and every one runs for its time") {
  std::string order;
  const auto sleep_for = [](std::chrono::microseconds time) {
    std::this_thread::sleep_for(time);
  };
  using std::chrono::microseconds;
  const Task tasks[] = {
      [&] {
        order += 'a';
        sleep_for(microseconds(100));
      },
      [&] {
        order += 'b';
        sleep_for(microseconds(2000));
      }};
  constexpr double kSeconds = 0.01;
  const auto series = interleave(tasks, kSeconds, do_nothing);
  for (const Series& times : series) {
    double total = 0.0;
    for (const double seconds : times.seconds) {
      total += seconds;
    }
    CHECK(total >= kSeconds);
  }
  int num_changes = 0;
  for (std::size_t i = 1; i < order.size(); ++i) {
    num_changes += order[i] != order[i - 1] ? 1 : 0;
  }
  // Each of the slow task's runs stands in a round of its own.
  CHECK(num_changes >= 2 * kMinIterations - 1);
}

TEST_CASE("What poll throws ends the timing") {
  int polls = 0;
  const Task tasks[] = {[] {}};
  CHECK_THROWS_AS(
      interleave(
          tasks,
          0.0,
          [&] {
            if (++polls == 3) {
              throw std::runtime_error("stop");
            }
          }),
      std::runtime_error);
}

}  // namespace
}  // namespace quire::bench
