// The table of cases that every backend must get right, through the Metal
// kernels on the CPU.
#include <doctest/doctest.h>

#include "host_launch.h"
#include "support/conformance.h"

using namespace quire;
using quire::testing::Backend;
using quire::testing::Cost;
using quire::testing::DecodeCase;

TEST_CASE("the conformance table") {
  const Backend backend{
      .name = "metal_host",
      .rounding = {},
      .skip =
          [](const DecodeCase& c) {
            return c.cost == Cost::Long ? "too long for lock step" : "";
          },
      .run = [](const DecodeArgs& args) { metal_host::paged_decode(args); }};
  int num_wrong = 0;
  for (const DecodeCase& c : testing::decode_cases()) {
    const std::string wrong = testing::check_case(c, {&backend, 1});
    CAPTURE(c.name);
    CHECK(wrong == "");
    num_wrong += !wrong.empty();
    if (num_wrong > 10) {
      FAIL("and more");
    }
  }
  MESSAGE(testing::num_checks_run() << " cases");
}
