// SmolLM2-135M-Instruct in Q4_1: the tokenizer against Hugging Face's, the
// model against an independent float32 forward pass.
#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>

#include <nlohmann/json.hpp>

#include "quire/runtime.h"
#include "tools/llama/dense_store.h"
#include "tools/llama/generation.h"
#include "tools/llama/paged_store.h"
#include "tools/llama/utf8_stream.h"

namespace quire::tools {
namespace {

struct SmolLm {
  GgufFile file{QUIRE_MODEL_FILE};
  Tokenizer tokenizer{file};
};

const SmolLm& smol_lm() {
  static const SmolLm smol;
  return smol;
}

const Model& model() {
  static const Model value(smol_lm().file, mx::float32, [](double) {});
  return value;
}

std::unique_ptr<KvStore> dense() {
  const ModelConfig& c = model().config();
  return std::make_unique<DenseStore>(
      c.num_layers, c.num_kv_heads, c.head_dim, mx::float32);
}

std::unique_ptr<KvStore> paged(NativeKernel native, int block_size) {
  const ModelConfig& c = model().config();
  KvCacheOptions options;
  options.num_layers = c.num_layers;
  options.num_kv_heads = c.num_kv_heads;
  options.head_dim = c.head_dim;
  options.block_size = block_size;
  options.num_blocks = 1024 / block_size;
  options.dtype = mx::float32;
  return std::make_unique<PagedStore>(options, native);
}

Generation run(KvStore& store, const std::string& prompt, int max_tokens) {
  Generation result;
  generate(
      model(),
      smol_lm().tokenizer,
      store,
      smol_lm().tokenizer.encode(prompt),
      {.max_tokens = max_tokens, .ignore_eos = true},
      [] {},
      [](int) {},
      [](const std::string&) {},
      result);
  return result;
}

}  // namespace

// Made with Hugging Face tokenizers 0.23.3 (BPE of the file's vocabulary and
// merges; Digits individual, then ByteLevel).
TEST_CASE("SmolLM2: token ids are those of Hugging Face's tokenizers") {
  const auto cases =
      nlohmann::json::parse(std::ifstream(QUIRE_TOKENIZER_CASES));
  CHECK(cases.size() > 30);
  for (const auto& entry : cases) {
    const auto text = entry["text"].get<std::string>();
    CAPTURE(text);
    const auto ids = smol_lm().tokenizer.encode(text);
    CHECK(ids == entry["ids"].get<std::vector<int>>());
    // What the vocabulary lacks, and control tokens, give no text.
    const bool has_silent_token =
        std::any_of(ids.begin(), ids.end(), [](int id) { return id < 17; });
    std::string decoded;
    for (const int id : ids) {
      decoded += smol_lm().tokenizer.decode(id);
    }
    CHECK((decoded == text) != has_silent_token);
  }
}

TEST_CASE("SmolLM2: the first tokens of the independent forward pass") {
  CHECK(
      run(*dense(), "The capital of France is", 1).token_ids ==
      std::vector<int>{7042});
  std::string prompt;
  for (int i = 0; i < 12; ++i) {
    prompt += "A keeper counts the waves, and the waves count the keeper. ";
  }
  const std::vector<int> expected{198, 49, 40061, 11002, 260};
  CHECK(run(*dense(), prompt, 5).token_ids == expected);
  CHECK(run(*paged(NativeKernel::On, 32), prompt, 5).token_ids == expected);
}

TEST_CASE("SmolLM2: dense, gather and fused continue a text alike") {
  std::string prompt;
  for (int i = 0; i < 20; ++i) {
    prompt += "Lamp " + std::to_string(i) + " is lit at dusk, and it burns. ";
  }
  const auto expected = run(*dense(), prompt, 48);
  CHECK(
      run(*paged(NativeKernel::Off, 16), prompt, 48).token_ids ==
      expected.token_ids);
  const PathCounts before = path_counts();
  for (const int block_size : {16, 32}) {
    CHECK(
        run(*paged(NativeKernel::On, block_size), prompt, 48).token_ids ==
        expected.token_ids);
  }
  const PathCounts after = path_counts();
  CHECK(after.fused_cpu - before.fused_cpu == 2 * 47 * 30);
  CHECK(after.gather == before.gather);

  std::string bytes;
  for (const int id : expected.token_ids) {
    bytes += smol_lm().tokenizer.decode(id);
  }
  Utf8Stream stream;
  std::string whole = stream.push(bytes);
  whole += stream.finish();
  CHECK(expected.text == whole);
}

}  // namespace quire::tools
