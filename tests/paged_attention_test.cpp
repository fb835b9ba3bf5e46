// paged_attention against the double reference: every path on one case table,
// each evaluation proven by the counters to have taken the path it names.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "quire/runtime.h"
#include "support/mlx_case.h"

namespace quire::test {
namespace {

const bool kHasFused = !native_kernels().empty();

// One way to evaluate the op.
struct Run {
  std::string name;
  PagedAttentionOptions options;
  bool fused;
};

// Gather, and the fused kernel where this build has it.
std::vector<Run> runs(const std::vector<int>& splits = {0, 1, 2, 7}) {
  std::vector<Run> out = {{"gather", kGather, false}};
  for (const int num_splits : splits) {
    if (kHasFused) {
      PagedAttentionOptions options = kFused;
      options.num_splits = num_splits;
      out.push_back(
          {"fused, splits " + std::to_string(num_splits), options, true});
    }
  }
  return out;
}

// Evaluates and checks that exactly the named path ran, once.
mx::array evaluate(const mx::array& out, const Run& run) {
  const PathCounts before = path_counts();
  mx::eval(out);
  PathCounts expected = before;
  ++(run.fused ? expected.fused_cpu : expected.gather);
  CHECK(path_counts() == expected);
  return out;
}

std::vector<float> values(const MlxCase& c, const Run& run) {
  return host_values(evaluate(c.attention(run.options), run));
}

// The rows [begin, end) of a case as a case of its own.
MlxCase rows(const MlxCase& c, int begin, int end) {
  MlxCase out = c;
  out.q = mx::slice(c.q, {begin, 0, 0}, {end, c.q.shape(1), c.q.shape(2)});
  out.block_table =
      mx::slice(c.block_table, {begin, 0}, {end, c.block_table.shape(1)});
  out.seq_lens = mx::slice(c.seq_lens, {begin}, {end});
  return out;
}

void check_against_reference(const PagedCaseSpec& spec) {
  const std::string name = spec.name();
  CAPTURE(name);
  const PagedCase c = make_paged_case(spec);
  const MlxCase arrays(c);
  const std::vector<double> expected = c.expected();
  for (const Run& run : runs()) {
    CAPTURE(run.name);
    const mx::array out = evaluate(arrays.attention(run.options), run);
    CHECK(out.dtype() == mlx_dtype(spec.q_dtype));
    CHECK(out.shape() == arrays.q.shape());
    CHECK(compare(host_values(out), expected, spec.q_dtype) == "");
  }
}

constexpr DType kDTypes[] = {DType::Float32, DType::Float16, DType::BFloat16};

TEST_CASE("every pair of dtypes, ragged, empty and partly filled") {
  for (const DType q_dtype : kDTypes) {
    for (const DType kv_dtype : kDTypes) {
      check_against_reference(
          {.seq_lens = {0, 1, 15, 16, 17, 500},
           .q_dtype = q_dtype,
           .kv_dtype = kv_dtype});
    }
  }
}

TEST_CASE("every block size") {
  for (int block_size = kMinBlockSize; block_size <= kMaxBlockSize;
       block_size *= 2) {
    check_against_reference(
        {.seq_lens = {block_size - 1, 2 * block_size, 2 * block_size + 1, 3},
         .block_size = block_size,
         .kv_dtype = DType::Float16});
  }
}

TEST_CASE("any group size") {
  const int heads[][2] = {
      {1, 1},
      {8, 8},
      {12, 2},
      {14, 2},
      {9, 3},
      {25, 5},
      {28, 4},
      {48, 2},
      {71, 1},
      {80, 4}};
  for (const auto& [num_q_heads, num_kv_heads] : heads) {
    check_against_reference(
        {.seq_lens = {40, 1, 77},
         .num_q_heads = num_q_heads,
         .num_kv_heads = num_kv_heads});
  }
}

TEST_CASE("the head dimensions of the fused kernel") {
  for (const int head_dim : {64, 80, 96, 128, 256}) {
    check_against_reference(
        {.seq_lens = {33, 200},
         .head_dim = head_dim,
         .kv_dtype = DType::Float16});
  }
}

TEST_CASE("another head dimension: gather with a counted reason, On throws") {
  for (const int head_dim : {1, 8, 40, 63, 72, 100, 112, 120, 192, 320}) {
    CAPTURE(head_dim);
    const PagedCase c =
        make_paged_case({.seq_lens = {1, 50}, .head_dim = head_dim});
    const MlxCase arrays(c);
    std::string reason;
    try {
      arrays.attention(kFused);
    } catch (const std::invalid_argument& e) {
      reason = e.what();
    }
    if (reason.empty()) {
      continue;  // fused after all: the table above is a floor
    }
    const std::string prefix =
        "[paged_attention] use_native_paged_kernel = On needs a fused kernel "
        "for this case; got none: ";
    REQUIRE(reason.find(prefix) == 0);
    reason = reason.substr(prefix.size());
    reason.pop_back();  // the full stop

    const PathCounts before = path_counts();
    const std::vector<float> out = host_values(arrays.attention());
    PathCounts expected = before;
    ++expected.gather;
    ++expected.fallbacks[reason];
    CHECK(path_counts() == expected);
    CHECK(compare(out, c.expected(), DType::Float32) == "");
  }
}

TEST_CASE("stale memory never matters, whatever it holds") {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const DType kv_dtype : kDTypes) {
    PagedCaseSpec spec{
        .seq_lens = {1, 15, 16, 17, 500}, .kv_dtype = kv_dtype, .poison = 0.0f};
    const MlxCase zeros(make_paged_case(spec));
    for (const float poison : {kNaN, kInf, -kInf, 1e4f}) {
      CAPTURE(poison);
      spec.poison = poison;
      const MlxCase poisoned(make_paged_case(spec));
      for (const Run& run : runs({0, 3})) {
        CAPTURE(run.name);
        CHECK(values(poisoned, run) == values(zeros, run));
      }
    }
  }
}

TEST_CASE("unused table entries never matter, at block boundaries too") {
  PagedCaseSpec spec{
      .seq_lens = {31, 32, 33, 64, 16},
      .num_unused_entries = 0,
      .poison = 1e4f};
  const PagedCase c = make_paged_case(spec);
  const MlxCase narrow(c);
  spec.num_unused_entries = 5;
  for (const std::int32_t id : {0, -1, 7, kUnusedId}) {
    CAPTURE(id);
    spec.unused_id = id;
    const MlxCase wide(make_paged_case(spec));
    for (const Run& run : runs({0, 3})) {
      CAPTURE(run.name);
      const std::vector<float> out = values(wide, run);
      CHECK(compare(out, c.expected(), DType::Float32) == "");
      // Gather's sums are as wide as the table and may round another way.
      CHECK((!run.fused || out == values(narrow, run)));
    }
  }
}

TEST_CASE("equal logits give the mean of the values") {
  for (const int block_size : {8, 32, 256}) {
    std::vector<int> seq_lens;
    for (int seq_len = 1; seq_len <= 300; seq_len += 13) {
      seq_lens.push_back(seq_len);
    }
    const PagedCase c =
        make_paged_case({.seq_lens = seq_lens, .block_size = block_size});
    MlxCase arrays(c);
    arrays.q = mx::zeros(arrays.q.shape(), mx::float32);
    PagedCase flat = c;
    flat.q.assign(c.q.size(), std::byte{0});
    const std::vector<double> expected = flat.expected();
    for (const Run& run : runs()) {
      CAPTURE(run.name);
      const std::vector<float> out = values(arrays, run);
      double worst = 0.0;
      for (std::size_t i = 0; i < out.size(); ++i) {
        worst = std::max(
            worst, std::fabs(static_cast<double>(out[i]) - expected[i]));
      }
      CHECK(worst < 1e-6);
    }
  }
}

TEST_CASE("each query head reads its own KV head") {
  const int heads[][2] = {
      {48, 2},
      {40, 2},
      {80, 4},
      {28, 4},
      {25, 5},
      {12, 2},
      {14, 2},
      {16, 1},
      {9, 3},
      {71, 1}};
  for (const auto& row : heads) {
    const int num_q_heads = row[0];
    const int num_kv_heads = row[1];
    CAPTURE(num_q_heads);
    MlxCase c(make_paged_case(
        {.seq_lens = {40, 3},
         .num_q_heads = num_q_heads,
         .num_kv_heads = num_kv_heads,
         .poison = 0.0f}));
    c.v_cache = mx::contiguous(mx::broadcast_to(
        mx::reshape(
            mx::arange(0, num_kv_heads, mx::float32), {num_kv_heads, 1}),
        c.v_cache.shape()));
    for (const Run& run : runs({0, 2})) {
      CAPTURE(run.name);
      const std::vector<float> out = values(c, run);
      float worst = 0.0f;
      for (std::size_t i = 0; i < out.size(); ++i) {
        const int head = static_cast<int>(i) / 64 % num_q_heads;
        const int kv_head = head / (num_q_heads / num_kv_heads);
        worst =
            std::max(worst, std::fabs(out[i] - static_cast<float>(kv_head)));
      }
      // Weights that sum to 1 up to rounding, times a small whole number.
      CHECK(worst <= 1e-5f);
    }
  }
}

TEST_CASE("rows with the same contents give the same result") {
  for (const int seq_len : {1, 2, 3, 40}) {
    CAPTURE(seq_len);
    // Two sequences in different blocks; the second gets the first's tokens.
    MlxCase c(make_paged_case({.seq_lens = {seq_len, seq_len}}));
    const auto copy_row = [&](const mx::array& cache) {
      const mx::array ids = mx::contiguous(c.block_table);
      mx::eval(ids);
      mx::array out = cache;
      for (int j = 0; j * 16 < seq_len; ++j) {
        const int from = ids.data<int>()[j];
        const int to = ids.data<int>()[c.block_table.shape(1) + j];
        out = mx::slice_update(
            out,
            mx::slice(
                cache,
                {from, 0, 0, 0},
                {from + 1, 16, cache.shape(2), cache.shape(3)}),
            mx::Shape{to, 0, 0, 0},
            mx::Shape{to + 1, 16, cache.shape(2), cache.shape(3)});
      }
      return out;
    };
    c.k_cache = copy_row(c.k_cache);
    c.v_cache = copy_row(c.v_cache);
    c.q = mx::contiguous(
        mx::broadcast_to(mx::slice(c.q, {0, 0, 0}, {1, 4, 64}), c.q.shape()));
    for (const Run& run : runs()) {
      CAPTURE(run.name);
      const mx::array out = evaluate(c.attention(run.options), run);
      CHECK(mx::array_equal(
                mx::slice(out, {0, 0, 0}, {1, 4, 64}),
                mx::slice(out, {1, 0, 0}, {2, 4, 64}))
                .item<bool>());
    }
  }
}

TEST_CASE("a row alone equals the row in its batch, with forced splits") {
  if (!kHasFused) {
    MESSAGE("skipped: no fused kernel in this build");
    return;
  }
  for (const int batch : {2, 3, 8, 40}) {
    CAPTURE(batch);
    std::vector<int> seq_lens;
    seq_lens.reserve(static_cast<std::size_t>(batch));
    for (int i = 0; i < batch; ++i) {
      seq_lens.push_back((i * 37) % 150);
    }
    const MlxCase c(
        make_paged_case({.seq_lens = seq_lens, .kv_dtype = DType::Float16}));
    for (const int num_splits : {1, 4}) {
      Run run = runs({num_splits}).back();
      const mx::array together = evaluate(c.attention(run.options), run);
      for (int i = 0; i < batch; ++i) {
        CAPTURE(i);
        const mx::array alone =
            evaluate(rows(c, i, i + 1).attention(run.options), run);
        CHECK(mx::array_equal(
                  alone, mx::slice(together, {i, 0, 0}, {i + 1, 4, 64}))
                  .item<bool>());
      }
    }
  }
}

TEST_CASE("a long context with a batch") {
  for (const int head_dim : {64, 128}) {
    check_against_reference(
        {.seq_lens = {8201, 5, 8190},
         .num_q_heads = 8,
         .num_kv_heads = 2,
         .head_dim = head_dim,
         .block_size = 32,
         .kv_dtype = DType::Float16});
  }
}

TEST_CASE("more splits than tokens") {
  const PagedCase c = make_paged_case({.seq_lens = {0, 1, 2, 17}});
  const MlxCase arrays(c);
  for (int num_splits = 1; num_splits <= 64 && kHasFused; ++num_splits) {
    CAPTURE(num_splits);
    CHECK(
        compare(
            values(arrays, runs({num_splits}).back()),
            c.expected(),
            DType::Float32) == "");
  }
}

TEST_CASE("max_seq_len sizes the work, never the result") {
  const MlxCase c(
      make_paged_case({.seq_lens = {4097, 33, 1}, .block_size = 32}));
  for (Run run : runs({4})) {
    CAPTURE(run.name);
    const std::vector<float> unbounded = values(c, run);
    for (const int max_seq_len :
         {4097, 4224, 1 << 20, std::numeric_limits<int>::max()}) {
      CAPTURE(max_seq_len);
      run.options.max_seq_len = max_seq_len;
      CHECK(values(c, run) == unbounded);
    }
    for (const int broken : {64, 4096}) {
      CAPTURE(broken);
      run.options.max_seq_len = broken;
      CHECK_THROWS_WITH_AS(
          mx::eval(c.attention(run.options)),
          doctest::Contains("got 4097 for sequence 0"),
          std::runtime_error);
    }
  }
}

TEST_CASE("any strides of q, block_table and seq_lens") {
  const PagedCase c =
      make_paged_case({.seq_lens = {40, 0, 17}, .kv_dtype = DType::Float16});
  MlxCase arrays(c);
  arrays.q = mx::transpose(
      mx::contiguous(mx::transpose(arrays.q, {2, 0, 1})), {1, 2, 0});
  arrays.block_table =
      mx::transpose(mx::contiguous(mx::transpose(arrays.block_table)));
  arrays.seq_lens = mx::slice(mx::repeat(arrays.seq_lens, 2, 0), {0}, {6}, {2});
  for (const Run& run : runs()) {
    CAPTURE(run.name);
    CHECK(compare(values(arrays, run), c.expected(), DType::Float32) == "");
  }
  // Arrays whose strides are known when the op is built.
  mx::eval(arrays.q, arrays.block_table, arrays.seq_lens);
  for (const Run& run : runs()) {
    CAPTURE(run.name);
    CHECK(compare(values(arrays, run), c.expected(), DType::Float32) == "");
  }
}

TEST_CASE("caches that are views into one larger buffer") {
  const PagedCase c = make_paged_case({.seq_lens = {40, 5}});
  MlxCase arrays(c);
  const mx::array both =
      mx::stack({arrays.v_cache, arrays.k_cache, arrays.v_cache});
  mx::Shape begin(5, 0);
  mx::Shape end = both.shape();
  begin[0] = 1;
  end[0] = 2;
  arrays.k_cache = mx::squeeze(mx::slice(both, begin, end), 0);
  for (const Run& run : runs()) {
    CAPTURE(run.name);
    CHECK(compare(values(arrays, run), c.expected(), DType::Float32) == "");
  }
}

TEST_CASE("a fused kernel refuses a cache that is not one dense buffer") {
  const PagedCase c = make_paged_case({.seq_lens = {40, 5}});
  MlxCase arrays(c);
  arrays.k_cache =
      mx::swapaxes(mx::contiguous(mx::swapaxes(arrays.k_cache, 1, 2)), 1, 2);
  for (const Run& run : runs({0})) {
    if (run.fused) {
      CHECK_THROWS_WITH_AS(
          mx::eval(arrays.attention(run.options)),
          doctest::Contains("k_cache must be row contiguous"),
          std::runtime_error);
    } else {
      CHECK(compare(values(arrays, run), c.expected(), DType::Float32) == "");
    }
  }
}

TEST_CASE("no sequences, and a table without columns") {
  const MlxCase c(make_paged_case({.seq_lens = {4, 5}}));
  for (const Run& run : runs({0})) {
    CAPTURE(run.name);
    CHECK(rows(c, 0, 0).attention(run.options).shape() == mx::Shape{0, 4, 64});

    MlxCase empty = c;
    empty.block_table = mx::zeros({2, 0}, mx::int32);
    empty.seq_lens = mx::zeros({2}, mx::int32);
    CHECK(values(empty, run) == std::vector<float>(2 * 4 * 64, 0.0f));
    empty.seq_lens = mx::array({0, 1}, mx::int32);
    CHECK_THROWS_AS(mx::eval(empty.attention(run.options)), std::runtime_error);
  }
}

TEST_CASE("wrong ids and lengths are errors at evaluation") {
  struct Broken {
    const char* what;
    int row, column;  // of the table; column -1: the length
    std::int32_t value;
    const char* message;
  };
  const Broken kBroken[] = {
      {"id = num_blocks", 1, 2, 9, "got 9 at block_table[1, 2]"},
      {"negative id", 0, 0, -1, "got -1 at block_table[0, 0]"},
      {"huge id", 1, 0, kUnusedId, "got 2147480000 at block_table[1, 0]"},
      {"negative length", 0, -1, -1, "got -1 for sequence 0"},
      {"length beyond the table", 1, -1, 97, "got 97 for sequence 1"},
  };
  // 17 and 40 tokens: 2 + 3 blocks, 4 spare, a table of 6 columns.
  const PagedCaseSpec spec{
      .seq_lens = {17, 40}, .num_spare_blocks = 4, .num_unused_entries = 3};
  const PagedCase good = make_paged_case(spec);
  REQUIRE(good.params.num_blocks == 9);
  REQUIRE(good.params.max_blocks_per_seq == 6);
  for (const Broken& broken : kBroken) {
    CAPTURE(broken.what);
    PagedCase c = good;
    if (broken.column < 0) {
      c.seq_lens[static_cast<std::size_t>(broken.row)] = broken.value;
    } else {
      c.block_table[static_cast<std::size_t>(broken.row * 6 + broken.column)] =
          broken.value;
    }
    const MlxCase arrays(c);
    for (const Run& run : runs()) {
      CAPTURE(run.name);
      const PathCounts before = path_counts();
      std::string message;
      try {
        mx::eval(arrays.attention(run.options));
      } catch (const std::runtime_error& e) {
        message = e.what();
      }
      CAPTURE(message);
      CHECK(message.find("[paged_attention] ") == 0);
      if (!run.fused) {
        CHECK(message.find(broken.message) != std::string::npos);
      }
      CHECK(path_counts() == before);
      // The stream works again after the error.
      CHECK(
          compare(values(MlxCase(good), run), good.expected(), good.q_dtype) ==
          "");
    }
  }
}

TEST_CASE("wrong arguments throw when the op is built") {
  const MlxCase good(make_paged_case({.seq_lens = {4, 5}}));
  const auto error = [](const MlxCase& c, PagedAttentionOptions o = {}) {
    try {
      c.attention(o);
    } catch (const std::invalid_argument& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  const auto with = [&](auto change) {
    MlxCase c = good;
    change(c);
    return error(c);
  };
  CHECK(error(good) == "no error");

  CHECK(
      with([](MlxCase& c) { c.q = mx::astype(c.q, mx::int32); }) ==
      "[paged_attention] q must be float32, float16 or bfloat16; got int32.");
  CHECK(
      with([](MlxCase& c) { c.q = mx::expand_dims(c.q, 0); }) ==
      "[paged_attention] q must have the shape [num_seqs, num_q_heads, "
      "head_dim]; got (1, 2, 4, 64).");
  CHECK(
      with([](MlxCase& c) {
        c.q = mx::zeros({2, 4, 32});
      }) ==
      "[paged_attention] q and the caches must have one head_dim; got 32 and "
      "64.");
  CHECK(
      with([](MlxCase& c) {
        c.q = mx::zeros({3, 4, 64});
      }) ==
      "[paged_attention] q, block_table and seq_lens must have one num_seqs; "
      "got 3, 2 and 2.");
  CHECK(
      with([](MlxCase& c) {
        c.k_cache = mx::zeros({5, 16, 2});
      }) ==
      "[paged_attention] k_cache must have the shape [num_blocks, block_size, "
      "num_kv_heads, head_dim]; got (5, 16, 2).");
  CHECK(with([](MlxCase& c) {
          c.v_cache = mx::astype(c.v_cache, mx::float16);
        }) == "[paged_attention] v_cache must be float32; got float16.");
  CHECK(
      with([](MlxCase& c) {
        c.v_cache = mx::zeros({4, 16, 2, 64});
      }) ==
      "[paged_attention] k_cache and v_cache must have one shape; got (5, 16, "
      "2, 64) and (4, 16, 2, 64).");
  for (const int block_size : {4, 24, 512}) {
    CHECK(
        with([&](MlxCase& c) {
          c.k_cache = c.v_cache = mx::zeros({5, block_size, 2, 64});
        }) ==
        "[paged_attention] block_size must be a power of two from 8 to 256; "
        "got " +
            std::to_string(block_size) + ".");
  }
  CHECK(
      with([](MlxCase& c) {
        c.k_cache = c.v_cache = mx::zeros({0, 16, 2, 64});
      }) ==
      "[paged_attention] num_blocks, num_kv_heads and head_dim must be at "
      "least 1; got a k_cache of shape (0, 16, 2, 64).");
  CHECK(with([](MlxCase& c) {
          c.block_table = mx::astype(c.block_table, mx::int64);
        }) == "[paged_attention] block_table must be int32; got int64.");
  CHECK(
      with([](MlxCase& c) { c.block_table = mx::zeros({2}, mx::int32); }) ==
      "[paged_attention] block_table must have the shape [num_seqs, "
      "max_blocks_per_seq]; got (2).");
  CHECK(with([](MlxCase& c) {
          c.seq_lens = mx::astype(c.seq_lens, mx::uint32);
        }) == "[paged_attention] seq_lens must be int32; got uint32.");
  CHECK(with([](MlxCase& c) {
          c.scale = NAN;
        }) == "[paged_attention] scale must be finite; got nan.");
  CHECK(
      error(good, {.max_seq_len = -1}) ==
      "[paged_attention] max_seq_len must not be negative; got -1.");
  CHECK(
      error(good, {.num_splits = -2}) ==
      "[paged_attention] num_splits must not be negative; got -2.");

  for (const int num_q_heads : {33, 3, 0}) {
    CHECK(
        with([&](MlxCase& c) {
          c.q = mx::zeros({2, num_q_heads, 64});
        }) ==
        "[paged_attention] num_q_heads must be a multiple of num_kv_heads; "
        "got " +
            std::to_string(num_q_heads) + " and 2.");
  }
  CHECK(
      with([](MlxCase& c) {
        c.k_cache = c.v_cache = mx::zeros({5, 16, 0, 64});
      }).find("num_kv_heads and head_dim must be at least 1") !=
      std::string::npos);
}

TEST_CASE("counters count evaluations, compiled ones too") {
  const MlxCase c(make_paged_case({.seq_lens = {4, 50}}));
  for (const Run& run : runs({0})) {
    CAPTURE(run.name);
    const auto count = [&] {
      const PathCounts counts = path_counts();
      return run.fused ? counts.fused_cpu : counts.gather;
    };
    const std::int64_t before = count();
    const mx::array built = c.attention(run.options);
    CHECK(count() == before);
    mx::eval(built);
    mx::eval(built);
    CHECK(count() == before + 1);

    const auto compiled = mx::compile([&](const std::vector<mx::array>& in) {
      MlxCase traced = c;
      traced.q = in[0];
      return std::vector<mx::array>{traced.attention(run.options)};
    });
    for (int i = 0; i < 3; ++i) {
      mx::eval(compiled({c.q}));
    }
    CHECK(count() == before + 4);
  }
  reset_path_counts();
  CHECK(path_counts() == PathCounts{});
}

TEST_CASE("no gradient and no vmap, with a word") {
  const MlxCase c(make_paged_case({.seq_lens = {4, 50}}));
  if (!kHasFused) {
    return;
  }
  const auto attention = [&](const mx::array& q) {
    MlxCase traced = c;
    traced.q = q;
    return traced.attention(kFused);
  };
  CHECK_THROWS_WITH(
      mx::grad([&](const mx::array& q) { return mx::sum(attention(q)); })(c.q),
      doctest::Contains("PagedAttention"));
  CHECK_THROWS_WITH(
      mx::vmap([&](const mx::array& q) { return attention(q); })(
          mx::stack({c.q, c.q})),
      doctest::Contains("PagedAttention"));
}

}  // namespace
}  // namespace quire::test
