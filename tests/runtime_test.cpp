// What the library says about itself, in a process with settings of its own.
#include "quire/runtime.h"

#include <cstdlib>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "support/mlx_case.h"

namespace quire::test {
namespace {

const int kNumSplits = setenv("QUIRE_NUM_SPLITS", "3", 1);
const int kNumThreads = setenv("QUIRE_NUM_THREADS", "2", 1);
const int kIsa = setenv("QUIRE_CPU_ISA", "portable", 1);

TEST_CASE("versions and kernels") {
  const std::string own = version();
  CHECK(std::count(own.begin(), own.end(), '.') == 2);
  CHECK(mlx_version().find("0.") == 0);
  if (native_kernels().empty()) {
    CHECK(cpu_isa() == "none");
    CHECK(cpu_threads() == 0);
    return;
  }
  CHECK(native_kernels().front() == "cpu");
  CHECK(cpu_isa() == "portable");
  CHECK(cpu_threads() == 2);
}

TEST_CASE("QUIRE_NUM_SPLITS stands in for num_splits 0") {
  if (native_kernels().empty()) {
    MESSAGE("skipped: no fused kernel in this build");
    return;
  }
  const MlxCase c(make_paged_case({.seq_lens = {2000, 31}}));
  const auto with = [&](int num_splits) {
    PagedAttentionOptions options = kFused;
    options.num_splits = num_splits;
    return host_values(c.attention(options));
  };
  CHECK(with(0) == with(3));
  // Another number of splits rounds another way, so the check above can fail.
  CHECK(with(0) != with(1));
}

TEST_CASE("counters are safe to use from many threads") {
  const PagedCase c = make_paged_case({.seq_lens = {5}, .head_dim = 8});
  reset_path_counts();
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&c] {
      const MlxCase arrays(c);
      for (int j = 0; j < 50; ++j) {
        mx::eval(arrays.attention(kGather));
        (void)path_counts();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  CHECK(path_counts().gather == 200);
}

}  // namespace
}  // namespace quire::test
