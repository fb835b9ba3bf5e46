#include "tools/llama/utf8_stream.h"

#include <doctest/doctest.h>

namespace quire::tools {
namespace {

std::string whole(std::string_view bytes) {
  Utf8Stream stream;
  std::string result = stream.push(bytes);
  return result + stream.finish();
}

}  // namespace

TEST_CASE("utf8: pieces cut anywhere give what the whole gives") {
  const std::string texts[] = {
      "plain",
      "\xF0\x9F\x8F\xB3\xEF\xB8\x8F\xE2\x80\x8D\xF0\x9F\x8C\x88",  // flag
      "e\xCC\x81 \xED\x95\x9C\xEA\xB8\x80 \xC2\xA0",
      "bad \xFF\xC0\x80 \xED\xA0\x80 \xF4\x90\x80\x80 \xE2\x82",
      "\xF0\x9F\x8F",
      std::string("nul \0 inside", 12),
  };
  for (const std::string& text : texts) {
    for (std::size_t step = 1; step <= text.size(); ++step) {
      Utf8Stream stream;
      std::string joined;
      for (std::size_t at = 0; at < text.size(); at += step) {
        joined += stream.push(std::string_view(text).substr(at, step));
      }
      joined += stream.finish();
      CAPTURE(text);
      CAPTURE(step);
      CHECK(joined == whole(text));
    }
  }
}

TEST_CASE("utf8: characters wait until they are whole") {
  Utf8Stream stream;
  CHECK(stream.push("a\xED\x95") == "a");
  CHECK(stream.push("\x9C") == "\xED\x95\x9C");
  CHECK(stream.push("\xF0\x9F") == "");
  CHECK(
      stream.push("b") ==
      "\xEF\xBF\xBD"
      "b");
  CHECK(stream.finish() == "");
}

TEST_CASE("utf8: one replacement for each maximal part") {
  const std::string r = "\xEF\xBF\xBD";
  CHECK(whole("\xFF") == r);
  CHECK(whole("\xC0\x80") == r + r);
  CHECK(whole("\xED\xA0\x80") == r + r + r);          // a surrogate
  CHECK(whole("\xF4\x90\x80\x80") == r + r + r + r);  // above U+10FFFF
  CHECK(
      whole("\xE2\x82"
            "a") == r + "a");
  CHECK(whole("\xF0\x9F\x8F") == r);
}

TEST_CASE("utf8: a terminal gets no control characters") {
  const std::string r = "\xEF\xBF\xBD";
  CHECK(
      without_control_characters("a\x1b[31mb\tc\n\x7f\r") ==
      "a" + r + "[31mb\tc\n" + r + r);
  CHECK(
      without_control_characters("\xC2\x9B"
                                 "x\xC2\xA0") == r + "x\xC2\xA0");
}

}  // namespace quire::tools
