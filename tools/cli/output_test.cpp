#include "tools/cli/output.h"

#include <doctest/doctest.h>

#include <clocale>
#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>

namespace quire::tools {

TEST_CASE("output: columns are aligned, numbers to the right") {
  CHECK(
      format_table({{"path", "n"}, {"fused", "12"}, {"é", "7"}}) ==
      "path    n\n"
      "fused  12\n"
      "é       7\n");
  CHECK(format_table({{"a", "b"}}) == "a  b\n");
}

TEST_CASE("output: numbers have a point in every locale") {
  // Where the locale is not installed this changes nothing, and tests nothing.
  std::setlocale(LC_ALL, "de_DE.UTF-8");
  CHECK(format_number(0.52349) == "0.523");
  CHECK(format_number(999.9) == "1000");
  CHECK(format_number(1234.5) == "1234");
  CHECK(format_number(123456) == "123456");
  CHECK(format_bytes(8847360) == "8.85 MB");
  CHECK(format_bytes(12) == "12 B");
  std::setlocale(LC_ALL, "C");
}

TEST_CASE("output: the JSON file has the envelope, and text made valid") {
  const auto path =
      (std::filesystem::temp_directory_path() / "quire_output_test.json")
          .string();
  const Session session{"quire test", path};
  require_json_writable(session);
  write_json(session, "cpu", {{"text", "a\xFF"}, {"value", 0.5}});
  const Json document = Json::parse(std::ifstream(path));
  std::filesystem::remove(path);
  CHECK(document["value"] == 0.5);
  CHECK(document["text"] == "a\xEF\xBF\xBD");
  for (const char* key :
       {"version",
        "commit",
        "mlx_version",
        "device",
        "cpu",
        "gpu",
        "blas",
        "date",
        "command"}) {
    CAPTURE(key);
    CHECK(document["quire"].contains(key));
  }
  CHECK(document["quire"]["command"] == "quire test");
  CHECK_THROWS_AS(
      require_json_writable({"", "/nonexistent/x.json"}),
      std::invalid_argument);
}

}  // namespace quire::tools
