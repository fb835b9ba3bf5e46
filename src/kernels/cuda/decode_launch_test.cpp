#include "kernels/cuda/decode_launch.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/work_list.h"

namespace quire::cuda {
namespace {

constexpr DType kDTypes[] = {DType::Float16, DType::BFloat16, DType::Float32};

// As an H100 SXM reports itself.
DeviceLimits h100() {
  return {90, 132, 232448, 3352, {0, 0, 66, 39, 30, 24, 19, 16, 15}};
}

DeviceLimits limits_of(int compute_capability) {
  DeviceLimits limits;
  limits.compute_capability = compute_capability;
  limits.num_sms = 100;
  limits.smem_per_cta_bytes =
      compute_capability == 80 || compute_capability == 87    ? 163 * 1024
      : compute_capability == 90 || compute_capability == 100 ? 227 * 1024
                                                              : 99 * 1024;
  return limits;
}

DecodeParams llama(int num_seqs) {
  return {
      .num_seqs = num_seqs,
      .num_q_heads = 32,
      .num_kv_heads = 8,
      .head_dim = 128,
      .num_blocks = 100000,
      .block_size = 32,
      .max_blocks_per_seq = 512,
      .scale = 0.125f};
}

TEST_CASE("every kernel fits the shared memory of every GPU generation") {
  for (const int cc : {80, 86, 87, 89, 90, 100, 120}) {
    for (const DType q : kDTypes) {
      for (const DType kv : kDTypes) {
        for (const int head_dim : kHeadDims) {
          for (int group = 1; group <= 71; ++group) {
            DecodeParams p = llama(4);
            p.max_blocks_per_seq = group % 2 == 0 ? 512 : 4096;
            p.num_kv_heads = 2;
            p.num_q_heads = 2 * group;
            p.head_dim = head_dim;
            CAPTURE(cc);
            CAPTURE(head_dim);
            CAPTURE(group);
            const DeviceLimits limits = limits_of(cc);
            const DecodeChoice c = choose_decode_launch(p, q, kv, limits);
            REQUIRE_MESSAGE(c, c.reason);
            CHECK(c.launch.smem_bytes <= limits.smem_per_cta_bytes);
            CHECK(c.launch.cta_threads >= 64);
            const DecodeKernelArgs& a = c.launch.args;
            CHECK(a.tile_heads <= c.launch.variant.max_heads);
            CHECK(
                (smem_class(cc) == SmemClass::Kb227 ||
                 c.launch.variant.kv_heads == 1));
            CHECK(a.tile_heads * a.head_tiles >= group);
            CHECK(a.tile_heads * (a.head_tiles - 1) < group);
          }
        }
      }
    }
  }
}

TEST_CASE("a tile that does not fit is a reason") {
  DeviceLimits limits = limits_of(90);
  // What a driver might grant, or has a GPU of compute capability 12.0, which
  // compiles the code for 9.0 itself.
  limits.smem_per_cta_bytes = 99 * 1024;
  for (const int head_dim : kHeadDims) {
    for (const int num_seqs : {1, 4, 64}) {
      DecodeParams p = llama(num_seqs);
      p.head_dim = head_dim;
      const DecodeChoice c =
          choose_decode_launch(p, DType::Float16, DType::Float16, limits);
      CHECK(std::string(c.reason).find("shared memory") != std::string::npos);
    }
  }
}

TEST_CASE("what the kernels do not serve has a reason") {
  const auto reason = [](DecodeParams p, int cc) {
    return std::string(
        choose_decode_launch(p, DType::Float16, DType::Float16, limits_of(cc))
            .reason);
  };
  DecodeParams p = llama(1);
  CHECK(reason(p, 90).empty());
  CHECK(reason(p, 75).find("8.0") != std::string::npos);
  p.head_dim = 72;
  CHECK(reason(p, 90).find("head dims") != std::string::npos);
  p = llama(1);
  p.block_size = 24;
  CHECK(reason(p, 90).find("block size") != std::string::npos);
  p = llama(2000000);
  p.num_splits = 512;
  CHECK(reason(p, 90).find("2^31") != std::string::npos);
}

TEST_CASE("the table's width takes no split that a sequence could fill") {
  DecodeParams p = llama(1);
  p.block_size = 8;
  p.max_blocks_per_seq = 3;  // a unit of 16 tokens and a half
  p.num_splits = 5;
  const DecodeChoice c =
      choose_decode_launch(p, DType::Float16, DType::Float16, h100());
  REQUIRE(c);
  CHECK(c.launch.args.num_splits == 2);
}

TEST_CASE("large batches stay in the grid's x") {
  DecodeParams p = llama(70000);
  p.num_splits = 2;
  const DecodeChoice c =
      choose_decode_launch(p, DType::Float16, DType::Float16, h100());
  REQUIRE(c);
  CHECK(c.launch.grid == 70000LL * 2 * 8);
  CHECK(c.launch.workspace_bytes == 70000LL * 2 * 8 * 4 * 128 / 4 * 20);
}

TEST_CASE("one short sequence is merged in clusters where they exist") {
  DecodeParams p = llama(1);
  DecodeChoice c =
      choose_decode_launch(p, DType::Float16, DType::Float16, h100());
  CHECK(c.launch.variant.cluster);
  CHECK(c.launch.cluster == 8);
  CHECK(c.launch.grid == 64);
  CHECK(c.launch.workspace_bytes == 0);

  DeviceLimits plain = h100();
  std::fill(
      std::begin(plain.active_clusters), std::end(plain.active_clusters), 0);
  c = choose_decode_launch(p, DType::Float16, DType::Float16, plain);
  CHECK_FALSE(c.launch.variant.cluster);
  CHECK(c.launch.cluster == 1);
  CHECK(c.launch.args.leaders > 1);

  p.num_q_heads = p.num_kv_heads = 32;  // 4 CTAs a head: mail is as quick
  CHECK_FALSE(choose_decode_launch(p, DType::Float16, DType::Float16, h100())
                  .launch.variant.cluster);
  p = llama(1);

  p.max_blocks_per_seq = 4096;  // 128k tokens: every SM counts
  c = choose_decode_launch(p, DType::Float16, DType::Float16, h100());
  CHECK_FALSE(c.launch.variant.cluster);
  c = choose_decode_launch(
      p, DType::Float16, DType::Float16, h100(), {.max_seq_len = 5000});
  CHECK(c.launch.variant.cluster);
}

TEST_CASE("rings are short for short work and deep for small units") {
  const auto stages = [](int num_seqs,
                         int max_blocks,
                         int head_dim,
                         int memory_gb_per_s = 3352,
                         int num_kv_heads = 8) {
    DecodeParams p = llama(num_seqs);
    p.num_kv_heads = num_kv_heads;
    p.max_blocks_per_seq = max_blocks;
    p.head_dim = head_dim;
    DeviceLimits plain = h100();
    plain.memory_gb_per_s = memory_gb_per_s;
    std::fill(
        std::begin(plain.active_clusters), std::end(plain.active_clusters), 0);
    const DecodeChoice c =
        choose_decode_launch(p, DType::Float16, DType::Float16, plain);
    REQUIRE(c);
    return c.launch.variant.max_stages;
  };
  CHECK(stages(4, 32, 128) == 2);    // 4 x 1k: 2 units a warp
  CHECK(stages(16, 64, 128) == 3);   // 16 x 2k: 16 units a warp
  CHECK(stages(16, 128, 128) == 2);  // 16 x 4k: 32
  CHECK(stages(64, 512, 128) == 2);  // 64 x 16k
  CHECK(stages(64, 512, 64) == 3);
  // An H200's memory.
  CHECK(stages(4, 32, 128, 4916) == 2);
  CHECK(stages(16, 128, 128, 4916) == 3);
  CHECK(stages(64, 512, 128, 4916) == 2);
  CHECK(stages(4, 128, 128, 4916, 32) == 2);
}

TEST_CASE("short rows of several KV heads are read together in long work") {
  const auto kv_heads = [](int num_kv_heads, int group, int head_dim, int len) {
    DecodeParams p = llama(64);
    p.num_kv_heads = num_kv_heads;
    p.num_q_heads = num_kv_heads * group;
    p.head_dim = head_dim;
    p.max_blocks_per_seq = len / p.block_size;
    const DecodeChoice c =
        choose_decode_launch(p, DType::Float16, DType::Float16, h100());
    REQUIRE(c);
    CHECK(
        c.launch.args.range_ctas.divisor ==
        num_kv_heads / c.launch.variant.kv_heads * c.launch.args.head_tiles);
    return c.launch.variant.kv_heads;
  };
  CHECK(kv_heads(3, 3, 64, 16384) == 3);
  CHECK(kv_heads(3, 3, 64, 1024) == 1);  // 10 units a CTA
  CHECK(kv_heads(8, 4, 64, 16384) == 1);
  CHECK(kv_heads(8, 4, 96, 16384) == 2);
  CHECK(kv_heads(8, 16, 96, 16384) == 2);
  CHECK(kv_heads(3, 3, 128, 16384) == 1);

  // A row's bits must not depend on its batch: no choice by the batch then.
  DecodeParams p = llama(64);
  p.head_dim = 96;
  p.num_splits = 4;
  CHECK(
      choose_decode_launch(p, DType::Float16, DType::Float16, h100())
          .launch.variant.kv_heads == 1);
}

TEST_CASE("leaders of one sequence fit half the GPU") {
  for (const int kv_heads : {1, 2, 3, 8, 32, 66, 132, 200}) {
    for (const int head_dim : kHeadDims) {
      DecodeParams p = llama(1);
      p.num_kv_heads = kv_heads;
      p.num_q_heads = 8 * kv_heads;
      p.head_dim = head_dim;
      p.max_blocks_per_seq = 100000;
      const DecodeChoice c =
          choose_decode_launch(p, DType::Float16, DType::Float16, h100());
      REQUIRE(c);
      const DecodeKernelArgs& a = c.launch.args;
      CHECK((a.leaders == 1 || a.leaders * a.range_ctas.divisor * 2 <= 132));
      CHECK(
          a.leaders * a.leader_quads >=
          c.launch.variant.kv_heads * a.tile_heads * head_dim / 4);
    }
  }
}

TEST_CASE("a divider divides") {
  constexpr std::int32_t kMax = std::numeric_limits<std::int32_t>::max();
  std::mt19937 rng(2);
  const auto up_to = [&](std::int32_t most) {  // of every magnitude
    return static_cast<std::int32_t>(rng() % 0x7fffffffu) % most >> rng() % 31;
  };
  for (int i = 0; i < 200000; ++i) {
    const std::int32_t d = i < 300 ? i + 1 : 1 + up_to(kMax - 1);
    const Divider by(d);
    for (const std::int32_t x :
         {0, d - 1, d, kMax, kMax / d * d, kMax / d * d - 1, up_to(kMax)}) {
      REQUIRE(by.quotient(x) == x / d);
    }
    const std::int32_t x = up_to(kMax - d + 1);
    REQUIRE(by.quotient_up(x) == (std::int64_t{x} + d - 1) / d);
  }
}

// The segments of a range, as advance() and find_range() of the kernels give
// them.
std::vector<Segment>
segments_of(const std::vector<int>& lens, int unit_len, int begin, int units) {
  std::vector<Segment> segments;
  int position = 0;
  for (std::size_t s = 0; s < lens.size(); ++s) {
    const int n = num_units(lens[s], unit_len);
    const int from = std::max(begin, position);
    const int to = std::min(begin + units, position + n);
    if (from < to) {
      Segment segment;
      segment.seq_idx = static_cast<int>(s);
      segment.seq_len = lens[s];
      segment.begin = from - position;
      segment.end = to - position;
      segment.position = from;
      segment.left = begin + units - from;
      segments.push_back(segment);
    }
    position += n;
  }
  return segments;
}

TEST_CASE("ranges cover every unit once and agree on a sequence's pieces") {
  std::mt19937 rng(1);
  for (int round = 0; round < 300; ++round) {
    const int unit_len = round % 2 == 0 ? 16 : 8;
    std::vector<int> lens(1 + rng() % 40);
    int total = 0;
    for (int& len : lens) {
      len = rng() % 4 == 0 ? 0 : static_cast<int>(rng() % (1 + rng() % 5000));
      total += num_units(len, unit_len);
    }
    const Divider num_ranges(1 + static_cast<int>(rng() % 140));
    const int share = range_share(total, num_ranges);
    std::vector<int> covered(lens.size(), 0);
    std::vector<std::vector<Pieces>> pieces(lens.size());
    for (int r = 0; r < num_ranges.divisor; ++r) {
      const int begin = r * share;
      if (begin >= total) {
        continue;
      }
      const int units = std::min(share, total - begin);
      for (const Segment& s : segments_of(lens, unit_len, begin, units)) {
        const auto seq = static_cast<std::size_t>(s.seq_idx);
        CHECK(s.begin == covered[seq]);
        covered[seq] = s.end;
        pieces[seq].push_back(range_pieces(s, unit_len, share, r));
      }
    }
    for (std::size_t s = 0; s < lens.size(); ++s) {
      CHECK(covered[s] == num_units(lens[s], unit_len));
      for (std::size_t i = 0; i < pieces[s].size(); ++i) {
        CHECK(pieces[s][i].count == static_cast<int>(pieces[s].size()));
        CHECK(pieces[s][i].piece == static_cast<int>(i));
        CHECK(pieces[s][i].first_range == pieces[s][0].first_range);
      }
    }
  }
}

TEST_CASE("forced splits cover a sequence once, none of them counted empty") {
  for (int seq_len = 0; seq_len < 300; ++seq_len) {
    for (const int num_splits : {1, 2, 3, 7, 64}) {
      const int units = num_units(seq_len, 16);
      int covered = 0;
      int nonempty = 0;
      int count = 0;
      for (int split = 0; split < num_splits; ++split) {
        Segment s;
        s.seq_idx = 5;
        s.seq_len = seq_len;
        const Pieces p = split_pieces(s, 16, num_splits, split);
        CHECK(p.first_range == 5 * num_splits);
        if (s.valid()) {
          CHECK(s.begin == covered);
          covered = s.end;
          ++nonempty;
          CHECK(split < p.count);
        }
        count = p.count;
      }
      CHECK(covered == units);
      CHECK(count == std::max(1, nonempty));
    }
  }
}

}  // namespace
}  // namespace quire::cuda
