// QUIRE_NATIVE_PAGED_KERNEL=off in a process of its own: the environment is
// read once.
#include <cstdlib>

#include <doctest/doctest.h>

#include "quire/runtime.h"
#include "support/mlx_case.h"

namespace quire::test {
namespace {

const int kSwitchedOff = setenv("QUIRE_NATIVE_PAGED_KERNEL", "off", 1);

TEST_CASE("the kill switch beats every option, and is counted") {
  REQUIRE(kSwitchedOff == 0);
  const PagedCase c = make_paged_case({.seq_lens = {1, 40}});
  const MlxCase arrays(c);
  for (const NativeKernel wanted :
       {NativeKernel::Auto, NativeKernel::On, NativeKernel::Off}) {
    CAPTURE(static_cast<int>(wanted));
    reset_path_counts();
    const std::vector<float> out =
        host_values(arrays.attention({.use_native_paged_kernel = wanted}));
    CHECK(compare(out, c.expected(), DType::Float32) == "");
    PathCounts expected;
    expected.gather = 1;
    if (wanted != NativeKernel::Off) {
      expected.fallbacks["QUIRE_NATIVE_PAGED_KERNEL=off"] = 1;
    }
    CHECK(path_counts() == expected);
  }
}

TEST_CASE("the switch is listed with its value") {
  CHECK(env_variables().front().name == "QUIRE_NATIVE_PAGED_KERNEL");
  CHECK(env_variables().front().value == "off");
}

}  // namespace
}  // namespace quire::test
