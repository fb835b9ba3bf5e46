#include "tools/cli/options.h"

#include <doctest/doctest.h>

#include <stdexcept>

namespace quire::tools {

TEST_CASE("options: sizes") {
  CHECK(parse_size("--x", "0") == 0);
  CHECK(parse_size("--x", "1073741824") == 1073741824);
  CHECK(parse_size("--x", "2.5GiB") == 2684354560);
  CHECK(parse_size("--x", "512MB") == 512000000);
  CHECK(parse_size("--x", "1G") == 1073741824);
  CHECK(parse_size("--x", "0.5kB") == 500);
  for (const char* text :
       {"",
        "GiB",
        "-1",
        "1,5GiB",
        "1e9",
        "0x10",
        ".",
        "1.2.3",
        " 1",
        "1 GiB",
        "1X",
        "inf",
        "nan",
        "99999999999GiB"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(parse_size("--x", text), std::invalid_argument);
  }
}

TEST_CASE("options: a device that is not there is refused") {
  CHECK_NOTHROW(use_device("cpu"));
  const bool has_gpu =
      mlx::core::is_available(mlx::core::Device(mlx::core::Device::gpu));
  if (!has_gpu) {
    CHECK_THROWS_WITH_AS(
        use_device("metal"),
        doctest::Contains("got \"metal\""),
        std::invalid_argument);
  }
}

}  // namespace quire::tools
