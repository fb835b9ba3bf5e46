// The judges are judged: the case table, its data and the comparison.
#include <cmath>
#include <set>

#include <doctest/doctest.h>

#include "kernels/reference/paged_decode_reference.h"
#include "support/case_data.h"
#include "support/compare.h"
#include "support/element.h"
#include "support/sanitizers.h"

using namespace quire;
using namespace quire::testing;

namespace {

DecodeCase small_case() {
  return make_case(
      {.q_dtype = DType::Float32,
       .kv_dtype = DType::Float16,
       .head_dim = 64,
       .num_q_heads = 4,
       .num_kv_heads = 2,
       .block_size = 8,
       .seq_lens = {17, 0, 5}});
}

// Rounds the reference to the result's type: the best that a kernel can do.
void store_reference(const CaseData& data) {
  const DecodeArgs args = data.args();
  std::vector<double> out(static_cast<std::size_t>(data.num_out()));
  reference::paged_decode(args, out.data());
  for (std::size_t i = 0; i < out.size(); ++i) {
    store_element(
        args.out,
        static_cast<std::int64_t>(i),
        args.q_dtype,
        static_cast<float>(out[i]));
  }
}

std::string judge(const CaseData& data, const Expected& expected) {
  const DecodeArgs args = data.args();
  const ErrorStats stats =
      compare(args.out, args.q_dtype, expected.out, expected.bound);
  return verdict(stats, limits_of(stats));
}

}  // namespace

TEST_CASE("elements of 16 bits survive a round trip, NaN and infinity too") {
  for (int bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const double x = f16_to_double(half);
    if (std::isnan(x)) {
      CHECK(std::isnan(f16_to_double(double_to_f16(x))));
    } else {
      CHECK(double_to_f16(x) == half);
    }
  }
  // Round to nearest even, at ties and at the ends of the range.
  CHECK(double_to_f16(65519.9) == 0x7bff);
  CHECK(double_to_f16(65520.0) == 0x7c00);
  CHECK(double_to_f16(1.0 + 0x1p-11) == 0x3c00);
  CHECK(double_to_f16(1.0 + 3 * 0x1p-11) == 0x3c02);
  CHECK(double_to_f16(0x1p-25) == 0);
  CHECK(double_to_f16(5.97e-8) == 1);
  CHECK(double_to_f16(-0.0) == 0x8000);
  CHECK(float_to_bf16(std::bit_cast<float>(0x3F808000u)) == 0x3F80);
  CHECK(float_to_bf16(std::bit_cast<float>(0x3F818000u)) == 0x3F82);
  CHECK(float_to_bf16(std::bit_cast<float>(0x7F7FFFFFu)) == 0x7F80);
  CHECK(std::isnan(load_element(
      std::vector<std::uint16_t>{
          float_to_bf16(std::bit_cast<float>(0x7F800001u))}
          .data(),
      0,
      DType::BFloat16)));
}

TEST_CASE("case names are unique and every value of the product occurs") {
  std::set<std::string> names;
  std::set<int> head_dims, block_sizes, splits, groups;
  std::set<std::pair<DType, DType>> types;
  for (const DecodeCase& c : decode_cases()) {
    CHECK(names.insert(c.name).second);
    head_dims.insert(c.head_dim);
    block_sizes.insert(c.block_size);
    splits.insert(c.num_splits);
    groups.insert(c.num_q_heads / c.num_kv_heads);
    types.insert({c.q_dtype, c.kv_dtype});
  }
  CHECK(head_dims == std::set<int>{64, 80, 96, 128, 256});
  CHECK(block_sizes == std::set<int>{8, 16, 32, 64, 128, 256});
  CHECK(types.size() == 9);
  for (const int group : {1, 2, 3, 4, 7, 8, 16, 71}) {
    CHECK(groups.count(group) == 1);
  }
  for (const int split : {0, 1, 2, 64}) {
    CHECK(splits.count(split) == 1);
  }
}

TEST_CASE("data is the same from run to run and poisoned where it must be") {
  const CaseData a(small_case()), b(small_case());
  const DecodeArgs args = a.args();
  CHECK(a.out_bytes() == b.out_bytes());
  int num_nan = 0;
  const std::int64_t elems = std::int64_t{args.params.num_blocks} *
                             args.params.block_size * args.params.num_kv_heads *
                             args.params.head_dim;
  for (std::int64_t i = 0; i < elems; ++i) {
    const double x = load_element(args.k_cache, i, args.kv_dtype);
    CHECK(
        (std::isnan(x) ||
         x == load_element(b.args().k_cache, i, args.kv_dtype)));
    num_nan += std::isnan(x) ? 1 : 0;
  }
  // Everything but the 22 tokens that sequences hold.
  CHECK(num_nan == elems - 22 * 2 * 64);
}

TEST_CASE("the rounded reference passes") {
  std::size_t idx = 0;
  for (const DecodeCase& c : decode_cases()) {
    // Under a sanitizer every eighth: this is one thread and slow.
    if (c.cost != Cost::Quick || c.seq_lens.size() > 8 ||
        (kSanitized && ++idx % 8 != 0)) {
      continue;
    }
    CAPTURE(c.name);
    const CaseData data(c);
    store_reference(data);
    CHECK(judge(data, expect(data.args())) == "");
  }
}

TEST_CASE("results that are a little wrong are refused") {
  const CaseData data(small_case());
  const Expected expected = expect(data.args());
  auto* out = static_cast<float*>(data.args().out);

  SUBCASE("all zero") {
    store_reference(data);
    std::fill(out, out + data.num_out(), 0.0f);
    CHECK(judge(data, expected) != "");
  }
  SUBCASE("not written") {
    CHECK(judge(data, expected) != "");
  }
  SUBCASE("one element off by a thousandth") {
    store_reference(data);
    out[7] *= 1.001f;
    CHECK(judge(data, expected) != "");
  }
  SUBCASE("two heads swapped") {
    store_reference(data);
    std::swap_ranges(out, out + 64, out + 64);
    CHECK(judge(data, expected) != "");
  }
  SUBCASE("an empty row that is not zero") {
    store_reference(data);
    out[4 * 64 + 3] = 1e-3f;
    CHECK(judge(data, expected) != "");
  }
}
