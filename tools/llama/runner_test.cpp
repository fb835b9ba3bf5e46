// The model runner over every cache and path, on a tiny model with random
// weights: no download, and a second of time.
#include "tools/llama/runner.h"

#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>

#if defined(__GLIBC__)
#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>
#endif

#include "quire/runtime.h"
#include "tests/support/sanitizers.h"
#include "tools/llama/dense_store.h"
#include "tools/llama/generation.h"
#include "tools/llama/paged_store.h"
#include "tools/llama/prefill_attention.h"
#include "tools/llama/test_gguf.h"

namespace quire::tools {
namespace {

using test::TemporaryFile;
using test::TestFile;

const auto kNothing = [](auto&&...) {};

struct TinyModel {
  explicit TinyModel(
      const TestFile& content = test::tiny_model(),
      mx::Dtype dtype = mx::float32)
      : path(content.bytes()),
        file(path.path()),
        tokenizer(file),
        model(file, dtype, kNothing) {}

  TemporaryFile path;
  GgufFile file;
  Tokenizer tokenizer;
  Model model;
};

const TinyModel& tiny() {
  static const TinyModel model;
  return model;
}

std::vector<int> some_tokens(int count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<int> tokens(static_cast<std::size_t>(count));
  for (int& token : tokens) {
    token = static_cast<int>(random() % test::kTinyTokens);
  }
  return tokens;
}

std::unique_ptr<KvStore> dense(mx::Dtype dtype) {
  return std::make_unique<DenseStore>(
      test::kTinyLayers, test::kTinyKvHeads, test::kTinyHeadDim, dtype);
}

std::unique_ptr<KvStore>
paged(mx::Dtype dtype, NativeKernel native, int block_size, int num_blocks) {
  KvCacheOptions options;
  options.num_layers = test::kTinyLayers;
  options.num_kv_heads = test::kTinyKvHeads;
  options.head_dim = test::kTinyHeadDim;
  options.block_size = block_size;
  options.num_blocks = num_blocks;
  options.dtype = dtype;
  return std::make_unique<PagedStore>(options, native);
}

Generation run(KvStore& store, const std::vector<int>& prompt, int max_tokens) {
  Generation result;
  generate(
      tiny().model,
      tiny().tokenizer,
      store,
      prompt,
      {.max_tokens = max_tokens, .ignore_eos = true},
      kNothing,
      kNothing,
      kNothing,
      result);
  return result;
}

std::vector<float> values(const mx::array& x) {
  auto floats = mx::contiguous(mx::astype(x, mx::float32));
  mx::eval(floats);
  return {floats.data<float>(), floats.data<float>() + floats.size()};
}

double relative_rms(const mx::array& actual, const mx::array& expected) {
  const auto a = values(actual);
  const auto e = values(expected);
  REQUIRE(a.size() == e.size());
  double error = 0;
  double norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    error += std::pow(static_cast<double>(a[i]) - e[i], 2);
    norm += std::pow(static_cast<double>(e[i]), 2);
  }
  return std::sqrt(error / norm);
}

#if defined(__GLIBC__)
// What the process holds, less what malloc keeps for the next allocation.
double resident_bytes() {
  malloc_trim(0);
  std::int64_t total = 0;
  std::int64_t resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return static_cast<double>(resident * sysconf(_SC_PAGESIZE));
}

double peak_resident_bytes() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return 1024.0 * static_cast<double>(usage.ru_maxrss);
}
#endif

}  // namespace

TEST_CASE("runner: dense, gather and fused decode the same tokens") {
  constexpr int kNewTokens = 40;
  // Around a chunk's and a block's end.
  for (const int prompt_len : {1, 31, 255, 256, 257, 512}) {
    CAPTURE(prompt_len);
    const auto prompt = some_tokens(prompt_len, 11);
    const auto reference = dense(mx::float32);
    const auto expected = run(*reference, prompt, kNewTokens).token_ids;
    REQUIRE(expected.size() == kNewTokens);
    for (const int block_size : {16, 32}) {
      for (const NativeKernel native : {NativeKernel::On, NativeKernel::Off}) {
        CAPTURE(block_size);
        const bool is_fused = native == NativeKernel::On;
        CAPTURE(is_fused);
        const auto store =
            paged(mx::float32, native, block_size, 600 / block_size);
        const PathCounts before = path_counts();
        CHECK(run(*store, prompt, kNewTokens).token_ids == expected);
        // The path that was asked for is the one that ran, each layer and step;
        // a chunk of a single token is a decode step too.
        const PathCounts after = path_counts();
        const int steps = kNewTokens - 1 + (prompt_len % kPrefillChunk == 1);
        CHECK(
            after.fused_cpu - before.fused_cpu ==
            (is_fused ? steps * test::kTinyLayers : 0));
        CHECK(
            after.gather - before.gather ==
            (is_fused ? 0 : steps * test::kTinyLayers));
        CHECK(after.fallbacks == before.fallbacks);
        const CacheReport report = store->report();
        CHECK(
            report.blocks_used_peak ==
            (prompt_len + kNewTokens - 1 + block_size - 1) / block_size);
      }
    }
  }
}

TEST_CASE("runner: eight ragged sequences in a batch are as each alone") {
  constexpr int kSteps = 24;
  const int prompt_lens[] = {1, 15, 16, 17, 60, 100, 257, 333};
  for (const bool is_paged : {true, false}) {
    CAPTURE(is_paged);
    const auto make = [&] {
      return is_paged ? paged(mx::float32, NativeKernel::On, 16, 100)
                      : dense(mx::float32);
    };
    const auto batch_store = make();
    Runner batch(tiny().model, *batch_store, kNothing);
    std::vector<int> sequences;
    std::vector<int> tokens;
    std::vector<std::vector<int>> batched;
    std::vector<std::vector<int>> alone;
    for (const int prompt_len : prompt_lens) {
      const auto prompt =
          some_tokens(prompt_len, static_cast<unsigned>(prompt_len));
      sequences.push_back(batch_store->add_sequence());
      const auto logits = batch.prefill(sequences.back(), prompt, kNothing);
      tokens.push_back(pick_greedy(*logits, test::kTinyTokens).front());
      batched.push_back({tokens.back()});
      const auto store = make();
      alone.push_back(run(*store, prompt, kSteps + 1).token_ids);
    }
    for (int step = 0; step < kSteps; ++step) {
      const auto logits = batch.decode(sequences, tokens);
      REQUIRE(logits);
      tokens = pick_greedy(*logits, test::kTinyTokens);
      for (std::size_t i = 0; i < batched.size(); ++i) {
        batched[i].push_back(tokens[i]);
      }
    }
    CHECK(batched == alone);
  }
}

TEST_CASE("runner: an f16 cache is as exact as dense attention over it") {
  const auto tokens = some_tokens(400, 5);
  const std::span all(tokens);
  for (const mx::Dtype dtype : {mx::float16, mx::bfloat16}) {
    const auto dense_store = dense(dtype);
    const auto paged_store = paged(dtype, NativeKernel::On, 32, 20);
    Runner dense_runner(tiny().model, *dense_store, kNothing);
    Runner paged_runner(tiny().model, *paged_store, kNothing);
    const int a = dense_store->add_sequence();
    const int b = paged_store->add_sequence();
    auto expected = dense_runner.prefill(a, all.first(200), kNothing);
    auto actual = paged_runner.prefill(b, all.first(200), kNothing);
    double worst = relative_rms(*actual, *expected);
    for (std::size_t i = 200; i < tokens.size(); ++i) {
      expected = dense_runner.decode({&a, 1}, all.subspan(i, 1));
      actual = paged_runner.decode({&b, 1}, all.subspan(i, 1));
      worst = std::max(worst, relative_rms(*actual, *expected));
    }
    CHECK(worst < 5e-3);
  }
}

TEST_CASE("runner: weights of 16 bits run over every cache") {
  const auto tokens = some_tokens(60, 6);
  const std::span all(tokens);
  const auto logits = [&](const Model& model, KvStore& store) {
    Runner runner(model, store, kNothing);
    const int sequence = store.add_sequence();
    runner.prefill(sequence, all.first(59), kNothing);
    return *runner.decode({&sequence, 1}, all.last(1));
  };
  const auto expected = logits(tiny().model, *dense(mx::float32));
  for (const mx::Dtype dtype : {mx::float16, mx::bfloat16}) {
    const TinyModel half(test::tiny_model(), dtype);
    for (const mx::Dtype kv_dtype : {mx::float32, mx::float16, mx::bfloat16}) {
      for (const auto& store :
           {dense(kv_dtype),
            paged(kv_dtype, NativeKernel::On, 16, 4),
            paged(kv_dtype, NativeKernel::Off, 16, 4)}) {
        CAPTURE(store->report().kind);
        const auto actual = logits(half.model, *store);
        CHECK(actual.dtype() == dtype);
        const double error = relative_rms(actual, expected);
        CHECK(error > 0);
        CHECK(error < (dtype == mx::float16 ? 1e-2 : 3e-2));
      }
    }
  }
}

TEST_CASE("runner: a prompt at once is as token by token") {
  const auto tokens = some_tokens(300, 9);
  const auto at_once = dense(mx::float32);
  const auto one_by_one = dense(mx::float32);
  Runner fast(tiny().model, *at_once, kNothing);
  Runner slow(tiny().model, *one_by_one, kNothing);
  const int a = at_once->add_sequence();
  const int b = one_by_one->add_sequence();
  std::vector<int> done;
  const auto logits =
      fast.prefill(a, tokens, [&](int count) { done.push_back(count); });
  CHECK(done == std::vector<int>{kPrefillChunk, 300});
  std::optional<mx::array> expected;
  for (const int& token : tokens) {
    expected = slow.decode({&b, 1}, {&token, 1});
  }
  CHECK(relative_rms(*logits, *expected) < 1e-5);
}

TEST_CASE("runner: a full cache is a value and loses nothing") {
  const auto store = paged(mx::float32, NativeKernel::On, 16, 2);
  const auto result = run(*store, some_tokens(30, 1), 50);
  CHECK(result.finish == Finish::CacheFull);
  CHECK(result.token_ids.size() == 3);  // of 32 places the prompt took 30
  CHECK(store->seq_len(0) == 32);
  const auto other = paged(mx::float32, NativeKernel::On, 16, 2);
  CHECK(run(*other, some_tokens(33, 1), 50).token_ids.empty());
}

TEST_CASE("runner: the context's end is the end") {
  const auto store = dense(mx::float32);
  const auto result = run(*store, some_tokens(test::kTinyContext - 2, 1), 50);
  CHECK(result.finish == Finish::Length);
  CHECK(result.token_ids.size() == 3);
}

TEST_CASE("runner: an interruption keeps what was done") {
  struct Stop {};
  Generation result;
  int num_tokens = 0;
  const auto store = dense(mx::float32);
  CHECK_THROWS_AS(
      generate(
          tiny().model,
          tiny().tokenizer,
          *store,
          some_tokens(20, 1),
          {.max_tokens = 50, .ignore_eos = true},
          [&] {
            if (store->seq_len(0) > 25) {
              throw Stop();
            }
          },
          [&](int done) { num_tokens = done; },
          kNothing,
          result),
      Stop);
  CHECK(num_tokens == 20);
  CHECK(result.finish == Finish::Interrupted);
  CHECK(result.token_ids.size() == 7);
  CHECK(result.decode_seconds > 0);
}

#if defined(__GLIBC__)
// The first sequence brings buffers to their size, BLAS's among them. What a
// second one of the same length adds is the cache's, or lost.
TEST_CASE(
    "runner: memory does not grow with the tokens" *
    doctest::skip(testing::kSanitized)) {
  constexpr int kTokens = 500;
  constexpr double kCacheBytesPerToken =
      4 * 2 * test::kTinyLayers * test::kTinyKvHeads * test::kTinyHeadDim;
  for (const auto& store :
       {dense(mx::float32),
        paged(mx::float32, NativeKernel::Off, 32, 2 * kTokens / 32 + 2),
        paged(mx::float32, NativeKernel::On, 32, 2 * kTokens / 32 + 2)}) {
    CAPTURE(store->report().kind);
    double bytes = 0;
    double growth = 0;
    for (int i = 0; i < 2; ++i) {
      run(*store, some_tokens(1, 4), kTokens);
      growth = resident_bytes() - bytes;
      bytes += growth;
    }
    CHECK(growth / kTokens < kCacheBytesPerToken + 500);
  }
}

TEST_CASE(
    "runner: the peak of memory does not grow with the prompts" *
    doctest::skip(testing::kSanitized)) {
  double after_second = 0;
  for (int i = 1; i <= 8; ++i) {
    run(*paged(mx::float32, NativeKernel::On, 32, 20), some_tokens(600, 3), 8);
    if (i == 2) {
      after_second = peak_resident_bytes();
    }
  }
  CHECK(peak_resident_bytes() < after_second + 4e6);
}
#endif

TEST_CASE("prefill attention agrees with MLX's causal attention") {
  for (const auto& [num_tokens, seq_len] :
       {std::pair(2, 2), {63, 63}, {64, 64}, {65, 70}, {200, 333}}) {
    const auto q = mx::random::normal({num_tokens, 6, 40});
    const auto k = mx::random::normal({2, seq_len, 40});
    const auto v = mx::random::normal({2, seq_len, 40});
    const auto expected = mx::fast::scaled_dot_product_attention(
        mx::expand_dims(mx::swapaxes(q, 0, 1), 0),
        mx::expand_dims(k, 0),
        mx::expand_dims(v, 0),
        0.3f,
        "causal");
    const auto rows = mx::reshape(
        mx::swapaxes(mx::squeeze(expected, 0), 0, 1), {num_tokens, 240});
    CHECK(relative_rms(prefill_attention(q, k, v, 0.3f), rows) < 1e-5);
  }
}

TEST_CASE("generation: rows without a token are never picked") {
  std::vector<float> logits(test::kTinyRows, 0.0f);
  logits[17] = 1.0f;
  logits[test::kTinyTokens] = 9.0f;
  const auto row = mx::array(logits.data(), {1, test::kTinyRows});
  CHECK(pick_greedy(row, test::kTinyTokens) == std::vector<int>{17});
}

TEST_CASE("model: an output matrix of its own is used") {
  TestFile content = test::tiny_model();
  test::TestTensor output = content.tensor("token_embd.weight");
  output.name = "output.weight";
  for (std::size_t i = 0; i < output.data.size(); ++i) {
    if (i % 34 == 1) {  // the sign of each block's scale
      output.data[i] = static_cast<char>(output.data[i] ^ '\x80');
    }
  }
  content.tensors.push_back(output);
  const TinyModel untied(content);
  const auto tokens = some_tokens(9, 2);
  const auto logits = [&](const Model& model) {
    const auto store = dense(mx::float32);
    Runner runner(model, *store, kNothing);
    return *runner.prefill(store->add_sequence(), tokens, kNothing);
  };
  CHECK(relative_rms(logits(untied.model), -logits(tiny().model)) < 1e-6);
}

TEST_CASE("model: keys and tensors that disagree are named") {
  const auto check = [](const TestFile& content, const std::string& part) {
    CAPTURE(part);
    const TemporaryFile path(content.bytes());
    const GgufFile file(path.path());
    CHECK_THROWS_WITH_AS(
        Model(file, mx::float32, kNothing),
        doctest::Contains(part.c_str()),
        std::invalid_argument);
  };
  const auto with = [](const std::string& key, test::TestValue value) {
    TestFile content = test::tiny_model();
    content.set(key, std::move(value));
    return content;
  };
  const auto without = [](const std::string& key) {
    TestFile content = test::tiny_model();
    content.erase(key);
    return content;
  };
  const std::string heads = "llama.attention.head_count";
  const std::string kv_heads = "llama.attention.head_count_kv";
  check(with("general.architecture", test::text("qwen2")), "got \"qwen2\"");
  check(with("llama.block_count", test::u32(0)), "llama.block_count");
  check(with("llama.block_count", test::u32(4)), "\"blk.3.attn_k.weight\"");
  check(with("llama.block_count", test::u32(2)), "got \"blk.2.attn_k.weight\"");
  check(with(heads, test::u32(0)), heads);
  check(with(kv_heads, test::u32(0)), kv_heads);
  check(with(kv_heads, test::u32(3)), "multiple");
  check(
      with(kv_heads, test::u32(4)), "\"blk.0.attn_k.weight\" must have shape");
  check(without(kv_heads), "\"blk.0.attn_k.weight\" must have shape");
  check(with("llama.attention.key_length", test::u32(32)), "value_length");
  check(with("llama.attention.value_length", test::u32(32)), "got 32");
  check(without("llama.attention.key_length"), "value_length");
  check(with("llama.rope.dimension_count", test::u32(32)), "dimension_count");
  check(with("llama.rope.freq_base", test::f32(0.0f)), "freq_base");
  check(
      with(
          "llama.rope.freq_base",
          test::f32(std::numeric_limits<float>::quiet_NaN())),
      "finite");
  check(with("llama.rope.scaling.type", test::text("linear")), "\"linear\"");
  check(
      with("llama.attention.layer_norm_rms_epsilon", test::f32(-1.0f)),
      "got -1");
  check(without("llama.attention.layer_norm_rms_epsilon"), "must be present");
  check(without("llama.context_length"), "must be present");
  check(with("llama.embedding_length", test::u32(97)), "[128, 97]");

  TestFile biased = test::tiny_model();
  biased.tensors.push_back(
      {"blk.0.attn_q.bias", 0, {256}, std::string(1024, '\0')});
  check(biased, "got \"blk.0.attn_q.bias\"");
  TestFile missing = test::tiny_model();
  std::erase_if(missing.tensors, [](const auto& tensor) {
    return tensor.name == "blk.1.ffn_up.weight";
  });
  check(missing, "\"blk.1.ffn_up.weight\" must be present");
}

TEST_CASE("model: a missing rope base is 10000") {
  TestFile content = test::tiny_model();
  content.erase("llama.rope.freq_base");
  const TemporaryFile path(content.bytes());
  CHECK(read_model_config(GgufFile(path.path())).rope_base == 10000.0);
}

}  // namespace quire::tools
