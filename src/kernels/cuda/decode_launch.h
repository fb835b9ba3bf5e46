// Which CUDA kernel serves a decode step, and how it is launched: plain data
// made by pure functions, so that every decision is tested without a GPU and
// the harness and MLX enqueue the same value.
#pragma once

#include <cstdint>

#include "kernels/cuda/divider.h"
#include "kernels/decode_params.h"

namespace quire::cuda {

inline constexpr int kHeadDims[] = {64, 80, 96, 128, 256};
inline constexpr int kWarpSize = 32;
inline constexpr int kMaxCluster = 8;  // the portable limit

/// Shared memory a CTA may have, by GPU generation: 227 KB (sm_90, sm_100),
/// 163 KB (sm_80, sm_87) or 99 KB (sm_86, sm_89, sm_120).
enum class SmemClass : std::uint8_t { Kb227, Kb163, Kb99 };

constexpr int smem_limit_bytes(SmemClass smem) {
  return 1024 * (smem == SmemClass::Kb227   ? 227
                 : smem == SmemClass::Kb163 ? 163
                                            : 99);
}

/// `compute_capability` is 10 * major + minor.
constexpr SmemClass smem_class(int compute_capability) {
  return compute_capability >= 90 && compute_capability < 120 ? SmemClass::Kb227
         : compute_capability == 80 || compute_capability == 87
             ? SmemClass::Kb163
             : SmemClass::Kb99;
}

/// How a CTA's work is cut: a template parameter of the kernels.
struct TileShape {
  int kv_bytes = 0;  // bytes of a cache element
  int head_dim = 0;
  int kv_heads = 0;   // KV heads that a CTA serves, side by side in memory
  int max_heads = 0;  // query heads of one KV head that a CTA serves at most
  int warps = 0;
  int stages = 0;      // units in a ring
  int crew_warps = 1;  // that share a ring and split its KV heads

  QUIRE_HD constexpr int crews() const {
    return warps / crew_warps;
  }
  QUIRE_HD constexpr int warp_kv_heads() const {
    return kv_heads / crew_warps;
  }
  /// Tokens of a unit, the work of one crew at a time: one m16 tile of the
  /// tensor cores, or 8 rows of float32. 16 tokens lie in one block, or in two
  /// blocks of 8.
  QUIRE_HD constexpr int unit_len() const {
    return kv_bytes == 2 ? 16 : 8;
  }
  /// Bytes of a token's K or V that lie side by side.
  QUIRE_HD constexpr int token_bytes() const {
    return kv_heads * head_dim * kv_bytes;
  }
  /// The tensor cores take eight rows of a 16-byte column of chunks at once:
  /// rows of whole 128-byte lines are swizzled for it, others get one chunk of
  /// padding, which makes their number odd. float32 rows are read along.
  QUIRE_HD constexpr bool swizzled() const {
    return kv_bytes == 2 && token_bytes() % 128 == 0;
  }
  QUIRE_HD constexpr int row_bytes() const {
    return token_bytes() + (kv_bytes == 2 && !swizzled() ? 16 : 0);
  }
  QUIRE_HD constexpr int ring_bytes() const {  // of one crew
    return 2 * unit_len() * row_bytes() * stages;
  }
  /// Floats between the query heads of a crew's partial output. The tensor
  /// cores' lanes write 8 elements of 4 heads at once: 4 floats of padding put
  /// them into 32 different banks.
  QUIRE_HD constexpr int partial_stride() const {
    return head_dim + (kv_bytes == 2 ? 4 : 0);
  }
  /// Rings and the crews' partial states: output, maximum and sum of each of
  /// `heads` query heads, of all KV heads together.
  QUIRE_HD constexpr int smem_bytes(int heads) const {
    return crews() * (ring_bytes() + heads * (partial_stride() + 2) * 4) +
           warps * scratch_floats() * 4;
  }
  /// Floats of a warp's softmax weights on their way between lanes, which the
  /// tensor cores do not need.
  QUIRE_HD constexpr int scratch_floats() const {
    return kv_bytes == 4 ? unit_len() * max_heads : 0;
  }
};

/// The shape for a cache type, a head dim and numbers of heads: the most
/// bytes in flight that fit, 8 warps where the ring allows it. The registers of
/// a warp hold the state of several KV heads for groups of up to 8.
constexpr TileShape tile_shape(
    int kv_bytes,
    int head_dim,
    int kv_heads,
    int max_heads,
    int max_stages,
    SmemClass smem) {
  TileShape best;
  for (int warps = head_dim == 256 ? 4 : 8; warps >= 2 && best.warps == 0;
       warps /= 2) {
    for (int stages = max_stages; stages >= 2 && best.warps == 0; --stages) {
      const TileShape shape{
          kv_bytes,
          head_dim,
          kv_heads,
          max_heads,
          warps,
          stages,
          kv_heads > 1 && max_heads > 8 ? kv_heads : 1};
      if (shape.smem_bytes(kv_heads * max_heads) <= smem_limit_bytes(smem)) {
        best = shape;
      }
    }
  }
  return best;
}

/// One compiled kernel.
struct DecodeVariant {
  DType kv_dtype = DType::Float16;
  int head_dim = 128;
  int kv_heads = 1;      // of a CTA; more where a head's rows are short
  int max_heads = 8;     // of a KV head: 4, 8 or 16
  int max_stages = 3;    // fewer where so many do not fit
  bool convert = false;  // q and out are of another type than the cache
  bool cluster = false;  // one sequence, merged through distributed shared
                         // memory

  friend bool operator==(const DecodeVariant&, const DecodeVariant&) = default;
};

/// Facts about a device that the launch depends on.
struct DeviceLimits {
  // 10 * major + minor of the code that runs on the device, which may have been
  // compiled for an older one: the code's tiles depend on it.
  int compute_capability = 0;
  int num_sms = 0;
  int smem_per_cta_bytes = 0;  // opt-in limit
  int memory_gb_per_s = 0;     // peak; 0: unknown
  /// How many clusters of c CTAs with a whole SM's shared memory each fit at
  /// once, for c up to kMaxCluster; all 0 without clusters (below sm_90, or
  /// where the graph that holds the launch cannot carry a cluster shape).
  int active_clusters[kMaxCluster + 1] = {};
};

/// What a kernel gets, by value. Strides are in elements.
struct DecodeKernelArgs {
  const void* q = nullptr;        // [num_seqs, num_q_heads, head_dim]
  const void* k_cache = nullptr;  // [num_blocks, block_size, num_kv_heads,
                                  //  head_dim], 16-byte aligned
  const void* v_cache = nullptr;  // as k_cache
  const std::int32_t* block_table = nullptr;  // [num_seqs, max_blocks_per_seq]
  const std::int32_t* seq_lens = nullptr;     // [num_seqs]
  void* out = nullptr;                        // as q
  float* mail = nullptr;  // workspace: every word 0xffffffff between launches
  std::int64_t block_stride = 0;
  std::int64_t token_stride = 0;
  std::int64_t num_mail_slots = 0;
  std::int32_t num_seqs = 0;
  std::int32_t max_blocks_per_seq = 0;
  std::int32_t max_seq_len = 0;  // tokens of a full table row
  std::int32_t block_shift = 0;  // log2 of the block size
  std::int32_t num_kv_heads = 0;
  std::int32_t group_size = 0;
  std::int32_t head_tiles = 1;  // CTAs that share the group of one KV head
  std::int32_t tile_heads = 0;  // query heads of a KV head that each serves,
                                // the last may have fewer
  Divider range_ctas;           // CTAs that serve all heads of one range
  Divider num_ranges;           // of the work list, or splits of all sequences
  std::int32_t num_splits = 0;  // 0: equal ranges of all tokens; else one CTA a
                                // (sequence, split)
  std::int32_t leaders = 1;     // CTAs that share the merge of one sequence
  std::int32_t leader_quads = 0;  // groups of 4 outputs each of them merges
  float scale_log2 = 0.0f;        // softmax scale * log2(e)
  DType q_dtype = DType::Float16;
};

/// A launch, complete but for the pointers.
struct DecodeLaunch {
  DecodeVariant variant;
  DecodeKernelArgs args;
  std::int64_t grid = 0;  // CTAs, in x alone: y and z end at 65,535
  int cta_threads = 0;
  int cluster = 1;       // CTAs of a cluster, in x
  bool overlap = false;  // may start while the previous kernel ends
  int smem_bytes = 0;
  std::int64_t workspace_bytes = 0;
};

/// A launch, or why there is none, in the user's words.
struct DecodeChoice {
  const char* reason = "";  // empty: `launch` is valid
  DecodeLaunch launch;

  explicit operator bool() const {
    return *reason == '\0';
  }
};

struct DecodeLaunchOptions {
  int max_seq_len = 0;  // tokens, bounds all lengths; 0: the table's width
  /// Programmatic dependent launch: the kernel may start while the previous
  /// one of its stream ends; that one must not write seq_lens or block_table.
  bool overlap = false;
};

/**
 * Chooses kernel and launch for one decode step.
 *
 * The options steer the choice, not the result, but for rounding. The lengths
 * themselves stay on the device, so that a captured launch may be replayed with
 * others.
 */
DecodeChoice choose_decode_launch(
    const DecodeParams& params,
    DType q_dtype,
    DType kv_dtype,
    const DeviceLimits& limits,
    const DecodeLaunchOptions& options = {});

}  // namespace quire::cuda
