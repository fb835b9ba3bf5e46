// kv_append and copy_blocks: what they write, what they refuse, and that they
// never copy a pool.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "quire/runtime.h"
#include "support/mlx_case.h"

namespace quire::test {
namespace {

constexpr DType kDTypes[] = {DType::Float32, DType::Float16, DType::BFloat16};

mx::array int64_array(const std::vector<std::int64_t>& values) {
  return mx::array(
      values.begin(), {static_cast<int>(values.size())}, mx::int64);
}

// Caches of `num_blocks` blocks of 8 slots, 2 heads, head_dim 4, all `value`.
struct Caches {
  explicit Caches(int num_blocks, DType dtype = DType::Float32, float value = 7)
      : k(mx::full({num_blocks, 8, 2, 4}, value, mlx_dtype(dtype))),
        v(mx::full({num_blocks, 8, 2, 4}, -value, mlx_dtype(dtype))) {
    mx::eval(k, v);
  }
  mx::array k;
  mx::array v;
};

// Tokens whose elements count up from `first`.
mx::array tokens(int num_tokens, int first, DType dtype = DType::Float32) {
  const int size = num_tokens * 8;
  return mx::astype(
      mx::reshape(mx::arange(first, first + size), {num_tokens, 2, 4}),
      mlx_dtype(dtype));
}

std::string error_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "no error";
}

TEST_CASE("kv_append writes each token to its slot and nothing else") {
  for (const DType dtype : kDTypes) {
    for (const DType kv_dtype : kDTypes) {
      CAPTURE(dtype_name(dtype));
      CAPTURE(dtype_name(kv_dtype));
      Caches c(3, kv_dtype);
      std::vector<float> k = host_values(c.k);
      std::vector<float> v = host_values(c.v);
      const std::vector<std::int64_t> slots = {23, 0, -1, 9};
      for (std::size_t i = 0; i < slots.size(); ++i) {
        for (std::size_t e = 0; slots[i] >= 0 && e < 8; ++e) {
          const auto at = static_cast<std::size_t>(slots[i]) * 8 + e;
          k[at] = static_cast<float>(i * 8 + e);
          v[at] = static_cast<float>(100 + i * 8 + e);
        }
      }
      std::tie(c.k, c.v) = kv_append(
          c.k,
          c.v,
          tokens(4, 0, dtype),
          tokens(4, 100, dtype),
          int64_array(slots));
      CHECK(c.k.dtype() == mlx_dtype(kv_dtype));
      CHECK(host_values(c.k) == k);
      CHECK(host_values(c.v) == v);
    }
  }
}

TEST_CASE("kv_append takes k, v and slots of any strides") {
  Caches c(2);
  const mx::array k = mx::transpose(
      mx::contiguous(mx::transpose(tokens(2, 0), {2, 0, 1})), {1, 2, 0});
  const mx::array slots = mx::slice(int64_array({3, -1, 9, -1}), {0}, {4}, {2});
  std::tie(c.k, c.v) = kv_append(c.k, c.v, k, tokens(2, 50), slots);
  const std::vector<float> out = host_values(c.k);
  for (std::size_t e = 0; e < 8; ++e) {
    CHECK(out[3 * 8 + e] == static_cast<float>(e));
    CHECK(out[9 * 8 + e] == static_cast<float>(8 + e));
  }
}

TEST_CASE("kv_append rounds to nearest even, and NaN stays NaN") {
  const auto bits = [](std::uint32_t b) { return std::bit_cast<float>(b); };
  const std::vector<float> values = {
      bits(0x3F800001),
      bits(0x3F808000),
      bits(0x3F808001),
      bits(0x3F818000),
      bits(0x7F800001),
      bits(0x7F7FFFFF),
      bits(0x00000001),
      -0.0f,
      65519.9f,
      65520.0f,
      6e-8f,
      5.96e-8f,
      2.98e-8f,
      -65520.0f,
      1.0f / 3.0f,
      -bits(0x7F800001)};
  const mx::array k =
      to_array(to_elements(values, DType::Float32), {2, 2, 4}, DType::Float32);
  for (const DType kv_dtype : {DType::Float16, DType::BFloat16}) {
    CAPTURE(dtype_name(kv_dtype));
    Caches c(1, kv_dtype);
    std::tie(c.k, c.v) = kv_append(c.k, c.v, k, k, int64_array({0, 1}));
    const std::vector<float> expected =
        host_values(mx::astype(k, mlx_dtype(kv_dtype)));
    const std::vector<float> actual = host_values(c.k);
    for (std::size_t i = 0; i < values.size(); ++i) {
      CAPTURE(i);
      if (std::isnan(values[i])) {
        CHECK(std::isnan(actual[i]));
      } else {
        CHECK(
            std::bit_cast<std::uint32_t>(actual[i]) ==
            std::bit_cast<std::uint32_t>(expected[i]));
      }
    }
  }
}

TEST_CASE("a slot outside the cache is an error before anything is written") {
  for (const std::int64_t slot :
       {std::int64_t{-17},
        std::int64_t{-2},
        std::int64_t{24},
        std::int64_t{1} << 31,
        std::int64_t{1} << 40,
        std::numeric_limits<std::int64_t>::min()}) {
    CAPTURE(slot);
    Caches c(3);
    // The good token comes first.
    const auto [k, v] =
        kv_append(c.k, c.v, tokens(2, 0), tokens(2, 0), int64_array({5, slot}));
    const std::string error = error_of([&, out = k] { mx::eval(out); });
    CHECK(error.find("[kv_append] ") == 0);
    CHECK(error.find(std::to_string(slot)) != std::string::npos);
    CHECK(host_values(c.k) == std::vector<float>(3 * 64, 7.0f));
    CHECK(host_values(c.v) == std::vector<float>(3 * 64, -7.0f));
  }
  // The last slot is inside.
  Caches c(3);
  std::tie(c.k, c.v) =
      kv_append(c.k, c.v, tokens(1, 0), tokens(1, 0), int64_array({23}));
  CHECK(host_values(c.k).back() == 7.0f);
  CHECK(host_values(c.k)[23 * 8 + 1] == 1.0f);
}

TEST_CASE("copy_blocks copies whole blocks, stale slots and all") {
  for (const DType dtype : kDTypes) {
    Caches c(4, dtype, 0.0f);
    std::vector<std::int64_t> slots(16);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      slots[i] = static_cast<std::int64_t>(i);
    }
    const mx::array stale = mx::where(
        mx::less(tokens(16, 0), mx::array(96)), tokens(16, 0), mx::array(NAN));
    std::tie(c.k, c.v) =
        kv_append(c.k, c.v, stale, mx::negative(stale), int64_array(slots));
    std::tie(c.k, c.v) =
        copy_blocks(c.k, c.v, int32_array({0, 2, 1, 3}, {2, 2}));
    const std::vector<float> k = host_values(c.k);
    const std::vector<float> v = host_values(c.v);
    for (std::size_t i = 0; i < 128; ++i) {
      const bool is_stale = i >= 96;
      CHECK(std::isnan(k[128 + i]) == is_stale);
      if (!is_stale) {
        CHECK(k[i] == static_cast<float>(i));
        CHECK(k[128 + i] == static_cast<float>(i));
        CHECK(v[128 + i] == -static_cast<float>(i));
      }
    }
  }
}

TEST_CASE("copies of one call act as if done in order") {
  Caches c(4);
  std::tie(c.k, c.v) =
      kv_append(c.k, c.v, tokens(1, 0), tokens(1, 0), int64_array({0}));
  std::tie(c.k, c.v) =
      copy_blocks(c.k, c.v, int32_array({0, 1, 1, 2, 3, 0}, {3, 2}));
  const std::vector<float> k = host_values(c.k);
  const std::vector<float> v = host_values(c.v);
  for (std::size_t i = 0; i < 8; ++i) {
    CHECK(k[i] == 7.0f);
    CHECK(k[64 + i] == static_cast<float>(i));
    CHECK(k[128 + i] == static_cast<float>(i));
    CHECK(v[128 + i] == static_cast<float>(i));
  }
}

TEST_CASE("a block id outside the pool is an error before any copy") {
  for (const std::int32_t id : {-1, 4, 1 << 30}) {
    for (const bool source : {true, false}) {
      CAPTURE(id);
      Caches c(4);
      std::tie(c.k, c.v) =
          kv_append(c.k, c.v, tokens(1, 0), tokens(1, 0), int64_array({0}));
      mx::eval(c.k, c.v);
      const std::vector<float> before = host_values(c.k);
      const auto [k, v] = copy_blocks(
          c.k,
          c.v,
          int32_array({0, 1, source ? id : 0, source ? 2 : id}, {2, 2}));
      const std::string error = error_of([&, out = k] { mx::eval(out); });
      CHECK(error.find("[copy_blocks] ") == 0);
      CHECK(error.find(std::to_string(id)) != std::string::npos);
      CHECK(host_values(c.k) == before);
    }
  }
}

TEST_CASE("nothing to write gives the caches back") {
  const Caches c(2);
  const auto appended =
      kv_append(c.k, c.v, tokens(0, 0), tokens(0, 0), int64_array({}));
  const auto copied = copy_blocks(c.k, c.v, int32_array({}, {0, 2}));
  CHECK(appended.first.id() == c.k.id());
  CHECK(copied.second.id() == c.v.id());
}

TEST_CASE("a cache that is not one dense buffer is refused, never copied") {
  Caches c(2);
  c.v = mx::swapaxes(mx::contiguous(mx::swapaxes(c.v, 1, 2)), 1, 2);
  const auto appended =
      kv_append(c.k, c.v, tokens(1, 0), tokens(1, 0), int64_array({0}));
  CHECK(
      error_of([&] { mx::eval(appended.first); }) ==
      "[kv_append] v_cache must be row contiguous (it is never copied); got "
      "the shape (2, 8, 2, 4) with strides (64, 4, 32, 1).");
  const auto copied = copy_blocks(c.k, c.v, int32_array({0, 1}, {1, 2}));
  CHECK(error_of([&] {
          mx::eval(copied.first);
        }).find("[copy_blocks] v_cache must be row contiguous") == 0);
}

TEST_CASE("wrong arguments throw when the op is built") {
  const Caches c(2);
  const mx::array k = tokens(2, 0);
  const mx::array slots = int64_array({0, 1});
  const auto append_error = [&](const mx::array& k_cache,
                                const mx::array& v_cache,
                                const mx::array& keys,
                                const mx::array& values,
                                const mx::array& slot_mapping) {
    return error_of(
        [&] { kv_append(k_cache, v_cache, keys, values, slot_mapping); });
  };
  CHECK(append_error(c.k, c.v, k, k, slots) == "no error");
  CHECK(
      append_error(c.k, c.v, k, mx::astype(k, mx::float16), slots) ==
      "[kv_append] v must be float32; got float16.");
  CHECK(
      append_error(c.k, c.v, mx::astype(k, mx::int32), k, slots) ==
      "[kv_append] k must be float32, float16 or bfloat16; got int32.");
  CHECK(
      append_error(c.k, c.v, k, k, mx::astype(slots, mx::int32)) ==
      "[kv_append] slot_mapping must be int64; got int32.");
  CHECK(
      append_error(c.k, c.v, k, tokens(3, 0), slots) ==
      "[kv_append] k, v and slot_mapping must have one num_tokens and k and v "
      "one shape; got (2, 2, 4), (3, 2, 4) and (2).");
  CHECK(
      append_error(c.k, c.v, k, k, int64_array({1})) ==
      "[kv_append] k, v and slot_mapping must have one num_tokens and k and v "
      "one shape; got (2, 2, 4), (2, 2, 4) and (1).");
  CHECK(
      append_error(
          c.k, c.v, mx::swapaxes(k, 1, 2), mx::swapaxes(k, 1, 2), slots) ==
      "[kv_append] k and the caches must have the same num_kv_heads and "
      "head_dim; got (2, 4, 2) and (2, 8, 2, 4).");
  CHECK(
      append_error(mx::astype(c.k, mx::int8), c.v, k, k, slots) ==
      "[kv_append] k_cache must be float32, float16 or bfloat16; got int8.");
  CHECK(
      append_error(c.k, mx::flatten(c.v, 0, 1), k, k, slots) ==
      "[kv_append] k_cache and v_cache must have one shape; got (2, 8, 2, 4) "
      "and (16, 2, 4).");

  const auto copy_error = [&](const mx::array& copies) {
    return error_of([&] { copy_blocks(c.k, c.v, copies); });
  };
  CHECK(
      copy_error(int32_array({0, 1, 1}, {1, 3})) ==
      "[copy_blocks] block_copies must have the shape [num_copies, 2]; got "
      "(1, 3).");
  CHECK(
      copy_error(int64_array({0, 1})) ==
      "[copy_blocks] block_copies must be int32; got int64.");
}

// A pool of 32 MB each for K and V, a step at a time, with the arrays of every
// earlier step still held and earlier steps' attention not yet evaluated.
TEST_CASE("200 steps under async_eval copy no pool") {
  const int num_blocks = 1024;
  mx::array k_cache = mx::zeros({num_blocks, 16, 8, 64}, mx::float32);
  mx::array v_cache = mx::zeros({num_blocks, 16, 8, 64}, mx::float32);
  const std::vector<std::int32_t> ids = {
      1023, 3, 700, 4, 5, 90, 91, 8, 17, 6, 2, 12, 900};
  const mx::array table = int32_array(ids, {1, static_cast<int>(ids.size())});
  mx::eval(k_cache, v_cache, table);
  const void* const k_address = k_cache.data<void>();
  const void* const v_address = v_cache.data<void>();
  const std::size_t pool_bytes = k_cache.nbytes();
  mx::reset_peak_memory();
  const std::size_t before = mx::get_active_memory();

  std::vector<mx::array> outputs;
  std::vector<mx::array> old_handles;
  for (int step = 0; step < 200; ++step) {
    old_handles.push_back(k_cache);
    old_handles.push_back(v_cache);
    const auto idx = static_cast<std::size_t>(step);
    const std::int64_t slot = ids[idx / 16] * std::int64_t{16} + step % 16;
    // V of token t is t; all logits are equal: the mean of 0 .. t is t / 2.
    std::tie(k_cache, v_cache) = kv_append(
        k_cache,
        v_cache,
        mx::zeros({1, 8, 64}),
        mx::full({1, 8, 64}, static_cast<float>(step)),
        int64_array({slot}));
    outputs.push_back(paged_attention(
        mx::ones({1, 8, 64}),
        k_cache,
        v_cache,
        table,
        mx::array({step + 1}, mx::int32),
        1.0f));
    // Every other step's reader stays unevaluated while later steps append.
    if (step % 2) {
      mx::async_eval(outputs.back());
    } else {
      mx::async_eval(k_cache, v_cache);
    }
  }
  mx::eval(outputs);
  CHECK(k_cache.data<void>() == k_address);
  CHECK(v_cache.data<void>() == v_address);
  for (const mx::array& old : old_handles) {
    CHECK((old.data<void>() == k_address || old.data<void>() == v_address));
  }
  CHECK(mx::get_peak_memory() - before < pool_bytes / 4);
  for (int step = 0; step < 200; ++step) {
    CAPTURE(step);
    const float value =
        mx::max(outputs[static_cast<std::size_t>(step)]).item<float>();
    CHECK(value == doctest::Approx(step / 2.0).epsilon(1e-5));
  }
}

TEST_CASE("compiled append and attention equal the uncompiled ones") {
  constexpr int kWidth = 40;
  const auto step = [](const std::vector<mx::array>& in) {
    const auto [k_cache, v_cache] =
        kv_append(in[0], in[1], in[2], in[3], in[4]);
    return std::vector<mx::array>{
        k_cache,
        v_cache,
        paged_attention(in[5], k_cache, v_cache, in[6], in[7], 0.3f)};
  };
  const auto compiled = mx::compile(step);
  const auto pool = [] {
    return mx::random::normal({64, 32, 2, 64}, mx::float16, mx::random::key(3));
  };
  mx::array plain_k = mx::contiguous(pool());
  mx::array plain_v = mx::contiguous(pool());
  mx::array compiled_k = mx::contiguous(pool());
  mx::array compiled_v = mx::contiguous(pool());
  mx::eval(plain_k, plain_v, compiled_k, compiled_v);

  int seed = 0;
  for (const int seq_len : {31, 32, 33, 1025, 1, 600}) {
    CAPTURE(seq_len);
    ++seed;
    std::vector<std::int32_t> ids(kWidth);
    for (int j = 0; j < kWidth; ++j) {
      ids[static_cast<std::size_t>(j)] = (j * 7 + seed * 5) % 64;
    }
    const int last = seq_len - 1;
    const std::int64_t slot =
        ids[static_cast<std::size_t>(last / 32)] * std::int64_t{32} + last % 32;
    const auto normal = [&](const mx::Shape& shape, int key) {
      return mx::random::normal(
          shape,
          mx::float32,
          mx::random::key(static_cast<std::uint64_t>(100 * seed + key)));
    };
    std::vector<mx::array> in = {
        plain_k,
        plain_v,
        normal({1, 2, 64}, 1),
        normal({1, 2, 64}, 2),
        int64_array({slot}),
        normal({1, 6, 64}, 3),
        int32_array(ids, {1, kWidth}),
        mx::array({seq_len}, mx::int32)};
    const std::vector<mx::array> plain_out = step(in);
    in[0] = compiled_k;
    in[1] = compiled_v;
    const std::vector<mx::array> compiled_out = compiled(in);
    plain_k = plain_out[0];
    plain_v = plain_out[1];
    compiled_k = compiled_out[0];
    compiled_v = compiled_out[1];
    CHECK(mx::array_equal(plain_out[2], compiled_out[2]).item<bool>());
    CHECK(mx::array_equal(plain_k, compiled_k).item<bool>());
    CHECK(mx::array_equal(plain_v, compiled_v).item<bool>());
  }
}

// Two pools of 4.3 GB, of which three blocks are ever touched.
TEST_CASE("elements beyond 2^31: append, copy, fused and gather") {
  constexpr int kBlocks = 66000;
  constexpr int kBlock = 32;
  const auto run = [](int num_blocks, int first_block) {
    const mx::Shape shape = {num_blocks, kBlock, 8, 128};
    const auto bytes =
        static_cast<std::size_t>(num_blocks) * kBlock * 8 * 128 * 2;
    mx::array k_cache(mx::allocator::malloc(bytes), shape, mx::float16);
    mx::array v_cache(mx::allocator::malloc(bytes), shape, mx::float16);
    constexpr int kTokens = 2 * kBlock;
    std::vector<std::int64_t> slots(kTokens);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      slots[i] =
          std::int64_t{first_block} * kBlock + static_cast<std::int64_t>(i);
    }
    const auto normal = [&](const mx::Shape& s, std::uint64_t key) {
      return mx::random::normal(s, mx::float32, mx::random::key(key));
    };
    std::tie(k_cache, v_cache) = kv_append(
        k_cache,
        v_cache,
        normal({kTokens, 8, 128}, 1),
        normal({kTokens, 8, 128}, 2),
        int64_array(slots));
    std::tie(k_cache, v_cache) = copy_blocks(
        k_cache, v_cache, int32_array({first_block, first_block + 2}, {1, 2}));
    const mx::array table =
        int32_array({first_block + 2, first_block + 1, first_block}, {1, 3});
    std::vector<float> out;
    for (const PagedAttentionOptions& options :
         {PagedAttentionOptions{}, kGather}) {
      const std::vector<float> values = host_values(paged_attention(
          normal({1, 16, 128}, 3),
          k_cache,
          v_cache,
          table,
          mx::array({90}, mx::int32),
          0.1f,
          options));
      out.insert(out.end(), values.begin(), values.end());
    }
    return out;
  };
  CHECK(run(kBlocks, kBlocks - 3) == run(3, 0));
}

}  // namespace
}  // namespace quire::test
