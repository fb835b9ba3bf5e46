#include "tools/llama/tokenizer.h"

#include <doctest/doctest.h>

#include <stdexcept>

#include "tools/llama/test_gguf.h"

namespace quire::tools {
namespace {

using test::TemporaryFile;
using test::TestFile;

void check_refusal(const TestFile& content, const std::string& part) {
  const TemporaryFile path(content.bytes());
  const GgufFile file(path.path());
  CHECK_THROWS_WITH_AS(
      Tokenizer{file}, doctest::Contains(part.c_str()), std::invalid_argument);
}

}  // namespace

TEST_CASE("tokenizer: merges go by rank, over all bytes") {
  const TemporaryFile path(test::tiny_model().bytes());
  const GgufFile file(path.path());
  const Tokenizer tokenizer(file);
  using Ids = std::vector<int>;
  CHECK(tokenizer.encode("hell") == Ids{257, 'l'});
  CHECK(tokenizer.encode("he") == Ids{256});
  CHECK(tokenizer.encode("hehel") == Ids{256, 257});
  CHECK(tokenizer.encode("").empty());
  CHECK(
      tokenizer.encode(std::string("a\0b\xFF\xC3", 5)) ==
      Ids{'a', 0, 'b', 0xFF, 0xC3});
  CHECK(tokenizer.encode("<s>he</s>") == Ids{258, 256, 259});
  CHECK(tokenizer.encode("<s") == Ids{'<', 's'});
  CHECK(tokenizer.eos_id() == 259);

  CHECK(tokenizer.decode(257) == "hel");
  CHECK(tokenizer.decode(0xFF) == "\xFF");
  CHECK(tokenizer.decode(258).empty());
  CHECK(tokenizer.decode(260).empty());
  CHECK(tokenizer.decode(-1).empty());
}

TEST_CASE("tokenizer: a long piece takes no quadratic time") {
  const TemporaryFile path(test::tiny_model().bytes());
  const GgufFile file(path.path());
  const Tokenizer tokenizer(file);
  std::string text;
  for (int i = 0; i < 200'000; ++i) {
    text += "hel";
  }
  CHECK(tokenizer.encode(text) == std::vector<int>(200'000, 257));
}

TEST_CASE("tokenizer: the beginning of a sequence is marked once") {
  TestFile content = test::tiny_model();
  content.set("tokenizer.ggml.add_bos_token", test::boolean(true));
  const TemporaryFile path(content.bytes());
  const GgufFile file(path.path());
  const Tokenizer tokenizer(file);
  CHECK(tokenizer.encode("a") == std::vector<int>{258, 'a'});
  CHECK(tokenizer.encode("<s>a") == std::vector<int>{258, 'a'});
}

TEST_CASE("tokenizer: a byte without a token is unknown, or an error") {
  TestFile content = test::tiny_model();
  std::vector<std::string> tokens;
  {
    const TemporaryFile path(content.bytes());
    const GgufFile file(path.path());
    for (const std::string_view token : file.strings("tokenizer.ggml.tokens")) {
      tokens.emplace_back(token);
    }
  }
  tokens[4] = "absent";
  content.set("tokenizer.ggml.tokens", test::texts(tokens));
  {
    const TemporaryFile path(content.bytes());
    const GgufFile file(path.path());
    const Tokenizer tokenizer(file);
    CHECK_THROWS_WITH_AS(
        tokenizer.encode("a\x04"),
        doctest::Contains("no token for byte 4"),
        std::invalid_argument);
  }
  content.set("tokenizer.ggml.unknown_token_id", test::u32(258));
  const TemporaryFile path(content.bytes());
  const GgufFile file(path.path());
  CHECK(
      Tokenizer(file).encode("a\x04"
                             "b") == std::vector<int>{'a', 258, 'b'});
}

TEST_CASE("tokenizer: metadata that cannot be used is named") {
  const auto with = [](const std::string& key, test::TestValue value) {
    TestFile content = test::tiny_model();
    content.set(key, std::move(value));
    return content;
  };
  check_refusal(
      with("tokenizer.ggml.model", test::text("llama")), "got \"llama\"");
  check_refusal(
      with("tokenizer.ggml.pre", test::text("smollx")), "got \"smollx\"");
  TestFile without = test::tiny_model();
  without.erase("tokenizer.ggml.pre");
  check_refusal(without, "\"tokenizer.ggml.pre\" must be present");
  check_refusal(
      with("tokenizer.ggml.eos_token_id", test::u32(260)),
      "\"tokenizer.ggml.eos_token_id\" must be from 0 to 259; got 260");
  check_refusal(
      with("tokenizer.ggml.bos_token_id", test::u32(0xFFFFFFFF)),
      "got 4294967295");
  check_refusal(
      with("tokenizer.ggml.unknown_token_id", test::u32(1u << 31)),
      "unknown_token_id");
  check_refusal(
      with("tokenizer.ggml.token_type", test::i32s({1, 2})), "got 260 and 2");
  check_refusal(
      with("tokenizer.ggml.merges", test::texts({"h e", "q z"})),
      "got \"q z\" at index 1");
  check_refusal(with("tokenizer.ggml.merges", test::texts({"he"})), "\"he\"");
}

}  // namespace quire::tools
