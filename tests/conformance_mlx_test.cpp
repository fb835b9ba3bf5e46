// Every case of the table through the MLX op: fused where a kernel takes it,
// and gather always.
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "quire/runtime.h"
#include "support/conformance.h"
#include "support/mlx_case.h"
#include "support/sanitizers.h"

using namespace quire;
using namespace quire::testing;

namespace mx = mlx::core;

namespace {

// An array of memory that the caller keeps. MLX on the CPU copies it, so the
// sparse pools of the table are not for this test.
mx::array array_of(const void* data, mx::Shape shape, mx::Dtype dtype) {
  return mx::array(
      const_cast<void*>(data), std::move(shape), dtype, [](void*) {});
}

void run_op(const DecodeArgs& args, NativeKernel kernel) {
  const DecodeParams& p = args.params;
  const mx::Shape cache_shape = {
      p.num_blocks, p.block_size, p.num_kv_heads, p.head_dim};
  const mx::Dtype q_dtype = test::mlx_dtype(args.q_dtype);
  const mx::Dtype kv_dtype = test::mlx_dtype(args.kv_dtype);
  const PathCounts before = path_counts();
  mx::array out = paged_attention(
      array_of(args.q, {p.num_seqs, p.num_q_heads, p.head_dim}, q_dtype),
      array_of(args.k_cache, cache_shape, kv_dtype),
      array_of(args.v_cache, cache_shape, kv_dtype),
      array_of(args.block_table, {p.num_seqs, p.max_blocks_per_seq}, mx::int32),
      array_of(args.seq_lens, {p.num_seqs}, mx::int32),
      p.scale,
      {.use_native_paged_kernel = kernel, .num_splits = p.num_splits});
  mx::eval(out);
  PathCounts expected = before;
  ++(kernel == NativeKernel::On ? expected.fused_cpu : expected.gather);
  CHECK(path_counts() == expected);
  std::memcpy(args.out, out.data<char>(), out.nbytes());
}

// What the predicate says of the case; the op refuses it in the same words.
std::string why_not_fused(const DecodeCase& c) {
  const mx::Dtype kv_dtype = test::mlx_dtype(c.kv_dtype);
  const mx::array cache =
      mx::zeros({1, c.block_size, c.num_kv_heads, c.head_dim}, kv_dtype);
  try {
    paged_attention(
        mx::zeros({1, c.num_q_heads, c.head_dim}, test::mlx_dtype(c.q_dtype)),
        cache,
        cache,
        mx::zeros({1, 1}, mx::int32),
        mx::zeros({1}, mx::int32),
        1.0f,
        test::kFused);
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
  return "";
}

const std::vector<Backend> kBackends = {
    {.name = "mlx/fused",
     .rounding = {},
     .skip = why_not_fused,
     .run = [](const DecodeArgs& args) { run_op(args, NativeKernel::On); }},
    {.name = "mlx/gather",
     .rounding = {},
     .skip = [](const DecodeCase&) { return std::string(); },
     .run = [](const DecodeArgs& args) { run_op(args, NativeKernel::Off); }}};

void check_cases(Cost cost) {
  const int checks_before = num_checks_run();
  int num_cases = 0;
  int num_fused = 0;
  for (const DecodeCase& c : decode_cases()) {
    if (c.cost != cost) {
      continue;
    }
    CAPTURE(c.name);
    ++num_cases;
    num_fused += why_not_fused(c).empty();
    CHECK(check_case(c, kBackends) == "");
  }
  CHECK(num_cases > 0);
  CHECK(num_fused == (native_kernels().empty() ? 0 : num_cases));
  CHECK(num_checks_run() - checks_before == num_cases + num_fused);
}

}  // namespace

TEST_CASE("quick cases") {
  check_cases(Cost::Quick);
}

TEST_CASE("long contexts" * doctest::skip(kSanitized)) {
  check_cases(Cost::Long);
}
