#include "tools/cli/options.h"

#include <doctest/doctest.h>

#include <stdexcept>

#include <mlx/mlx.h>
#include <CLI/CLI.hpp>

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

TEST_CASE("options: numbers") {
  const auto refusal = [](const CLI::Validator& validator, std::string text) {
    return validator(text);
  };
  for (const char* text : {"1", "7", "1024"}) {
    CHECK(refusal(whole_number(1, 1024), text) == "");
  }
  CHECK(refusal(whole_number(-3, 3), "-3") == "");
  for (const char* text :
       {"0",
        "1025",
        "-1",
        "1.5",
        "1e3",
        "x",
        "",
        " 1",
        "1 ",
        "+1",
        "0x10",
        "99999999999999999999"}) {
    CHECK(
        refusal(whole_number(1, 1024), text) ==
        "must be a whole number from 1 to 1024; got \"" + std::string(text) +
            "\"");
  }
  for (const char* text : {"0.3", "5e-3", "1", "1e300"}) {
    CHECK(refusal(positive_number(), text) == "");
  }
  for (const char* text :
       {"0", "-1", "nan", "inf", "1e400", "1e-400", "0,005", "x", "", "1 s"}) {
    CHECK(
        refusal(positive_number(), text) ==
        "must be a finite number above 0; got \"" + std::string(text) + "\"");
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
