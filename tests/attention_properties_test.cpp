// Properties of attention that need no oracle, and random cases that have one.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include <doctest/doctest.h>
#include <rapidcheck.h>

#include "kernels/attention_state.h"
#include "kernels/cpu/cache_write.h"
#include "kernels/cpu/paged_decode.h"
#include "quire/sequence_cache.h"
#include "support/conformance.h"
#include "support/element.h"
#include "support/property.h"

using namespace quire;
using namespace quire::testing;

namespace {

// A partial state over one value: o, m, d as attention_state.h has them.
struct State {
  float o, m, d;
};

State merge(const State& a, const State& b) {
  const MergeFactors f = merge_factors(a.m, b.m);
  return {
      a.o * f.first + b.o * f.second,
      f.max_log2,
      a.d * f.first + b.d * f.second};
}

bool same(const State& a, const State& b) {
  const auto near = [](float x, float y) {
    return x == y || std::fabs(x - y) <= 1e-5f * (1 + std::fabs(x));
  };
  return near(a.o * inverse_denominator(a.d), b.o * inverse_denominator(b.d)) &&
         near(state_lse_log2(a.m, a.d), state_lse_log2(b.m, b.d));
}

// A state as a kernel leaves it: of no keys, or d in [1, 100).
State random_state() {
  if (*rc::gen::inRange(0, 8) == 0) {
    return {0, -INFINITY, 0};
  }
  const auto tenths = [](int low, int high) {
    return static_cast<float>(*rc::gen::inRange(low, high)) / 10;
  };
  const float d = tenths(10, 1000);
  return {d * tenths(-50, 50), tenths(-200000, 200000), d};
}

DecodeCase random_case() {
  const auto dtype = [] {
    return *rc::gen::element(DType::Float32, DType::Float16, DType::BFloat16);
  };
  DecodeCase c;
  c.q_dtype = dtype();
  c.kv_dtype = dtype();
  c.head_dim = *rc::gen::element(64, 80, 96, 128, 256);
  c.num_kv_heads = *rc::gen::inRange(1, 5);
  c.num_q_heads = c.num_kv_heads * *rc::gen::inRange(1, 10);
  c.block_size = *rc::gen::element(8, 16, 32, 64, 128, 256);
  c.num_splits = *rc::gen::inRange(0, 9);
  c.logits = *rc::gen::element(
      Logits::Normal, Logits::Normal, Logits::Dominant, Logits::Equal);
  c.share_blocks = *rc::gen::arbitrary<bool>();
  const int num_seqs = *rc::gen::inRange(1, 6);
  for (int i = 0; i < num_seqs; ++i) {
    c.seq_lens.push_back(*rc::gen::inRange(0, 120));
  }
  return make_case(c);
}

std::vector<std::uint8_t> run(CaseData& data, const DecodeArgs& args) {
  data.clear_out();
  cpu::paged_decode(args);
  return data.out_bytes();
}

Backend cpu_backend() {
  return {
      .name = "cpu",
      .rounding = {},
      .skip = [](const DecodeCase&) { return std::string(); },
      .run = [](const DecodeArgs& args) { cpu::paged_decode(args); }};
}

}  // namespace

TEST_CASE("merging states is commutative and has an identity") {
  check_property(1000, [] {
    const State a = random_state();
    const State b = random_state();
    const State none{0, -INFINITY, 0};
    RC_ASSERT(same(merge(a, b), merge(b, a)));
    RC_ASSERT(same(merge(a, none), a));
    RC_ASSERT(same(merge(none, a), a));
    RC_ASSERT(merge(none, none).d == 0.0f);
  });
}

TEST_CASE("merging states is associative within rounding") {
  check_property(1000, [] {
    const State a = random_state();
    const State b = random_state();
    const State c = random_state();
    RC_ASSERT(same(merge(merge(a, b), c), merge(a, merge(b, c))));
  });
}

TEST_CASE("random cases agree with the reference in double") {
  const Backend backend = cpu_backend();
  check_property(2000, [&] {
    const DecodeCase c = random_case();
    const std::string wrong = check_case(c, {&backend, 1});
    if (!wrong.empty()) {
      RC_FAIL(wrong);
    }
  });
}

TEST_CASE("the number of splits changes a result through rounding only") {
  check_property(200, [] {
    const DecodeCase c = random_case();
    CaseData data(c);
    const Expected expected = expect(data.args());
    for (const int num_splits : {0, 1, 2, 3, 7, 64}) {
      DecodeArgs args = data.args();
      args.params.num_splits = num_splits;
      run(data, args);
      const ErrorStats stats =
          compare(args.out, args.q_dtype, expected.out, expected.bound);
      const std::string wrong = verdict(stats, limits_of(stats));
      if (!wrong.empty()) {
        RC_FAIL(wrong);
      }
    }
  });
}

TEST_CASE("permuting blocks together with the table changes no bit") {
  check_property(200, [] {
    const DecodeCase c = random_case();
    CaseData data(c);
    DecodeArgs args = data.args();
    const std::vector<std::uint8_t> before = run(data, args);

    const DecodeParams& p = args.params;
    std::vector<BlockId> to(static_cast<std::size_t>(p.num_blocks));
    std::iota(to.begin(), to.end(), 0);
    std::mt19937_64 random(*rc::gen::arbitrary<std::uint64_t>());
    std::shuffle(to.begin(), to.end(), random);
    const std::size_t block_bytes =
        static_cast<std::size_t>(p.block_size) *
        static_cast<std::size_t>(p.num_kv_heads * p.head_dim) *
        dtype_bytes(args.kv_dtype);
    const auto permuted = [&](const void* cache) {
      std::vector<std::uint8_t> copy(to.size() * block_bytes);
      for (std::size_t block = 0; block < to.size(); ++block) {
        std::memcpy(
            copy.data() + static_cast<std::size_t>(to[block]) * block_bytes,
            static_cast<const std::uint8_t*>(cache) + block * block_bytes,
            block_bytes);
      }
      return copy;
    };
    const std::vector<std::uint8_t> k = permuted(args.k_cache);
    const std::vector<std::uint8_t> v = permuted(args.v_cache);
    std::vector<std::int32_t> table(
        args.block_table,
        args.block_table + std::int64_t{p.num_seqs} * p.max_blocks_per_seq);
    for (std::int32_t& id : table) {
      id = id == kUnusedTableEntry ? id : to[static_cast<std::size_t>(id)];
    }
    args.k_cache = k.data();
    args.v_cache = v.data();
    args.block_table = table.data();
    RC_ASSERT(run(data, args) == before);
  });
}

TEST_CASE("with forced splits a row does not depend on its batch") {
  check_property(200, [] {
    DecodeCase c = random_case();
    c.num_splits = *rc::gen::inRange(1, 9);
    CaseData data(make_case(c));
    const DecodeArgs batch = data.args();
    const std::vector<std::uint8_t> all = run(data, batch);
    const DecodeParams& p = batch.params;
    const std::size_t row_bytes =
        static_cast<std::size_t>(p.num_q_heads * p.head_dim) *
        dtype_bytes(batch.q_dtype);
    for (int seq = 0; seq < p.num_seqs; ++seq) {
      const auto offset = static_cast<std::size_t>(seq) * row_bytes;
      DecodeArgs alone = batch;
      alone.params.num_seqs = 1;
      alone.q = static_cast<const std::uint8_t*>(batch.q) + offset;
      alone.block_table += std::int64_t{seq} * p.max_blocks_per_seq;
      alone.seq_lens += seq;
      std::vector<std::uint8_t> row(row_bytes);
      alone.out = row.data();
      cpu::paged_decode(alone);
      RC_ASSERT(std::equal(
          row.begin(),
          row.end(),
          all.begin() + static_cast<std::ptrdiff_t>(offset)));
    }
  });
}

TEST_CASE("appending commutes with forking") {
  // A prefix appended before a fork, or to each fork afterwards, reads back
  // the same: copy-on-write keeps the two apart.
  check_property(100, [] {
    const int block_size = 8;
    const int head_dim = 64;
    const int prefix_len = *rc::gen::inRange(0, 40);
    const int tail_len = *rc::gen::inRange(1, 30);
    const int num_blocks = 64;
    const std::size_t elems =
        static_cast<std::size_t>(num_blocks * block_size * head_dim);

    // Decodes over two sequences that hold prefix + their own tail.
    const auto outputs = [&](bool fork) {
      BlockPool pool(num_blocks);
      std::vector<float> k(elems), v(elems);
      const auto append = [&](SequenceCache& sequence, int n, int content) {
        for (int i = 0; i < n; ++i) {
          const int token = sequence.seq_len();
          const auto result = sequence.append(1);
          RC_ASSERT(result.has_value());
          if (result->copy) {
            const std::int32_t copy[] = {
                result->copy->source, result->copy->destination};
            cpu::copy_blocks(
                {.num_copies = 1,
                 .num_blocks = num_blocks,
                 .block_bytes = block_size * head_dim * 4,
                 .copies = copy,
                 .k_cache = k.data(),
                 .v_cache = v.data()});
          }
          std::vector<float> row(head_dim);
          for (int d = 0; d < head_dim; ++d) {
            row[static_cast<std::size_t>(d)] =
                std::sin(static_cast<float>(content * 1000 + token * 7 + d));
          }
          const std::int64_t slot = sequence.slot(token);
          cpu::kv_append(
              {.num_tokens = 1,
               .num_slots = num_blocks * block_size,
               .token_elems = head_dim,
               .k = row.data(),
               .v = row.data(),
               .slots = &slot,
               .k_cache = k.data(),
               .v_cache = v.data()});
        }
      };
      SequenceCache first(pool, block_size);
      append(first, prefix_len, 0);
      SequenceCache second = fork ? first.fork() : [&] {
        SequenceCache fresh(pool, block_size);
        append(fresh, prefix_len, 0);
        return fresh;
      }();
      append(second, tail_len, 2);
      append(first, tail_len, 1);

      std::vector<float> out;
      for (const SequenceCache* sequence : {&first, &second}) {
        const std::vector<float> q(head_dim, 0.25f);
        std::vector<float> row(head_dim);
        const std::int32_t seq_len = sequence->seq_len();
        cpu::paged_decode(
            {.params =
                 {.num_seqs = 1,
                  .num_q_heads = 1,
                  .num_kv_heads = 1,
                  .head_dim = head_dim,
                  .num_blocks = num_blocks,
                  .block_size = block_size,
                  .max_blocks_per_seq =
                      static_cast<std::int32_t>(sequence->block_ids().size()),
                  .num_splits = 1},
             .q = q.data(),
             .k_cache = k.data(),
             .v_cache = v.data(),
             .block_table = sequence->block_ids().data(),
             .seq_lens = &seq_len,
             .out = row.data()});
        out.insert(out.end(), row.begin(), row.end());
      }
      return out;
    };
    RC_ASSERT(outputs(true) == outputs(false));
  });
}
