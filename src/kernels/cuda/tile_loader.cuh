// From the work list to shared memory: which tokens are this warp's, and the
// ring of copies that runs ahead of the arithmetic.
#pragma once

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/work_list.h"

namespace quire::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

/// A length that the table row can hold: no read ever leaves the row.
__device__ __forceinline__ int usable_len(
    const DecodeKernelArgs& args,
    int seq_len) {
  return max(0, min(seq_len, args.max_seq_len));
}

__device__ __forceinline__ int load_seq_len(
    const DecodeKernelArgs& args,
    int seq_idx) {
  return usable_len(args, __ldg(args.seq_lens + seq_idx));
}

/// Lengths of many sequences, those of base + lane, base + lane + 32, ... in
/// this lane: all loads are under way before the first is waited for.
struct LengthBatch {
  static constexpr int kLoads = 8;
  static constexpr int kSize = kLoads * kWarpSize;

  __device__ __forceinline__ void load(const DecodeKernelArgs& args, int base) {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int s = base + j * kWarpSize + lane;
      seq_len_[j] = s < args.num_seqs ? load_now(args.seq_lens + s) : 0;
    }
  }

  __device__ __forceinline__ int of_lane(const DecodeKernelArgs& args) const {
    return usable_len(args, seq_len_[0]);
  }
  template <int kUnitLen>
  __device__ __forceinline__ int units(const DecodeKernelArgs& args) const {
    int sum = 0;
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      sum += num_units(usable_len(args, seq_len_[j]), kUnitLen);
    }
    return sum;
  }

 private:
  int seq_len_[kLoads];
};

/// Moves on to the next sequence of the range. `known_len`: the length of
/// sequence seq_idx + 1 where it was loaded already, else -1.
template <int kUnitLen>
__device__ __forceinline__ void
advance(Segment& s, const DecodeKernelArgs& args, int known_len) {
  const int taken = s.end - s.begin;
  s.left -= taken;
  s.position += taken;
  if (s.left <= 0) {
    return;
  }
  ++s.seq_idx;
  s.seq_len = known_len >= 0 ? known_len : load_seq_len(args, s.seq_idx);
  while (s.seq_len == 0) {  // ends: units are left, so a sequence follows
    s.seq_len = load_seq_len(args, ++s.seq_idx);
  }
  s.begin = 0;
  s.end = min(num_units(s.seq_len, kUnitLen), s.left);
}

/// The first segment of range `range`; every warp computes it for itself, 32
/// sequences at a time. `lens`: the first sequences' lengths; `share` receives
/// the units of a range.
template <int kUnitLen>
__device__ __forceinline__ Segment find_range(
    const DecodeKernelArgs& args,
    int range,
    const LengthBatch& lens,
    int& share) {
  const int lane = threadIdx.x % kWarpSize;
  int total = lens.units<kUnitLen>(args);
  for (int base = lens.kSize; base < args.num_seqs; base += lens.kSize) {
    LengthBatch more;
    more.load(args, base);
    total += more.units<kUnitLen>(args);
  }
  total = __reduce_add_sync(kAllLanes, total);
  share = range_share(total, args.num_ranges);
  Segment segment;
  const int begin = range * share;
  if (begin >= total) {
    return segment;
  }
  segment.left = min(share, total - begin);
  segment.position = begin;
  int before = 0;
  int len = lens.of_lane(args);
  for (int base = 0;; base += kWarpSize) {
    if (base > 0) {
      const int s = base + lane;
      len = s < args.num_seqs ? load_seq_len(args, s) : 0;
    }
    const int units = num_units(len, kUnitLen);
    const int all = args.num_seqs <= kWarpSize
                        ? total
                        : __reduce_add_sync(kAllLanes, units);
    if (before + all <= begin) {
      before += all;
      continue;
    }
    int up_to = units;
#pragma unroll
    for (int d = 1; d < kWarpSize; d <<= 1) {
      const int lower = __shfl_up_sync(kAllLanes, up_to, d);
      up_to += lane >= d ? lower : 0;
    }
    const int owner = __ffs(static_cast<int>(
                          __ballot_sync(kAllLanes, before + up_to > begin))) -
                      1;
    segment.seq_idx = base + owner;
    segment.seq_len = __shfl_sync(kAllLanes, len, owner);
    segment.begin =
        begin - (before + __shfl_sync(kAllLanes, up_to - units, owner));
    segment.end =
        min(num_units(segment.seq_len, kUnitLen), segment.begin + segment.left);
    return segment;
  }
}

/// One warp's copies of K and V. Its crew takes every kShape.crews()-th unit of
/// the CTA's segments, turn `turn`, into a ring of kShape.stages units that no
/// other crew touches: the token loop has no barrier of the CTA. In a crew of
/// two, warp `member` 0 copies K and 1 copies V.
///
/// Block ids sit in registers, one a lane, and are fetched a refill ahead.
template <TileShape kShape, bool kManySeqs>
class TileLoader {
 public:
  static constexpr int kUnitLen = kShape.unit_len();
  static constexpr int kHalfBytes = kUnitLen * kShape.row_bytes();  // K or V

  /// Loads the first block ids; no K or V is touched.
  __device__ __forceinline__ TileLoader(
      const DecodeKernelArgs& args,
      const Segment& first,
      int turn,
      int member,
      const void* next_q_line,
      int64_t q_seq_bytes)
      : args_(args),
        segment_(first),
        turn_(turn),
        member_(member),
        next_q_line_(next_q_line),
        q_seq_bytes_(q_seq_bytes),
        two_blocks_(kUnitLen == 16 && args.block_shift == 3 ? 1 : 0),
        unit_(first.begin + turn * first.step) {
    ids_ = segment_.valid() ? load_ids(segment_.seq_idx, unit_) : 0;
  }

  /// Gives the loader its ring and its head; before the first issue().
  __device__ __forceinline__ void start(uint32_t ring, int kv_head) {
    ring_ = ring;
    policy_ = evict_first_policy();
    const int lane = threadIdx.x % kWarpSize;
    const int64_t head_bytes =
        static_cast<int64_t>(kv_head) * kShape.head_dim * kShape.kv_bytes;
    const int chunk_bytes = kEvenRows ? lane % kChunks * 16 : 0;
    k_ = static_cast<const char*>(args_.k_cache) + head_bytes + chunk_bytes;
    v_ = static_cast<const char*>(args_.v_cache) + head_bytes + chunk_bytes;
    if (segment_.valid() && unit_ < segment_.end) {
      fetch_next();
    } else {
      settle();
    }
  }

  /// Starts the warp's copy of the crew's next unit into ring slot `slot`; an
  /// empty group where none is left, so that group counts stay in step.
  __device__ __forceinline__ void issue(int slot) {
    if (segment_.valid()) {
      if (used_ == kWarpSize >> two_blocks_) {
        used_ = 0;
        ids_ = next_ids_;
        fetch_next();
      }
      copy(slot);
      ++used_;
      unit_ += kShape.crews() * segment_.step;
      settle();
    }
    cp_async_commit();
  }

 private:
  static constexpr int kChunks = kShape.token_bytes() / 16;
  static constexpr int kCopies = kUnitLen * kChunks / kWarpSize;
  static constexpr bool kEvenRows = kWarpSize % kChunks == 0;
  // A row that ends inside a line of 128 bytes shares it with the next head's:
  // fetched whole, it is there when the neighbouring CTA asks.
  static constexpr bool kWholeLines = kChunks % 8 != 0;
  static_assert(kUnitLen * kChunks % kWarpSize == 0);
  static_assert(kShape.crew_warps <= 2);

  /// Block ids of the crew's units from `unit` on, one a lane (or two lanes a
  /// unit). Ids past the row's end are never asked for; ids past the
  /// sequence's end are read but not followed.
  __device__ __forceinline__ int load_ids(int seq_idx, int unit) const {
    const int lane = threadIdx.x % kWarpSize;
    const int mine =
        unit + (lane >> two_blocks_) * kShape.crews() * segment_.step;
    const int block_idx = two_blocks_ ? 2 * mine + lane % 2
                                      : mine * kUnitLen >> args_.block_shift;
    return block_idx < args_.max_blocks_per_seq
               ? __ldg(
                     args_.block_table +
                     static_cast<int64_t>(seq_idx) * args_.max_blocks_per_seq +
                     block_idx)
               : 0;
  }

  __device__ __forceinline__ void fetch_next() {
    const int unit =
        unit_ + (kWarpSize >> two_blocks_) * kShape.crews() * segment_.step;
    if (unit < segment_.end) {
      next_ids_ = load_ids(segment_.seq_idx, unit);
      next_len_ = -1;
    } else if (kManySeqs && !segment_.last()) {
      next_len_ = load_seq_len(args_, segment_.seq_idx + 1);
      next_ids_ = load_ids(segment_.seq_idx + 1, turn_);
      if (next_q_line_ != nullptr) {
        prefetch_l2(
            static_cast<const char*>(next_q_line_) +
            (segment_.seq_idx + 1) * q_seq_bytes_);
      }
    }
  }

  /// Steps over segments that have no unit left for this warp.
  __device__ __forceinline__ void settle() {
    while (segment_.valid() && unit_ >= segment_.end) {
      if constexpr (kManySeqs) {
        const int expected = segment_.seq_idx + 1;
        advance<kUnitLen>(segment_, args_, next_len_);
        if (!segment_.valid()) {
          return;
        }
        const bool fetched = next_len_ >= 0 && segment_.seq_idx == expected;
        unit_ = turn_;
        used_ = 0;
        ids_ = fetched ? next_ids_ : load_ids(segment_.seq_idx, unit_);
        next_len_ = -1;
        fetch_next();
      } else {
        segment_.left = 0;
      }
    }
  }

  __device__ __forceinline__ void copy(int slot) const {
    const int lane = threadIdx.x % kWarpSize;
    const int token = unit_ * kUnitLen;
    const int rows = segment_.seq_len - token;
    const int64_t row_stride = args_.token_stride * kShape.kv_bytes;
    const int64_t block_stride = args_.block_stride * kShape.kv_bytes;
    // Byte offsets of row 0 and of row 8, which may be in another block.
    const int id = __shfl_sync(kAllLanes, ids_, used_ << two_blocks_);
    const int64_t lower = id * block_stride +
                          (token & ((1 << args_.block_shift) - 1)) * row_stride;
    int64_t upper = lower + 8 * row_stride;
    if (kUnitLen == 16 && two_blocks_) {
      const int second = __shfl_sync(kAllLanes, ids_, 2 * used_ + 1);
      upper = rows > 8 ? second * block_stride : lower;
    }
    const uint32_t base = ring_ + slot * 2 * kHalfBytes;
#pragma unroll
    for (int i = 0; i < 2 / kShape.crew_warps; ++i) {
      const int half = i + member_;  // K or V
      const char* const source = half == 0 ? k_ : v_;
#pragma unroll
      for (int j = 0; j < kCopies; ++j) {
        int row, chunk;
        if constexpr (kEvenRows) {  // a lane's chunk is the same in all copies
          row = lane / kChunks + j * (kWarpSize / kChunks);
          chunk = lane % kChunks;
        } else {
          row = (lane + j * kWarpSize) / kChunks;
          chunk = (lane + j * kWarpSize) % kChunks;
        }
        const char* const p = source +
                              (row < 8 ? lower + row * row_stride
                                       : upper + (row - 8) * row_stride) +
                              (kEvenRows ? 0 : chunk * 16);
        const int slot_chunk = kShape.swizzled() ? chunk ^ (row & 7) : chunk;
        // V rows past the sequence's end become zero because 0 * NaN is NaN;
        // for K the mask would do.
        cp_async16<kWholeLines>(
            base + half * kHalfBytes + row * kShape.row_bytes() +
                slot_chunk * 16,
            p,
            row < rows ? 16 : 0,
            policy_);
      }
    }
  }

  const DecodeKernelArgs& args_;
  Segment segment_;
  const int turn_;
  const int member_;
  const void* const next_q_line_;  // this lane's line of q of sequence 0
  const int64_t q_seq_bytes_;
  const int two_blocks_;  // 1: a unit of 16 tokens lies in two blocks of 8
  int unit_;
  int ids_ = 0;
  int used_ = 0;  // units of ids_ that were issued
  int next_ids_ = 0;
  int next_len_ = -1;
  uint32_t ring_ = 0;
  uint64_t policy_ = 0;
  const char* k_ = nullptr;
  const char* v_ = nullptr;
};

}  // namespace quire::cuda
