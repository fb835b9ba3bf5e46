#include "kernels/cuda/decode_launch.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <limits>
#include <numbers>

namespace quire::cuda {
namespace {

constexpr int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

bool known_head_dim(int head_dim) {
  return std::find(std::begin(kHeadDims), std::end(kHeadDims), head_dim) !=
         std::end(kHeadDims);
}

// Units of a CTA below which it serves one KV head: 16 a warp, 32 a crew of
// two.
constexpr int kMinUnits = 128;

// Why the kernels do not serve a case; empty when they do.
const char* unsupported(const DecodeParams& p, const DeviceLimits& limits) {
  if (limits.compute_capability < 80) {
    return "the CUDA kernels need compute capability 8.0 or newer";
  }
  if (!known_head_dim(p.head_dim)) {
    return "the CUDA kernels have head dims 64, 80, 96, 128 and 256";
  }
  if (p.block_size < kMinBlockSize || p.block_size > kMaxBlockSize ||
      !std::has_single_bit(static_cast<unsigned>(p.block_size))) {
    return "the CUDA kernels need a block size that is a power of two from 8 "
           "to 256";
  }
  return "";
}

// KV heads that a CTA serves. Rows of 3 heads of 64 or 2 of 96 are whole lines
// of 128 bytes, which the heads' own CTAs would ask for out of step: 5 and 6 %
// of the time. Merges and units grow with it, so that every warp must have
// units enough, and the ring needs Hopper's shared memory and its barriers. Two
// heads of 64 and two of 128 gain nothing.
int cta_kv_heads(
    const DecodeParams& p,
    int group,
    std::int64_t units,
    int num_sms) {
  int heads = 1;
  if (p.head_dim == 64 && p.num_kv_heads % 3 == 0 && group <= 4) {
    heads = 3;
  } else if (p.head_dim == 96 && p.num_kv_heads % 2 == 0) {
    heads = 2;
  }
  return units * p.num_kv_heads >= std::int64_t{kMinUnits} * heads * num_sms
             ? heads
             : 1;
}

// Leaders of one sequence's merge. A leader's threads collect the states of
// the other CTAs one after another, about a microsecond for each few of them;
// leaders wait for one another, so they must be few enough to run at once.
int num_leaders(int quads, int pieces, int threads, int heads, int num_sms) {
  const int wanted = quads * pieces / (2 * threads);
  const int most = std::min(pieces / 2, num_sms / (2 * heads));
  return static_cast<int>(std::bit_floor(
      static_cast<unsigned>(std::max(1, std::min(wanted, most)))));
}

// The largest cluster of which every head's fits at once, or 0.
int cluster_size(const DeviceLimits& limits, int heads, int num_ranges) {
  for (int c = std::min(kMaxCluster, num_ranges); c > 1; --c) {
    if (limits.active_clusters[c] >= heads) {
      return c;
    }
  }
  return 0;
}

// Shared memory where a cluster's CTAs leave their states.
constexpr int cluster_bytes(int quads) {
  return (quads + kMaxCluster * 2) * 5 * 4;
}

// Stages of the ring if one sequence is merged in clusters, 0 if it is not. The
// merge by clusters saves about a microsecond but leaves SMs idle: worth it up
// to 16k tokens with 3 stages, 2k with 2 or where launches overlap, as long as
// less than half of the SMs idle and mail would not be as quick, between so few
// CTAs.
int cluster_stages(
    const DeviceLimits& limits,
    const DecodeLaunchOptions& options,
    const TileShape& deep,
    int tile_heads,
    int bound,
    int heads,
    int cluster) {
  if (cluster < 4 || cluster * heads * 2 < limits.num_sms - heads) {
    return 0;
  }
  const int bytes = deep.smem_bytes(tile_heads) +
                    cluster_bytes(tile_heads * (deep.head_dim / 4));
  const bool fits = deep.stages == 3 && bytes <= limits.smem_per_cta_bytes;
  if (bound > (fits && !options.overlap ? 24576 : 2048)) {
    return 0;
  }
  return fits ? 3 : 2;
}

// Stages of a warp's ring. Two start sooner, which counts while a warp has few
// units, and read long ranges faster where blocks lie in order or lengths are
// ragged. Three fill the memory pipe in between, the longer the faster the
// memory is (HBM3e: 4.9 TB/s; but not where 32 heads' CTAs share a block), and
// where units are small.
int ring_stages(
    std::int64_t units_per_warp,
    const TileShape& shape,
    int heads,
    const DeviceLimits& limits) {
  const int unit_bytes = 2 * shape.unit_len() * shape.row_bytes();
  const int long_range = limits.memory_gb_per_s > 4000 && heads < 32 ? 48 : 24;
  return units_per_warp >= 6 &&
                 (units_per_warp < long_range || unit_bytes < 8192)
             ? 3
             : 2;
}

}  // namespace

DecodeChoice choose_decode_launch(
    const DecodeParams& params,
    DType q_dtype,
    DType kv_dtype,
    const DeviceLimits& limits,
    const DecodeLaunchOptions& options) {
  DecodeChoice choice;
  choice.reason = unsupported(params, limits);
  if (!choice) {
    return choice;
  }
  const int group = params.num_q_heads / params.num_kv_heads;
  const int kv_bytes = static_cast<int>(dtype_bytes(kv_dtype));
  const SmemClass smem = smem_class(limits.compute_capability);

  DecodeLaunch& l = choice.launch;
  l.variant.kv_dtype = kv_dtype;
  l.variant.head_dim = params.head_dim;
  l.variant.convert = kv_bytes == 4 || q_dtype != kv_dtype;
  const int few = kv_bytes == 4 ? 4 : 8;
  const int many = 2 * few;
  // A converted q takes the registers of a second tile of heads.
  l.variant.max_heads =
      group <= few || (kv_bytes == 2 && l.variant.convert) ? few : many;
  if (kv_bytes == 4 && group > many && params.head_dim < 256) {
    l.variant.max_heads = 16;
  }

  DecodeKernelArgs& a = l.args;
  a.q_dtype = q_dtype;
  a.num_seqs = params.num_seqs;
  a.max_blocks_per_seq = params.max_blocks_per_seq;
  a.max_seq_len = static_cast<std::int32_t>(std::min<std::int64_t>(
      static_cast<std::int64_t>(params.max_blocks_per_seq) * params.block_size,
      std::numeric_limits<std::int32_t>::max() - kMaxBlockSize));
  a.block_shift = std::countr_zero(static_cast<unsigned>(params.block_size));
  a.num_kv_heads = params.num_kv_heads;
  a.group_size = group;
  a.head_tiles = ceil_div(group, l.variant.max_heads);
  a.tile_heads = ceil_div(group, a.head_tiles);
  a.token_stride =
      static_cast<std::int64_t>(params.num_kv_heads) * params.head_dim;
  a.block_stride = a.token_stride * params.block_size;
  a.scale_log2 =
      static_cast<float>(params.scale * std::numbers::log2e_v<double>);

  a.num_splits = std::max(0, params.num_splits);
  const bool dealt = a.num_splits == 0 && params.num_seqs == 1;
  const int bound = options.max_seq_len > 0
                        ? std::min(options.max_seq_len, a.max_seq_len)
                        : a.max_seq_len;
  const std::int64_t units =
      std::int64_t{params.num_seqs} * bound / (kv_bytes == 2 ? 16 : 8);
  if (a.num_splits == 0 && kv_bytes == 2 && !l.variant.convert &&
      a.head_tiles == 1 && smem == SmemClass::Kb227) {
    l.variant.kv_heads = cta_kv_heads(params, group, units, limits.num_sms);
  }
  const int heads = params.num_kv_heads / l.variant.kv_heads * a.head_tiles;
  a.range_ctas = Divider(heads);
  const int quads = l.variant.kv_heads * a.tile_heads * (params.head_dim / 4);
  int num_ranges = std::max(1, limits.num_sms / heads);

  const bool in_step = !dealt && a.num_splits == 0 && heads % 2 == 0 &&
                       limits.active_clusters[2] > 0;
  // Rings of 2 stages and clusters are compiled for q and cache of one 16-bit
  // type and up to 8 heads.
  if (l.variant.kv_heads > 1) {
    l.variant.max_stages = 4;
    if (params.head_dim == 64) {
      l.variant.max_heads = 4;
    }
  } else if (!l.variant.convert && l.variant.max_heads == few) {
    const TileShape deep =
        tile_shape(kv_bytes, params.head_dim, 1, few, 3, smem);
    const int cluster = cluster_size(limits, heads, num_ranges);
    const int stages =
        dealt && cluster > 0
            ? cluster_stages(
                  limits, options, deep, a.tile_heads, bound, heads, cluster)
            : 0;
    if (stages > 0) {
      l.variant.cluster = true;
      l.variant.max_stages = stages;
      l.cluster = num_ranges = cluster;
    } else {
      l.variant.max_stages = ring_stages(
          units / std::max(1, num_ranges * deep.warps), deep, heads, limits);
    }
  }
  const TileShape shape = tile_shape(
      kv_bytes,
      params.head_dim,
      l.variant.kv_heads,
      l.variant.max_heads,
      l.variant.max_stages,
      smem);
  l.cta_threads = shape.warps * kWarpSize;
  l.smem_bytes = shape.smem_bytes(l.variant.kv_heads * a.tile_heads) +
                 (l.variant.cluster ? cluster_bytes(quads) : 0);
  if (shape.warps == 0 || l.smem_bytes > limits.smem_per_cta_bytes) {
    choice.reason =
        "the CUDA kernel's tile does not fit this GPU's shared "
        "memory";
    return choice;
  }

  l.overlap = options.overlap;
  std::int64_t slots = 0;
  if (a.num_splits > 0) {
    a.num_splits = std::min(
        a.num_splits, std::max(1, ceil_div(a.max_seq_len, shape.unit_len())));
    const std::int64_t pieces =
        static_cast<std::int64_t>(params.num_seqs) * a.num_splits;
    l.grid = pieces * heads;
    slots = a.num_splits > 1 ? l.grid : 0;
  } else {
    if (dealt && !l.variant.cluster) {
      a.leaders =
          num_leaders(quads, num_ranges, l.cta_threads, heads, limits.num_sms);
    } else if (in_step) {
      // CTAs of two heads of one range share a TPC and read in step: 0.4 %
      // at 1 GB of KV and more, nothing below.
      l.cluster = 2;
    }
    l.grid = static_cast<std::int64_t>(num_ranges) * heads;
    slots = l.variant.cluster ? 0 : l.grid;
  }
  a.leader_quads = ceil_div(quads, a.leaders);
  a.num_mail_slots = slots;
  // A slot holds the partial output and its log-sum-exp once for 4 floats.
  l.workspace_bytes = slots * quads * 5 * 4;
  if (l.grid > std::numeric_limits<std::int32_t>::max()) {
    choice.reason = "the CUDA kernel's grid would exceed 2^31 - 1 CTAs";
    return choice;
  }
  a.num_ranges =
      Divider(std::max(1, static_cast<std::int32_t>(l.grid / heads)));
  return choice;
}

}  // namespace quire::cuda
