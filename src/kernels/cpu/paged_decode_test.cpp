#include "kernels/cpu/paged_decode.h"

#include <doctest/doctest.h>

#include <limits>
#include <memory>
#include <string>
#include <thread>

#include "kernels/cpu/decode_engine.h"
#include "kernels/cpu/decode_test_inputs.h"
#include "kernels/reference/paged_decode_reference.h"

namespace quire {
namespace {

using cpu::DecodeEngine;
using cpu::Isa;
using test::DecodeCase;
using test::DecodeInputs;

constexpr DType kDTypes[] = {DType::Float32, DType::Float16, DType::BFloat16};
constexpr int kHeadDims[] = {64, 80, 96, 128, 256};
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// Sanitizers and emulators run the same kinds of cases, fewer of them.
#if defined(QUIRE_QEMU_SUBSET)
constexpr int kCaseStride = 23;
#elif defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kCaseStride = 7;
#else
constexpr int kCaseStride = 1;
#endif
constexpr bool kSubset = kCaseStride > 1;

DecodeEngine& engine(int num_threads) {
  using std::chrono::microseconds;
  static DecodeEngine one(1);
  static DecodeEngine two(2);
  static DecodeEngine five(5, microseconds(0));  // sleeps at once
  return num_threads == 1 ? one : num_threads == 2 ? two : five;
}
constexpr int kThreads[] = {2, 1, 5};

std::vector<std::byte>
decode(DecodeInputs& inputs, Isa isa, int num_threads, int num_splits) {
  engine(num_threads).paged_decode(inputs.args(num_splits), isa);
  CHECK(inputs.canaries_alive());
  return inputs.out();
}

std::vector<double> reference_of(DecodeInputs& inputs) {
  std::vector<double> out(static_cast<std::size_t>(inputs.out_size()));
  reference::paged_decode(inputs.args(), out.data());
  return out;
}

std::string
describe(const DecodeCase& c, Isa isa, int num_threads, int num_splits) {
  return std::string(dtype_name(c.q_dtype)) + " over " +
         dtype_name(c.kv_dtype) + ", heads " + std::to_string(c.num_q_heads) +
         "/" + std::to_string(c.num_kv_heads) + ", head_dim " +
         std::to_string(c.head_dim) + ", block " +
         std::to_string(c.block_size) + ", " + std::string(cpu::isa_name(isa)) +
         ", threads " + std::to_string(num_threads) + ", splits " +
         std::to_string(num_splits);
}

std::vector<int> ragged_lens(int block_size) {
  return {
      0,
      1,
      block_size - 1,
      block_size,
      block_size + 1,
      0,
      77,
      3 * block_size + 5};
}

TEST_CASE("paged_decode agrees with the double reference in every shape") {
  constexpr int kGroups[] = {1, 2, 3, 4, 7, 8, 16, 71};
  constexpr int kSplits[] = {0, 1, 2, 7, 64};
  int num = 0;
  for (const DType q_dtype : kDTypes) {
    for (const DType kv_dtype : kDTypes) {
      for (const int head_dim : kHeadDims) {
        for (const int group : kGroups) {
          ++num;
          if (num % kCaseStride != 0) {
            continue;
          }
          DecodeCase c;
          c.q_dtype = q_dtype;
          c.kv_dtype = kv_dtype;
          c.num_kv_heads = group > 8 ? 1 : num % 3 + 1;
          c.num_q_heads = group * c.num_kv_heads;
          c.head_dim = head_dim;
          c.block_size = 8 << num % 6;  // 6 sizes against 5 dims, 8 groups
          c.seq_lens = ragged_lens(std::min(c.block_size, 64));
          c.seed = static_cast<std::uint32_t>(num);
          DecodeInputs inputs(c, kNan);
          const std::vector<double> expected = reference_of(inputs);
          for (const Isa isa : cpu::available_isas()) {
            for (int i = 0; i < 3; ++i) {
              const int threads = kThreads[i];
              const int splits = kSplits[(num + i) % 5];
              const auto out = decode(inputs, isa, threads, splits);
              CAPTURE(describe(c, isa, threads, splits));
              CHECK(test::worst_error(out, expected, q_dtype) < 1.0);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("paged_decode is right for every block size and split count") {
  for (int block_size = 8; block_size <= 256; block_size *= 2) {
    DecodeCase c;
    c.kv_dtype = DType::Float16;
    c.block_size = block_size;
    c.num_q_heads = 6;
    c.seq_lens = ragged_lens(block_size);
    c.seq_lens.push_back(kSubset ? 300 : 2000);
    DecodeInputs inputs(c, kInf);
    const std::vector<double> expected = reference_of(inputs);
    for (const Isa isa : cpu::available_isas()) {
      for (const int splits : {0, 1, 2, 3, 7, 64, 200}) {
        for (const int threads : kThreads) {
          const auto out = decode(inputs, isa, threads, splits);
          CAPTURE(describe(c, isa, threads, splits));
          CHECK(test::worst_error(out, expected, c.q_dtype) < 1.0);
        }
      }
    }
  }
}

TEST_CASE("paged_decode is right for a sequence of 100,000 tokens") {
  DecodeCase c;
  c.kv_dtype = DType::BFloat16;
  c.num_q_heads = 2;
  c.num_kv_heads = 1;
  c.seq_lens = {kSubset ? 5000 : 100000, 3};
  DecodeInputs inputs(c, kNan);
  const std::vector<double> expected = reference_of(inputs);
  for (const Isa isa : cpu::available_isas()) {
    for (const int splits : {0, 4}) {
      CAPTURE(describe(c, isa, 2, splits));
      const auto out = decode(inputs, isa, 2, splits);
      CHECK(test::worst_error(out, expected, c.q_dtype) < 1.0);
    }
  }
}

TEST_CASE("Slots past seq_len and free blocks never reach the result") {
  for (const DType kv_dtype : kDTypes) {
    DecodeCase c;
    c.kv_dtype = kv_dtype;
    c.seq_lens = {1, 15, 16, 17, 500, 0, 33};
    DecodeInputs zeros(c, 0.0f);
    DecodeInputs nans(c, kNan);
    DecodeInputs infs(c, kInf);
    for (const Isa isa : cpu::available_isas()) {
      for (const int splits : {0, 7}) {
        CAPTURE(describe(c, isa, 2, splits));
        const auto expected = decode(zeros, isa, 2, splits);
        CHECK(decode(nans, isa, 2, splits) == expected);
        CHECK(decode(infs, isa, 2, splits) == expected);
      }
    }
  }
}

TEST_CASE("With q = 0 the result is the plain mean of the valid V rows") {
  for (const int block_size : {8, 32, 256}) {
    DecodeCase c;
    c.block_size = block_size;
    c.num_q_heads = 3;
    c.num_kv_heads = 1;
    c.seq_lens.clear();
    for (int len = 1; len <= 300; len += kSubset ? 13 : 1) {
      c.seq_lens.push_back(len);
    }
    DecodeInputs inputs(c, kNan);
    std::fill(inputs.q.begin(), inputs.q.end(), std::byte{0});
    const std::vector<double> expected = reference_of(inputs);
    for (const Isa isa : cpu::available_isas()) {
      const auto out = decode(inputs, isa, 2, 0);
      double worst = 0.0;
      for (std::size_t i = 0; i < expected.size(); ++i) {
        worst = std::max(
            worst,
            std::abs(
                test::get(out, static_cast<std::int64_t>(i), c.q_dtype) -
                expected[i]));
      }
      CAPTURE(describe(c, isa, 2, 0));
      CHECK(worst < 1e-6);
    }
  }
}

TEST_CASE("A table wider than needed changes nothing, whatever it holds") {
  DecodeCase c;
  c.kv_dtype = DType::Float16;
  c.block_size = 16;
  c.seq_lens = {16 * 64, 16 * 64 - 1, 16 * 64 + 1, 16, 31};
  c.extra_width = 0;
  DecodeInputs narrow(c, 1e4f);
  c.extra_width = 3;
  DecodeInputs wide(c, 1e4f);
  // Unused entries name a valid block full of 1e4.
  std::vector<bool> used(4096);
  for (const std::int32_t id : narrow.table) {
    if (id != DecodeInputs::kUnusedId) {
      used[static_cast<std::size_t>(id)] = true;
    }
  }
  const auto free_id = static_cast<std::int32_t>(
      std::find(used.begin(), used.end(), false) - used.begin());
  std::replace(
      wide.table.begin(), wide.table.end(), DecodeInputs::kUnusedId, free_id);
  for (const Isa isa : cpu::available_isas()) {
    CAPTURE(cpu::isa_name(isa));
    CHECK(decode(narrow, isa, 2, 0) == decode(wide, isa, 2, 0));
    CHECK(decode(narrow, isa, 2, 3) == decode(wide, isa, 2, 3));
  }
}

TEST_CASE("Forced splits give a row the same bits in any company") {
  // One sequence alone, then among others, on different numbers of threads.
  for (const DType kv_dtype : kDTypes) {
    DecodeCase alone;
    alone.kv_dtype = kv_dtype;
    alone.num_q_heads = 8;
    alone.seq_lens = {300};
    for (const int splits : {1, 4}) {
      for (const Isa isa : cpu::available_isas()) {
        DecodeInputs one(alone, kNan);
        const auto expected = decode(one, isa, 1, splits);
        for (const int batch : {2, 3, 5, 8, 17, 40}) {
          DecodeCase c = alone;
          for (int i = 1; i < batch; ++i) {
            c.seq_lens.push_back(i * 37 % 301);
          }
          DecodeInputs inputs(c, kNan);
          // The first sequence comes out of the same stream of numbers, but
          // its q does not.
          std::copy(one.q.begin(), one.q.end(), inputs.q.begin());
          for (const int threads : kThreads) {
            auto out = decode(inputs, isa, threads, splits);
            out.resize(expected.size());
            CAPTURE(describe(c, isa, threads, splits));
            CHECK(out == expected);
          }
        }
      }
    }
  }
}

TEST_CASE("Splits beyond a sequence's tokens change nothing, nor cost memory") {
  DecodeCase c;
  c.num_q_heads = 8;
  c.seq_lens = {300, 5, 0};
  DecodeInputs inputs(c, kNan);
  const Isa isa = cpu::selected_isa();
  const auto expected = decode(inputs, isa, 2, 300);
  // A state for each would not fit any memory.
  CHECK(decode(inputs, isa, 2, std::numeric_limits<int>::max()) == expected);
}

TEST_CASE(
    "Two sequences of equal contents in different blocks give equal rows") {
  for (const int len : {1, 2, 3, 33}) {
    DecodeCase c;
    c.seq_lens = {len, len};
    DecodeInputs inputs(c, kNan);
    const std::size_t row = inputs.q.size() / 2;
    std::copy_n(
        inputs.q.begin(),
        row,
        inputs.q.begin() + static_cast<std::ptrdiff_t>(row));
    const std::size_t block =
        static_cast<std::size_t>(c.block_size * c.num_kv_heads * c.head_dim) *
        4;
    for (int i = 0; i * c.block_size < len; ++i) {
      const auto from =
          static_cast<std::size_t>(inputs.table[static_cast<std::size_t>(i)]) *
          block;
      const auto to =
          static_cast<std::size_t>(
              inputs.table[static_cast<std::size_t>(inputs.width() + i)]) *
          block;
      std::memcpy(inputs.k.data() + to, inputs.k.data() + from, block);
      std::memcpy(inputs.v.data() + to, inputs.v.data() + from, block);
    }
    const std::vector<double> expected = reference_of(inputs);
    for (const Isa isa : cpu::available_isas()) {
      for (const int threads : kThreads) {
        const auto out = decode(inputs, isa, threads, 0);
        CAPTURE(describe(c, isa, threads, 0));
        CHECK(test::worst_error(out, expected, c.q_dtype) < 1.0);
        CHECK(std::memcmp(out.data(), out.data() + row, row) == 0);
      }
    }
  }
}

TEST_CASE("Each query head reads the KV head of its group") {
  constexpr int kHeads[][2] = {
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
  for (const auto& heads : kHeads) {
    DecodeCase c;
    c.num_q_heads = heads[0];
    c.num_kv_heads = heads[1];
    c.seq_lens = {40};
    DecodeInputs inputs(c, kNan);
    // V of KV head h is h everywhere: a mean of h is h, exactly.
    for (int token = 0; token < 40; ++token) {
      const std::int64_t slot =
          std::int64_t{
              inputs.table[static_cast<std::size_t>(token / c.block_size)]} *
              c.block_size +
          token % c.block_size;
      for (int i = 0; i < c.num_kv_heads * c.head_dim; ++i) {
        const int kv_head = i / c.head_dim;
        test::put(
            inputs.v,
            slot * c.num_kv_heads * c.head_dim + i,
            static_cast<float>(kv_head),
            c.kv_dtype);
      }
    }
    for (const Isa isa : cpu::available_isas()) {
      const auto out = decode(inputs, isa, 2, 0);
      double worst = 0.0;
      for (int i = 0; i < c.num_q_heads * c.head_dim; ++i) {
        const int kv_head = i / c.head_dim / (c.num_q_heads / c.num_kv_heads);
        worst = std::max(
            worst,
            std::abs(test::get(out, i, c.q_dtype) - double{1} * kv_head));
      }
      CAPTURE(describe(c, isa, 2, 0));
      CHECK(worst < 2e-6);
    }
  }
}

TEST_CASE("Extreme logits: one dominant key, all equal, plus and minus 1e4") {
  DecodeCase c;
  c.seq_lens = {200};
  const std::int64_t row = std::int64_t{c.num_kv_heads} * c.head_dim;
  const auto set_keys = [&](DecodeInputs& inputs, auto value) {
    for (int token = 0; token < 200; ++token) {
      const std::int64_t slot =
          std::int64_t{
              inputs.table[static_cast<std::size_t>(token / c.block_size)]} *
              c.block_size +
          token % c.block_size;
      for (std::int64_t i = 0; i < row; ++i) {
        test::put(inputs.k, slot * row + i, value(token), c.kv_dtype);
      }
    }
    for (std::int64_t i = 0; i < inputs.out_size(); ++i) {
      test::put(inputs.q, i, 1.0f, c.q_dtype);
    }
  };
  // The logit of token t is scale * 64 * value(t) = 8 * value(t).
  const auto check = [&](auto value) {
    DecodeInputs inputs(c, kNan);
    set_keys(inputs, value);
    const std::vector<double> expected = reference_of(inputs);
    for (const Isa isa : cpu::available_isas()) {
      for (const int splits : {0, 7}) {
        CAPTURE(describe(c, isa, 2, splits));
        CHECK(
            test::worst_error(
                decode(inputs, isa, 2, splits), expected, c.q_dtype) < 1.0);
      }
    }
  };
  check([](int token) { return token == 77 ? 1250.0f : -1250.0f; });
  check([](int token) { return token == 199 ? -1250.0f : 1250.0f; });
  check([](int token) { return token % 2 == 0 ? 1250.0f : -1250.0f; });
  check([](int) { return 1250.0f; });
  check([](int) { return -1250.0f; });
  check([](int token) { return static_cast<float>(token) / 64.0f; });
  check([](int token) { return -static_cast<float>(token) / 64.0f; });

  // Random logits of up to 1e4: an f32 logit errs by its own size's rounding.
  DecodeInputs inputs(c, kNan);
  for (std::int64_t i = 0; i < inputs.out_size(); ++i) {
    test::put(
        inputs.q, i, 2500.0f * test::get(inputs.q, i, c.q_dtype), c.q_dtype);
  }
  const std::vector<double> expected = reference_of(inputs);
  for (const Isa isa : cpu::available_isas()) {
    CAPTURE(cpu::isa_name(isa));
    CHECK(
        test::worst_error(
            decode(inputs, isa, 2, 0), expected, c.q_dtype, 2500.0) < 1.0);
  }
}

TEST_CASE("NaN and infinity in valid tokens come out as NaN") {
  DecodeCase c;
  c.seq_lens = {40, 40};
  DecodeInputs inputs(c, 0.0f);
  const std::int64_t row = std::int64_t{c.num_kv_heads} * c.head_dim;
  test::put(inputs.k, inputs.table[0] * c.block_size * row, kNan, c.kv_dtype);
  for (const Isa isa : cpu::available_isas()) {
    const auto out = decode(inputs, isa, 2, 0);
    CAPTURE(cpu::isa_name(isa));
    CHECK(std::isnan(test::get(out, 0, c.q_dtype)));
    // KV head 1 and sequence 1 are untouched.
    CHECK(std::isfinite(test::get(out, 2 * c.head_dim, c.q_dtype)));
    CHECK(std::isfinite(test::get(out, 4 * c.head_dim, c.q_dtype)));
  }
}

TEST_CASE("Bad ids and lengths are named, and the engine goes on") {
  DecodeCase c;
  c.seq_lens = {100, 100, 5};
  DecodeInputs inputs(c, kNan);
  const std::vector<double> expected = reference_of(inputs);
  for (const std::int32_t id :
       {-1,
        inputs.args().params.num_blocks,
        1000,
        DecodeInputs::kUnusedId,
        std::numeric_limits<std::int32_t>::min()}) {
    for (const int splits : {0, 3}) {
      std::int32_t& entry =
          inputs.table[static_cast<std::size_t>(inputs.width() + 6)];
      const std::int32_t good = entry;
      entry = id;
      const std::string text =
          "got " + std::to_string(id) + " in entry 6 of sequence 1.";
      CHECK_THROWS_WITH_AS(
          engine(2).paged_decode(inputs.args(splits), Isa::Portable),
          doctest::Contains(text.c_str()),
          std::runtime_error);
      entry = good;
      CHECK(
          test::worst_error(
              decode(inputs, Isa::Portable, 2, splits), expected, c.q_dtype) <
          1.0);
    }
  }
  DecodeArgs args = inputs.args();
  const int capacity = inputs.width() * c.block_size;
  for (const int len : {-1, capacity + 1, std::numeric_limits<int>::max()}) {
    const std::int32_t lens[] = {100, len, 5};
    args.seq_lens = lens;
    const std::string text = "got " + std::to_string(len) + " for sequence 1.";
    CHECK_THROWS_WITH_AS(
        engine(2).paged_decode(args, Isa::Portable),
        doctest::Contains(text.c_str()),
        std::runtime_error);
  }
}

TEST_CASE("Unsupported shapes come with a reason") {
  DecodeCase c;
  DecodeInputs inputs(c, 0.0f);
  const auto reason = [&](auto change) {
    DecodeParams params = inputs.args().params;
    change(params);
    const cpu::Support s =
        cpu::supports_paged_decode(params, DType::Float32, DType::Float16);
    CHECK_FALSE(s.ok);
    return std::string(s.reason);
  };
  CHECK(reason([](DecodeParams& p) {
          p.head_dim = 72;
        }).find("head_dim") != std::string::npos);
  CHECK(reason([](DecodeParams& p) {
          p.num_q_heads = 33;
        }).find("num_q_heads") != std::string::npos);
  CHECK(reason([](DecodeParams& p) {
          p.num_kv_heads = 0;
        }).find("num_q_heads") != std::string::npos);
  CHECK(reason([](DecodeParams& p) {
          p.block_size = 12;
        }).find("block_size") != std::string::npos);
  CHECK(reason([](DecodeParams& p) {
          p.block_size = 512;
        }).find("block_size") != std::string::npos);
  CHECK(cpu::supports_paged_decode(
            inputs.args().params, DType::Float32, DType::Float16)
            .ok);
  DecodeArgs args = inputs.args();
  args.params.head_dim = 72;
  CHECK_THROWS_AS(
      engine(1).paged_decode(args, Isa::Portable), std::invalid_argument);
}

TEST_CASE("An empty batch and a batch of empty sequences") {
  DecodeCase c;
  c.seq_lens = {};
  DecodeInputs none(c, kNan);
  c.seq_lens = {0, 0, 0};
  c.extra_width = 0;
  DecodeInputs empty(c, kNan);
  for (const int splits : {0, 1, 5}) {
    for (const int threads : kThreads) {
      CHECK(decode(none, Isa::Portable, threads, splits).empty());
      const auto out = decode(empty, Isa::Portable, threads, splits);
      CHECK(std::all_of(out.begin(), out.end(), [](std::byte b) {
        return b == std::byte{0};
      }));
    }
  }
}

TEST_CASE("Calls from several threads at once do not mix") {
  DecodeCase c;
  c.kv_dtype = DType::Float16;
  std::vector<std::unique_ptr<DecodeInputs>> inputs;
  std::vector<std::vector<std::byte>> expected;
  for (int i = 0; i < 4; ++i) {
    c.seed = static_cast<std::uint32_t>(i) + 1;
    c.seq_lens = {50 + i, 200 * i};
    inputs.push_back(std::make_unique<DecodeInputs>(c, kNan));
    expected.push_back(
        decode(*inputs.back(), cpu::available_isas().back(), 2, 2));
  }
  std::vector<int> wrong(4);
  std::vector<std::thread> callers;
  for (std::size_t i = 0; i < 4; ++i) {
    callers.emplace_back([&, i] {
      for (int repeat = 0; repeat < 50; ++repeat) {
        engine(2).paged_decode(
            inputs[i]->args(2), cpu::available_isas().back());
        wrong[i] += inputs[i]->out() != expected[i];
      }
    });
  }
  for (std::thread& caller : callers) {
    caller.join();
  }
  CHECK(wrong == std::vector<int>(4));
}

TEST_CASE("The public entry takes the selected instruction set") {
  DecodeCase c;
  c.kv_dtype = DType::BFloat16;
  DecodeInputs inputs(c, kNan);
  const std::vector<double> expected = reference_of(inputs);
  cpu::paged_decode(inputs.args());
  CHECK(test::worst_error(inputs.out(), expected, c.q_dtype) < 1.0);
}

}  // namespace
}  // namespace quire
