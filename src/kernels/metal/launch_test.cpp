#include "kernels/metal/launch.h"

#include <doctest/doctest.h>

#include <cstring>
#include <set>
#include <stdexcept>
#include <string>

#include "kernels/metal/params.h"
#include "kernels/metal/source.h"

using namespace quire;
using namespace quire::metal;

namespace {

constexpr DType kDTypes[] = {DType::Float16, DType::BFloat16, DType::Float32};

DecodeParams make_params(int head_dim, int group_size) {
  return {
      .num_seqs = 3,
      .num_q_heads = 2 * group_size,
      .num_kv_heads = 2,
      .head_dim = head_dim,
      .num_blocks = 100,
      .block_size = 32,
      .max_blocks_per_seq = 40,
      .scale = 0.5f};
}

template <typename Visit>
void for_each_variant(Visit visit) {
  for (const DType q : kDTypes) {
    for (const DType kv : kDTypes) {
      for (const int head_dim : kHeadDims) {
        for (int group_size = 1; group_size <= 71; ++group_size) {
          for (const auto& v : decode_variants(q, kv, head_dim, group_size)) {
            visit(q, kv, head_dim, group_size, v);
          }
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("every variant is one that the kernel's static_asserts accept") {
  CHECK(default_variant(DType::Float16, DType::Float16, 128, 8).matrix);
  CHECK(default_variant(DType::BFloat16, DType::BFloat16, 80, 5).matrix);
  CHECK_FALSE(default_variant(DType::Float16, DType::Float16, 128, 4).matrix);
  CHECK_FALSE(default_variant(DType::Float16, DType::Float16, 256, 8).matrix);
  CHECK_FALSE(default_variant(DType::Float32, DType::Float32, 64, 8).matrix);
  CHECK_FALSE(default_variant(DType::Float32, DType::Float16, 64, 8).matrix);
  for_each_variant([](DType q, DType kv, int head_dim, int group, auto v) {
    const int kv_bytes = static_cast<int>(dtype_bytes(kv));
    REQUIRE(head_dim % v.lanes == 0);
    REQUIRE(head_dim / v.lanes * kv_bytes % 4 == 0);
    REQUIRE((v.matrix || v.heads <= v.lanes));
    REQUIRE(v.lanes <= 32);
    REQUIRE(v.simdgroups % v.head_parts == 0);
    if (v.matrix) {
      REQUIRE((q == kv && kv_bytes == 2 && v.heads == 8));
      REQUIRE((v.lanes == 4 && v.rows == 1));
    }
    // Steps divide the smallest block, splits the round robin of simdgroups.
    REQUIRE(kMinBlockSize % v.step_size() == 0);
    REQUIRE(kSplitGranule % (v.step_size() * v.simdgroups / v.head_parts) == 0);
    // All heads are served, none of the slices is empty.
    const int served = v.heads * v.head_parts;
    REQUIRE(v.num_head_slices(group) * served >= group);
    REQUIRE((v.num_head_slices(group) - 1) * served < group);
    REQUIRE(v.heads * head_dim / (v.matrix ? 32 : v.lanes) <= 40);
  });
}

TEST_CASE("every threadgroup fits, or is refused when the launch is made") {
  for (const int limit : {128, 255, 256, 512, 640, 832, 896, 1024}) {
    for_each_variant([&](DType q, DType kv, int head_dim, int group, auto v) {
      const DecodeParams params = make_params(head_dim, group);
      for (const int num_splits : {1, 7}) {
        const DecodePlan plan{.num_splits = num_splits, .split_size = 64};
        const auto make = [&] {
          return make_decode_launch(
              params, q, kv, plan, v, {.max_threads = limit});
        };
        const int merge_threads = num_splits > 1 ? 2 * head_dim : 0;
        if (std::max(v.threads(), merge_threads) > limit) {
          REQUIRE_THROWS_AS(make(), std::invalid_argument);
          continue;
        }
        for (const KernelLaunch& kernel : make().kernels) {
          const auto& t = kernel.num_threads;
          REQUIRE(t[0] * t[1] * t[2] <= limit);
          REQUIRE(t[0] * t[1] * t[2] <= kMaxThreads);
          REQUIRE(kernel.threadgroup_bytes <= kMaxThreadgroupBytes);
        }
      }
    });
  }
}

TEST_CASE("too little threadgroup memory is refused with both numbers") {
  const auto variant = default_variant(DType::Float16, DType::Float16, 128, 4);
  CHECK_THROWS_WITH(
      make_decode_launch(
          make_params(128, 4),
          DType::Float16,
          DType::Float16,
          {.num_splits = 1, .split_size = 64},
          variant,
          {.max_memory_bytes = 16384}),
      doctest::Contains("needs 16640 bytes of threadgroup memory; the device "
                        "allows 16384"));
}

TEST_CASE("a decode launch binds each operand where the kernel expects it") {
  const auto variant = default_variant(DType::Float16, DType::BFloat16, 128, 6);
  const DecodeParams params = make_params(128, 6);
  const auto launch = make_decode_launch(
      params,
      DType::Float16,
      DType::BFloat16,
      {.num_splits = 5, .split_size = 256},
      variant);
  REQUIRE(launch.kernels.size() == 2);
  const KernelLaunch& decode = launch.kernels[0];
  const std::int64_t partial_bytes = 3ll * 12 * 5 * 128 * 4;
  CHECK(launch.workspace_bytes == partial_bytes + 3ll * 12 * 5 * 4);
  CHECK(
      decode.buffers == std::vector<BufferBinding>{
                            {Operand::Q},
                            {Operand::KCache},
                            {Operand::VCache},
                            {Operand::BlockTable},
                            {Operand::SeqLens},
                            {Operand::Workspace, true, 0},
                            {Operand::Workspace, true, partial_bytes},
                            {Operand::Out, true}});
  CHECK(decode.num_threadgroups == std::array<int, 3>{2, 5, 3});
  CHECK(decode.num_threads == std::array<int, 3>{32, 8, 1});
  PagedDecodeParams constants;
  REQUIRE(decode.constants.size() == sizeof constants);
  std::memcpy(&constants, decode.constants.data(), sizeof constants);
  CHECK(constants.group_size == 6);
  CHECK(constants.block_size_log2 == 5);
  CHECK(constants.scale_log2 == doctest::Approx(0.72134752f));
  CHECK(
      launch.kernels[1].buffers ==
      std::vector<BufferBinding>{
          {Operand::Workspace},
          {Operand::Workspace, false, partial_bytes},
          {Operand::Out, true}});
  CHECK(launch.kernels[1].num_threadgroups == std::array<int, 3>{12, 3, 1});
}

TEST_CASE("one split needs neither workspace nor a second kernel") {
  const auto launch = make_decode_launch(
      make_params(64, 1),
      DType::Float32,
      DType::Float32,
      {.num_splits = 1, .split_size = 64},
      default_variant(DType::Float32, DType::Float32, 64, 1));
  CHECK(launch.kernels.size() == 1);
  CHECK(launch.workspace_bytes == 0);
}

TEST_CASE("an empty batch launches nothing") {
  DecodeParams params = make_params(64, 1);
  params.num_seqs = 0;
  CHECK(make_decode_launch(
            params,
            DType::Float32,
            DType::Float32,
            {.num_splits = 1, .split_size = 64},
            default_variant(DType::Float32, DType::Float32, 64, 1))
            .kernels.empty());
}

TEST_CASE("what no kernel serves is declined with a reason") {
  for (const int head_dim : {32, 72, 100, 112, 120, 512}) {
    CHECK(
        supports_paged_decode(make_params(head_dim, 1)).reason ==
        "head_dim must be one of 64, 80, 96, 128, 256; got " +
            std::to_string(head_dim) + ".");
  }
  DecodeParams params = make_params(64, 1);
  params.block_size = 48;
  CHECK(
      supports_paged_decode(params).reason ==
      "block_size must be a power of two from 8 to 256; got 48.");
  params = make_params(64, 1);
  params.num_q_heads = 3;
  CHECK(
      supports_paged_decode(params).reason ==
      "num_q_heads must be a positive multiple of num_kv_heads; got 3 and 2.");
  CHECK(supports_paged_decode(make_params(80, 71)).ok);
}

TEST_CASE("the embedded source stands alone and names every kernel") {
  const std::string text =
      std::string(paged_decode_source()) + cache_write_source();
  CHECK(text.find("#include \"") == std::string::npos);
  CHECK(text.find("#include <metal_stdlib>") != std::string::npos);
  CHECK(
      text.find("#line 1 \"kernels/attention_state.h\"") != std::string::npos);
  std::set<std::string> names;
  for (const KernelLaunch& kernel : all_kernels()) {
    CHECK(names.insert(kernel.kernel_name).second);
    CHECK(kernel_text(kernel).find(kernel.kernel_name) != std::string::npos);
    // A compiler that refuses matrices sees them only where they are used.
    CHECK(
        kernel_text(kernel).starts_with("#define QUIRE_WITHOUT_MATRICES\n") ==
        (kernel.source == Source::PagedDecode &&
         kernel.kernel_name.find("_matrix") == std::string::npos));
  }
}

TEST_CASE("cache writes cover every piece once") {
  for (const int token_elems : {3, 33, 64, 240, 1024, 8 * 256, 128 * 256}) {
    const auto launch = make_kv_append_launch(
        5, 1ll << 32, token_elems, DType::Float32, DType::Float16);
    const int pieces = token_elems % 8 == 0 ? token_elems / 8 : token_elems;
    CHECK(launch.num_threads[0] <= kMaxThreads);
    CHECK(launch.num_threads[0] * launch.num_threadgroups[0] >= pieces);
    CHECK(launch.num_threads[0] * (launch.num_threadgroups[0] - 1) < pieces);
    CHECK(launch.num_threadgroups[1] == 5);
    CHECK(launch.num_threadgroups[2] == 2);
    KvAppendParams constants;
    std::memcpy(&constants, launch.constants.data(), sizeof constants);
    CHECK(constants.num_slots == 1ll << 32);
  }
  CHECK_THROWS_AS(
      make_kv_append_launch(1, 1, 0, DType::Float32, DType::Float32),
      std::invalid_argument);
  CHECK_THROWS_AS(make_copy_blocks_launch(1, 1, 24), std::invalid_argument);
}
