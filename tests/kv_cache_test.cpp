// KvCache: a batch of sequences that grow, fork, shrink and end, checked token
// for token against plain vectors and the double reference.
#include "quire/kv_cache.h"

#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <list>
#include <random>
#include <string>
#include <vector>

#include "kernels/reference/paged_decode_reference.h"
#include "quire/runtime.h"
#include "support/mlx_case.h"

namespace quire::test {
namespace {

constexpr int kKvHeads = 2;
constexpr int kQHeads = 6;
constexpr int kHeadDim = 64;
constexpr std::size_t kTokenElems = kKvHeads * kHeadDim;
constexpr std::size_t kQElems = kQHeads * kHeadDim;
constexpr float kScale = 0.125f;

std::string error_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "no error";
}

KvCacheOptions small_cache(int num_blocks, DType dtype = DType::Float16) {
  return {
      .num_layers = 2,
      .num_kv_heads = kKvHeads,
      .head_dim = kHeadDim,
      .num_blocks = num_blocks,
      .block_size = 8,
      .dtype = mlx_dtype(dtype)};
}

// A sequence and what it should hold: per layer, k and v of every token, as
// rounded to the cache's dtype.
struct Modelled {
  SequenceCache sequence;
  std::vector<std::vector<float>> k;  // [num_layers][seq_len * kTokenElems]
  std::vector<std::vector<float>> v;
};

// One step's readers and what they should return.
struct StepResult {
  mx::array out;                              // [num_seqs, kQHeads, kHeadDim]
  std::vector<std::vector<double>> expected;  // [num_seqs], empty: unchecked
};

// Drives a cache with a random but reproducible mix of operations.
class Driver {
 public:
  Driver(const KvCacheOptions& options, unsigned seed)
      : cache(options), dtype_(DType::Float16), rng_(seed) {
    for (const DType d : {DType::Float32, DType::BFloat16}) {
      dtype_ = options.dtype == mlx_dtype(d) ? d : dtype_;
    }
  }

  int random(int below) {
    return static_cast<int>(rng_() % static_cast<unsigned>(below));
  }

  std::vector<float> normal(std::size_t size) {
    std::normal_distribution<float> distribution;
    std::vector<float> out(size);
    for (float& value : out) {
      value = distribution(rng_);
    }
    return out;
  }

  Modelled& add() {
    const auto layers = static_cast<std::size_t>(cache.options().num_layers);
    return sequences.emplace_back(Modelled{
        cache.make_sequence(),
        std::vector<std::vector<float>>(layers),
        std::vector<std::vector<float>>(layers)});
  }

  Modelled& fork(const Modelled& from) {
    return sequences.emplace_back(
        Modelled{from.sequence.fork(), from.k, from.v});
  }

  static void truncate(Modelled& m, int seq_len) {
    m.sequence.truncate(seq_len);
    for (auto* layers : {&m.k, &m.v}) {
      for (std::vector<float>& values : *layers) {
        values.resize(static_cast<std::size_t>(seq_len) * kTokenElems);
      }
    }
  }

  // Appends counts[i] tokens to the i-th sequence, in all layers, and reads the
  // last layer; nullopt if the pool is full.
  std::optional<CacheStep> step(
      const std::vector<int>& counts,
      const PagedAttentionOptions& options,
      bool with_reference) {
    std::vector<SequenceCache*> batch;
    for (Modelled& m : sequences) {
      batch.push_back(&m.sequence);
    }
    std::optional<CacheStep> step = cache.begin_step(batch, counts);
    if (!step) {
      return std::nullopt;
    }
    int num_tokens = 0;
    for (const int count : counts) {
      num_tokens += count;
    }
    const mx::Shape shape = {num_tokens, kKvHeads, kHeadDim};
    for (int layer = 0; layer < cache.options().num_layers; ++layer) {
      const std::size_t size =
          static_cast<std::size_t>(num_tokens) * kTokenElems;
      const std::vector<float> k = rounded(normal(size));
      const std::vector<float> v = rounded(normal(size));
      remember(static_cast<std::size_t>(layer), counts, k, &Modelled::k);
      remember(static_cast<std::size_t>(layer), counts, v, &Modelled::v);
      cache.append(
          layer,
          *step,
          mx::array(k.begin(), shape),
          mx::array(v.begin(), shape));
    }
    read(*step, options, with_reference);
    return step;
  }

  std::vector<int> random_counts(int below) {
    std::vector<int> counts;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      counts.push_back(random(below));
    }
    return counts;
  }

  KvCache cache;
  std::list<Modelled> sequences;
  std::vector<StepResult> results;

 private:
  std::vector<float> rounded(const std::vector<float>& values) const {
    return from_elements(
        to_elements(values, dtype_).data(), values.size(), dtype_);
  }

  void remember(
      std::size_t layer,
      const std::vector<int>& counts,
      const std::vector<float>& values,
      std::vector<std::vector<float>> Modelled::*field) {
    auto next = values.begin();
    auto count = counts.begin();
    for (Modelled& m : sequences) {
      const auto size = static_cast<std::ptrdiff_t>(kTokenElems) * *count++;
      std::vector<float>& into = (m.*field)[layer];
      into.insert(into.end(), next, next + size);
      next += size;
    }
  }

  void read(
      const CacheStep& step,
      const PagedAttentionOptions& options,
      bool with_reference) {
    const int num_seqs = static_cast<int>(sequences.size());
    const int layer = cache.options().num_layers - 1;
    const std::vector<float> q =
        normal(static_cast<std::size_t>(num_seqs) * kQElems);
    StepResult result{
        paged_attention(
            mx::array(q.begin(), {num_seqs, kQHeads, kHeadDim}),
            cache.k_cache(layer),
            cache.v_cache(layer),
            step.block_table,
            step.seq_lens,
            kScale,
            options),
        {}};
    const float* q_row = q.data();
    for (const Modelled& m : sequences) {
      result.expected.push_back(
          with_reference ? reference(q_row, m, static_cast<std::size_t>(layer))
                         : std::vector<double>());
      q_row += kQElems;
    }
    results.push_back(std::move(result));
  }

  // All tokens in one block: the reference needs no paging.
  static std::vector<double>
  reference(const float* q, const Modelled& m, std::size_t layer) {
    const std::int32_t seq_len = m.sequence.seq_len();
    const std::int32_t block = 0;
    DecodeArgs args;
    args.params = {
        .num_seqs = 1,
        .num_q_heads = kQHeads,
        .num_kv_heads = kKvHeads,
        .head_dim = kHeadDim,
        .num_blocks = 1,
        .block_size = std::max(seq_len, 1),
        .max_blocks_per_seq = 1,
        .scale = kScale};
    args.q = q;
    args.k_cache = m.k[layer].data();
    args.v_cache = m.v[layer].data();
    args.block_table = &block;
    args.seq_lens = &seq_len;
    std::vector<double> out(kQElems);
    reference::paged_decode(args, out.data());
    return out;
  }

  DType dtype_;
  std::mt19937 rng_;
};

void check(const StepResult& result) {
  const std::vector<float> out = host_values(result.out);
  for (std::size_t i = 0; i < result.expected.size(); ++i) {
    CAPTURE(i);
    const auto row = out.begin() + static_cast<std::ptrdiff_t>(i * kQElems);
    CHECK(
        compare(
            std::vector<float>(row, row + kQElems),
            result.expected[i],
            DType::Float32) == "");
  }
}

// Before a step: sometimes a sequence is forked, shortened or ends.
void change_batch(Driver& d) {
  if (d.sequences.size() < 2) {
    d.add();
  }
  const auto pick = [&]() -> std::list<Modelled>::iterator {
    return std::next(
        d.sequences.begin(), d.random(static_cast<int>(d.sequences.size())));
  };
  switch (d.random(6)) {
    case 0:
      if (d.sequences.size() < 6) {
        d.fork(*pick());
      }
      break;
    case 1: {
      Modelled& m = *pick();
      Driver::truncate(m, d.random(m.sequence.seq_len() + 1));
      break;
    }
    case 2:
      d.sequences.erase(pick());
      break;
    case 3:
      d.sequences.splice(d.sequences.begin(), d.sequences, pick());
      break;
    default:
      break;
  }
}

TEST_CASE("growing, forking, shrinking and ending sequences read back") {
  for (const DType dtype : {DType::Float32, DType::Float16, DType::BFloat16}) {
    CAPTURE(dtype_name(dtype));
    Driver d(small_cache(40, dtype), 11);
    const PathCounts before = path_counts();
    int num_full = 0;
    std::int64_t num_gather = 0;
    for (int i = 0; i < 150; ++i) {
      CAPTURE(i);
      change_batch(d);
      const std::optional<CacheStep> step = d.step(
          d.random_counts(12), i % 2 ? kGather : PagedAttentionOptions{}, true);
      if (!step) {
        ++num_full;
        d.sequences.pop_front();
        continue;
      }
      check(d.results.back());
      num_gather += i % 2;
      d.results.clear();
      d.cache.complete_step(*step);
      d.cache.pool().check_invariants();
    }
    const PathCounts after = path_counts();
    const std::int64_t num_fused = 150 - num_full - num_gather;
    if (native_kernels().empty()) {
      CHECK(after.gather - before.gather == num_gather + num_fused);
    } else {
      CHECK(after.gather - before.gather == num_gather);
      CHECK(after.fused_cpu - before.fused_cpu == num_fused);
    }
    CHECK(num_full > 0);
    CHECK(num_full < 75);
    d.sequences.clear();
    CHECK(d.cache.pool().num_free() == 40);
  }
}

// The same operations twice: with each step evaluated before the next is
// built, and with up to three in flight while tables, forks and lengths change
// right after a step is enqueued.
TEST_CASE("300 steps in flight equal 300 steps one by one") {
  const auto run = [](bool async) {
    Driver d(small_cache(200), 5);
    std::vector<CacheStep> in_flight;
    std::vector<std::vector<float>> out;
    const auto finish_oldest = [&] {
      const std::size_t idx = d.results.size() - in_flight.size();
      mx::eval(d.results[idx].out);
      d.cache.complete_step(in_flight.front());
      in_flight.erase(in_flight.begin());
    };
    for (int i = 0; i < 300; ++i) {
      change_batch(d);
      const std::optional<CacheStep> step =
          d.step(d.random_counts(5), {}, i % 10 == 0);
      REQUIRE(step);
      in_flight.push_back(*step);
      if (async) {
        mx::async_eval(d.results.back().out);
      }
      while (in_flight.size() > (async ? 3 : 0)) {
        finish_oldest();
      }
      // Sequences that grow too long end, so that blocks are used again.
      for (Modelled& m : d.sequences) {
        if (m.sequence.seq_len() > 120) {
          Driver::truncate(m, 3);
        }
      }
    }
    while (!in_flight.empty()) {
      finish_oldest();
    }
    for (std::size_t i = 0; i < d.results.size(); ++i) {
      CAPTURE(i);
      if (i % 10 == 0) {
        check(d.results[i]);
      }
      out.push_back(host_values(d.results[i].out));
    }
    return out;
  };
  CHECK(run(true) == run(false));
}

// What the step protocol is for. Step 1 is built and not yet evaluated when
// its sequence ends.
TEST_CASE("a block is not reused before the step that reads it completes") {
  for (const bool too_early : {false, true}) {
    CAPTURE(too_early);
    Driver d(small_cache(1), 3);
    d.add();
    const std::optional<CacheStep> first = d.step({8}, {}, true);
    REQUIRE(first);
    d.sequences.clear();
    d.add();
    CHECK_FALSE(d.step({8}, {}, true));
    CHECK(d.cache.pool().num_pending() == 1);

    if (!too_early) {
      mx::eval(d.results[0].out);
    }
    d.cache.complete_step(*first);
    REQUIRE(d.step({8}, {}, true));
    mx::eval(d.results[1].out);
    const std::vector<float> values = host_values(d.results[0].out);
    std::vector<double> expected;
    for (const auto& row : d.results[0].expected) {
      expected.insert(expected.end(), row.begin(), row.end());
    }
    // Completing before the evaluation breaks the contract, and it shows.
    const bool same = compare(values, expected, DType::Float32).empty();
    CHECK(same == !too_early);
    check(d.results[1]);
  }
}

TEST_CASE("a full pool is a value, and nothing changes") {
  Driver d(small_cache(4), 1);
  d.add();
  d.add();
  const std::optional<CacheStep> step = d.step({9, 16}, {}, true);
  REQUIRE(step);
  check(d.results.back());
  d.cache.complete_step(*step);
  const std::vector<int> more = {7, 1};
  const std::vector<SequenceCache*> batch = {
      &d.sequences.front().sequence, &d.sequences.back().sequence};
  CHECK_FALSE(d.cache.begin_step(batch, more));
  CHECK(batch[0]->seq_len() == 9);
  CHECK(batch[1]->seq_len() == 16);
  CHECK(d.cache.pool().num_free() == 0);
  CHECK_FALSE(d.cache.pool().step_in_flight());
  // What still fits goes on.
  REQUIRE(d.step({7, 0}, {}, true));
  check(d.results.back());
}

TEST_CASE("outputs do not depend on what the blocks held before") {
  const auto run = [](Driver& d, unsigned seed) {
    // The same tokens for the same seed, whatever the driver did before.
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    const auto values = [&](std::size_t size) {
      std::vector<float> out(size);
      for (float& value : out) {
        value = normal(rng);
      }
      return out;
    };
    SequenceCache sequence = d.cache.make_sequence();
    std::vector<std::vector<float>> out;
    for (int i = 0; i < 100; ++i) {
      const std::vector<float> k = values(kTokenElems);
      const std::vector<float> q = values(kQElems);
      const auto step = d.cache.begin_step({{&sequence}}, {{1}});
      REQUIRE(step);
      const mx::array k_array(k.begin(), {1, kKvHeads, kHeadDim});
      d.cache.append(0, *step, k_array, mx::negative(k_array));
      out.push_back(host_values(paged_attention(
          mx::array(q.begin(), {1, kQHeads, kHeadDim}),
          d.cache.k_cache(0),
          d.cache.v_cache(0),
          step->block_table,
          step->seq_lens,
          kScale)));
      d.cache.complete_step(*step);
    }
    return out;
  };
  Driver fresh(small_cache(30), 1);
  const auto expected = run(fresh, 77);
  for (unsigned order = 0; order < 20; ++order) {
    CAPTURE(order);
    Driver used(small_cache(30), order);
    for (int i = 0; i < 3; ++i) {
      used.add();
    }
    for (int i = 0; i < 10; ++i) {
      const auto step = used.step(used.random_counts(9), {}, false);
      REQUIRE(step);
      mx::eval(used.results.back().out);
      used.cache.complete_step(*step);
    }
    while (!used.sequences.empty()) {
      used.sequences.erase(std::next(
          used.sequences.begin(),
          used.random(static_cast<int>(used.sequences.size()))));
    }
    CHECK(run(used, 77) == expected);
  }
}

TEST_CASE("a cache takes all its memory at the start") {
  Driver d(small_cache(600, DType::Float32), 9);
  for (int i = 0; i < 8; ++i) {
    d.add();
  }
  const auto decode = [&](int steps) {
    for (int i = 0; i < steps; ++i) {
      const auto step = d.step(std::vector<int>(8, 1), {}, false);
      REQUIRE(step);
      std::vector<mx::array> arrays = d.cache.arrays();
      arrays.push_back(d.results.back().out);
      mx::eval(arrays);
      d.results.clear();
      d.cache.complete_step(*step);
    }
  };
  decode(20);
  const std::size_t active = mx::get_active_memory();
  mx::reset_peak_memory();
  decode(500);
  // Tables and outputs of a step; a block of the cache has 8 KiB.
  CHECK(mx::get_active_memory() < active + 64 * 1024);
  if (!native_kernels().empty()) {  // gather copies what a step reads
    CHECK(mx::get_peak_memory() < active + 256 * 1024);
  }
}

TEST_CASE("tokens that no evaluated op reads are written with arrays()") {
  KvCache cache(small_cache(4, DType::Float32));
  SequenceCache sequence = cache.make_sequence();
  const auto step = cache.begin_step({{&sequence}}, {{3}});
  REQUIRE(step);
  const mx::array k = mx::ones({3, kKvHeads, kHeadDim});
  cache.append(0, *step, k, k);
  cache.append(1, *step, k, mx::negative(k));
  mx::eval(cache.arrays());
  cache.complete_step(*step);
  const std::int64_t slot = sequence.slot(2);
  const mx::array tokens = mx::flatten(cache.v_cache(1), 0, 1);
  CHECK(mx::array_equal(
            mx::take(tokens, mx::array(static_cast<int>(slot)), 0),
            mx::full({kKvHeads, kHeadDim}, -1.0f))
            .item<bool>());
}

TEST_CASE("steps of compiled functions keep their shapes for many tokens") {
  KvCache cache(small_cache(300));
  SequenceCache sequence = cache.make_sequence();
  int num_widths = 0;
  int width = 0;
  for (int i = 0; i < 2000; ++i) {
    const auto step = cache.begin_step({{&sequence}}, {{1}});
    REQUIRE(step);
    CHECK(step->max_seq_len == i + 1);
    CHECK(step->block_table.shape(1) * 8 >= i + 1);
    CHECK(step->block_table.shape(1) * 8 <= (i + 8) * 9 / 8 + 8);
    num_widths += step->block_table.shape(1) != width;
    width = step->block_table.shape(1);
    cache.complete_step(*step);
  }
  CHECK(num_widths < 60);
}

TEST_CASE("wrong options throw, and say what they got") {
  const auto error = [](auto change) {
    KvCacheOptions options = small_cache(4);
    change(options);
    return error_of([&] { KvCache cache(options); });
  };
  CHECK(error([](KvCacheOptions&) {}) == "no error");
  CHECK(error([](KvCacheOptions& o) {
          o.num_layers = 0;
        }) == "[KvCache] num_layers must be at least 1; got 0.");
  CHECK(error([](KvCacheOptions& o) {
          o.num_kv_heads = -1;
        }) == "[KvCache] num_kv_heads must be at least 1; got -1.");
  CHECK(error([](KvCacheOptions& o) {
          o.head_dim = 0;
        }) == "[KvCache] head_dim must be at least 1; got 0.");
  CHECK(error([](KvCacheOptions& o) {
          o.num_blocks = 0;
        }) == "[KvCache] num_blocks must be at least 1; got 0.");
  CHECK(
      error([](KvCacheOptions& o) { o.block_size = 48; }) ==
      "[KvCache] block_size must be a power of two from 8 to 256; got 48.");
  CHECK(
      error([](KvCacheOptions& o) { o.dtype = mx::int8; }) ==
      "[KvCache] dtype must be float32, float16 or bfloat16; got int8.");
  CHECK(error([](KvCacheOptions& o) {
          o.num_layers = o.num_kv_heads = o.num_blocks = o.head_dim = 1 << 30;
        }).find("[KvCache] The cache must have fewer than 2^63 bytes") == 0);

  KvCache cache(small_cache(4));
  KvCache other(small_cache(4));
  SequenceCache foreign = other.make_sequence();
  CHECK(
      error_of([&] { (void)cache.begin_step({{&foreign}}, {{1}}); }) ==
      "[begin_step] Every sequence must be of this cache's pool; got one of "
      "another.");
  CHECK(error_of([&] {
          (void)cache.k_cache(2);
        }) == "[k_cache] layer must be from 0 to 1; got 2.");
  CHECK(error_of([&] {
          (void)cache.v_cache(-1);
        }) == "[v_cache] layer must be from 0 to 1; got -1.");
}

TEST_CASE(
    "a cache larger than the memory is refused before anything is taken") {
  const std::optional<MemoryRoom> room = memory_room(mx::Device::cpu);
  REQUIRE(room);
  CHECK(room->bytes > 0);
  KvCacheOptions options = small_cache(1);
  options.num_blocks = 1 << 20;
  options.num_layers = static_cast<int>(
      room->bytes / kv_cache_bytes(small_cache(1 << 20)) * 2 + 4);
  const std::size_t before = mx::get_active_memory();
  mx::reset_peak_memory();
  const std::string error = error_of([&] { KvCache cache(options); });
  CAPTURE(error);
  CHECK(
      error.find("[KvCache] The cache must fit into memory; got a cache of ") ==
      0);
  CHECK(error.find(room->limit + " is ") != std::string::npos);
  CHECK(mx::get_peak_memory() <= before);
}

}  // namespace
}  // namespace quire::test
