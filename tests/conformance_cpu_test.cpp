// Every case of the table through every variant of the CPU kernel that this
// machine can run.
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "kernels/cpu/decode_engine.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/paged_decode.h"
#include "support/conformance.h"
#include "support/sanitizers.h"

using namespace quire;
using namespace quire::testing;

namespace {

Backend make_backend(cpu::Isa isa, int num_threads) {
  const auto engine = std::make_shared<cpu::DecodeEngine>(num_threads);
  return {
      .name = "cpu/" + std::string(cpu::isa_name(isa)) + "/" +
              std::to_string(num_threads) + " threads",
      .rounding = {},
      .skip =
          [](const DecodeCase& c) {
            const DecodeParams params{
                .num_q_heads = c.num_q_heads,
                .num_kv_heads = c.num_kv_heads,
                .head_dim = c.head_dim,
                .block_size = c.block_size};
            return std::string(
                cpu::supports_paged_decode(params, c.q_dtype, c.kv_dtype)
                    .reason);
          },
      .run = [engine, isa](
                 const DecodeArgs& args) { engine->paged_decode(args, isa); }};
}

const std::vector<Backend>& backends() {
  static const std::vector<Backend> all = [] {
    std::vector<Backend> made;
    for (const cpu::Isa isa : cpu::available_isas()) {
      made.push_back(make_backend(isa, 2));
    }
    // More threads than cores, and none beside the caller.
    made.push_back(make_backend(cpu::available_isas().back(), 1));
    made.push_back(make_backend(cpu::available_isas().back(), 5));
    return made;
  }();
  return all;
}

// Shard `shard` of `num_shards` of the cases of one cost, all of which every
// backend must run.
void check_cases(Cost cost, std::size_t shard, std::size_t num_shards) {
  const std::vector<DecodeCase>& cases = decode_cases();
  const int checks_before = num_checks_run();
  std::size_t num_cases = 0;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    if (cases[i].cost == cost && i % num_shards == shard) {
      ++num_cases;
      CHECK(check_case(cases[i], backends()) == "");
    }
  }
  CHECK(num_cases > 0);
  CHECK(
      static_cast<std::size_t>(num_checks_run() - checks_before) ==
      num_cases * backends().size());
}

}  // namespace

TEST_CASE("quick cases, first half") {
  check_cases(Cost::Quick, 0, 2);
}

TEST_CASE("quick cases, second half") {
  check_cases(Cost::Quick, 1, 2);
}

TEST_CASE("long contexts" * doctest::skip(kSanitized)) {
  check_cases(Cost::Long, 0, 1);
}

TEST_CASE("pools of more than 2^31 elements" * doctest::skip(kSanitized)) {
  check_cases(Cost::Sparse, 0, 1);
}
