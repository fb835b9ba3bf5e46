// Paged-attention decode, one launch.
//
// Grid -> work: a CTA serves one KV head over a range of the work list
// (work_list.h), a tile of its query heads, or, where a head's rows are short,
// two or three KV heads. The CTAs of all heads over one range are neighbours in
// the grid, because their rows are neighbours in memory.
// Warps: every warp takes every kShape.warps-th unit of the range into a ring
// of its own and keeps a state of its own; there is no barrier before the
// range's end. Where a warp's registers do not hold the state of two KV heads
// with 16 query heads each, two warps are a crew: they share a ring, and each
// serves one of the KV heads. Each byte of K and V is read from memory once, so
// the kernel is bound by that; 2 to 3 units of 8 KB a warp, 128 KB or more an
// SM, are in flight, several times what Little's law asks for (about 30 KB an
// SM at 4.8 TB/s and 0.8 us).
//
// The states of a sequence's CTAs are merged by mail (merge.cuh), or, for one
// short sequence, through the distributed shared memory of a cluster.
//
// A CTA waits for mail only of CTAs with a smaller index, which started before
// it, and after its own last segment: the launch ends whatever number of CTAs
// fits the GPU. The exception are the leaders of a single sequence, which wait
// for one another: the host keeps them to half the SMs.
//
// Relies on: strides as DecodeKernelArgs says, q, caches and out aligned to 16
// bytes, a workspace of kEmpty words that no concurrent launch shares. Lengths
// beyond the table's row are cut to it.
#pragma once

#include "kernels/cuda/merge.cuh"
#include "kernels/cuda/mma_step.cuh"
#include "kernels/cuda/simt_step.cuh"

namespace quire::cuda {

#if defined(__CUDA_ARCH__)
inline constexpr SmemClass kThisSmemClass = smem_class(__CUDA_ARCH__ / 10);
#else
inline constexpr SmemClass kThisSmemClass = SmemClass::Kb227;
#endif

/// Stores 4 elements of the output, `quad` counted from the start of `out`.
template <class T, bool kConvert>
__device__ __forceinline__ void
store_out(const DecodeKernelArgs& args, int64_t quad, const float4& v) {
  char* const out = static_cast<char*>(args.out);
  if (kConvert && args.q_dtype == DType::Float32) {
    store_kept(out + quad * 16, v);
  } else if (
      kConvert ? args.q_dtype == DType::Float16 : std::is_same_v<T, __half>) {
    store_kept(
        out + quad * 8,
        make_uint2(pack2<__half>(v.x, v.y), pack2<__half>(v.z, v.w)));
  } else {
    store_kept(
        out + quad * 8,
        make_uint2(
            pack2<__nv_bfloat16>(v.x, v.y), pack2<__nv_bfloat16>(v.z, v.w)));
  }
}

/// Rows of empty sequences, which no range holds, are dealt out to all CTAs.
template <class T, int kHeadDim, bool kConvert>
__device__ __forceinline__ void write_empty_rows(const DecodeKernelArgs& args) {
  const int quads = args.num_kv_heads * args.group_size * (kHeadDim / 4);
  for (int s = blockIdx.x; s < args.num_seqs; s += gridDim.x) {
    if (load_seq_len(args, s) == 0) {
      for (int i = threadIdx.x; i < quads; i += blockDim.x) {
        store_out<T, kConvert>(
            args,
            static_cast<int64_t>(s) * quads + i,
            make_float4(0.0f, 0.0f, 0.0f, 0.0f));
      }
    }
  }
}

/// Where the warps of a crew meet, once a unit: the copies of both have landed,
/// and the unit that was consumed last may be overwritten.
template <TileShape kShape>
class CrewBarrier {
 public:
  /// All threads of the CTA call it.
  __device__ __forceinline__ explicit CrewBarrier(int crew) {
    if constexpr (kShape.crew_warps > 1) {
      __shared__ uint64_t barriers[kShape.crews()];
      if (threadIdx.x < kShape.crews()) {
        mbarrier_init(
            smem_address(barriers + threadIdx.x),
            kShape.crew_warps * kWarpSize);
      }
      __syncthreads();
      barrier_ = smem_address(barriers + crew);
    }
  }

  __device__ __forceinline__ void meet() {
    if constexpr (kShape.crew_warps > 1) {
      // Every lane arrives: racecheck does not see that one arrives for all.
      mbarrier_arrive(barrier_);
      mbarrier_wait(barrier_, phase_);
      phase_ ^= 1;
    }
    __syncwarp();
  }

 private:
  uint32_t barrier_ = 0;
  uint32_t phase_ = 0;
};

/// How a CTA's threads collect mail: `width` of them lie along the slice of the
/// output, and teams of so many split the pieces. Made before the token loop,
/// because divisions after it cost 0.3 us and more.
struct Teams {
  int width;
  int most;  // teams at most
  int team;  // this thread's
  int lane;  // and its place in it

  __device__ __forceinline__ Teams(int quads, int num_threads)
      : width(min(quads, num_threads)),
        most(num_threads / width),
        team(static_cast<int>(threadIdx.x) / width),
        lane(static_cast<int>(threadIdx.x) - team * width) {}
};

/// Collects the states of a sequence's other pieces for quads [begin, end) of
/// this CTA's output, adds its own and writes the result. All threads of the
/// CTA take part; `reduction` is shared memory that nothing else uses now.
template <class T, TileShape kShape, bool kConvert>
__device__ __forceinline__ void collect(
    const DecodeKernelArgs& args,
    const Mail& mail,
    const CrewStates<kShape>& states,
    const Pieces& pieces,
    int begin,
    int end,
    const Teams& teams,
    int64_t out_quad,
    float* reduction) {
  constexpr int kThreads = kShape.warps * kWarpSize;
  constexpr int kBatch = 8;
  const int width = teams.width;
  const int team = teams.team;
  const int lane = teams.lane;
  const int others = pieces.count - 1;
  const int num_teams = min(teams.most, others);
  float2* const reduction_state =
      reinterpret_cast<float2*>(reduction + kThreads * 4);
  auto other = [&](int i) { return i + (i >= pieces.piece ? 1 : 0); };

  for (int base = begin; base < end; base += width) {
    const int quad = base + lane;
    const bool on = team < num_teams && quad < end;
    QuadState sum;
    if (on && team == 0) {
      float lse;
      const float4 own = states.merged(quad, lse);
      sum.raise(lse);
      sum.add(own, lse);
    }
    if (on) {
#pragma unroll 1
      for (int i = team; i < others; i += kBatch * num_teams) {
        float4 v[kBatch];
        float lse[kBatch];
        bool here[kBatch];
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          here[j] = i + j * num_teams >= others;
          v[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
          lse[j] = -INFINITY;
        }
        bool all;
        do {
#pragma unroll
          for (int j = 0; j < kBatch; ++j) {
            if (!here[j]) {
              here[j] = mail.peek(other(i + j * num_teams), quad, v[j], lse[j]);
            }
          }
          all = true;
#pragma unroll
          for (int j = 0; j < kBatch; ++j) {
            all = all && here[j];
          }
        } while (!all);
        float max = sum.max_log2;
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          max = fmaxf(max, lse[j]);
        }
        sum.raise(max);
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          sum.add(v[j], lse[j]);
        }
      }
    }
    if (num_teams > 1) {
      if (on && team > 0) {
        *reinterpret_cast<float4*>(reduction + threadIdx.x * 4) = sum.o;
        reduction_state[threadIdx.x] = make_float2(sum.max_log2, sum.d);
      }
      __syncthreads();
      if (on && team == 0) {
        float max = sum.max_log2;
        for (int k = 1; k < num_teams; ++k) {
          max = fmaxf(max, reduction_state[threadIdx.x + k * width].x);
        }
        sum.raise(max);
#pragma unroll 4
        for (int k = 1; k < num_teams; ++k) {
          const int at = threadIdx.x + k * width;
          sum.add(
              *reinterpret_cast<const float4*>(reduction + at * 4),
              reduction_state[at].x,
              reduction_state[at].y);
        }
      }
    }
    if (on && team == 0) {
      store_out<T, kConvert>(args, out_quad + quad, sum.result());
    }
    if (base + width < end) {
      __syncthreads();
    }
    if (on) {
#pragma unroll 4
      for (int i = team; i < others; i += num_teams) {
        mail.empty(other(i), quad);
      }
    }
  }
}

/// Merges the states of a cluster: every CTA pushes each slice of its state
/// into the CTA that owns it. `received`: (quads + cluster size) * 5 floats of
/// shared memory.
template <class T, TileShape kShape, bool kConvert>
__device__ __forceinline__ void merge_cluster(
    const DecodeKernelArgs& args,
    const CrewStates<kShape>& states,
    int rank,
    int num_ranks,
    int quads,
    int64_t out_quad,
    float* received) {
  constexpr int kThreads = kShape.warps * kWarpSize;
  const int owned = (quads + num_ranks - 1) / num_ranks;
  float* const received_lse = received + num_ranks * owned * 4;
  cluster_wait();  // all CTAs of the cluster have started
  for (int quad = threadIdx.x; quad < quads; quad += kThreads) {
    float lse;
    const float4 v = states.merged(quad, lse);
    const int to = quad / owned;
    const int at = rank * owned + quad - to * owned;
    cluster_store(cluster_address(received + at * 4, to), v);
    cluster_store(cluster_address(received_lse + at, to), lse);
  }
  cluster_arrive();
  cluster_wait();
  const int tid = threadIdx.x;
  for (int i = tid; i < owned && rank * owned + i < quads; i += kThreads) {
    QuadState sum;
    float max = sum.max_log2;
#pragma unroll 8
    for (int c = 0; c < num_ranks; ++c) {
      max = fmaxf(max, received_lse[c * owned + i]);
    }
    sum.raise(max);
#pragma unroll 8
    for (int c = 0; c < num_ranks; ++c) {
      sum.add(
          *reinterpret_cast<const float4*>(received + (c * owned + i) * 4),
          received_lse[c * owned + i]);
    }
    store_out<T, kConvert>(args, out_quad + rank * owned + i, sum.result());
  }
}

/// T: the cache's type. See the top of the file.
template <class T, TileShape kShape, bool kConvert, bool kCluster>
__device__ __forceinline__ void paged_decode(const DecodeKernelArgs& args) {
  constexpr int kHeadDim = kShape.head_dim;
  constexpr int kUnitLen = kShape.unit_len();
  constexpr int kWarps = kShape.warps;
  constexpr int kCrews = kShape.crews();
  constexpr int kStages = kShape.stages;
  constexpr bool kTensorCores = sizeof(T) == 2;
  extern __shared__ __align__(128) uint8_t smem[];

  // The lengths before all else, which waits for them.
  LengthBatch lens;
  int only_len = 0;
  if constexpr (kCluster) {
    only_len = load_now(args.seq_lens);
  } else {
    lens.load(args, 0);
  }

  const int warp = threadIdx.x / kWarpSize;
  const int crew = warp / kShape.crew_warps;
  const int member = warp % kShape.crew_warps;
  const int lane = threadIdx.x % kWarpSize;
  const int heads = args.range_ctas.divisor;
  const int num_ranges = args.num_ranges.divisor;
  int head, range;
  if constexpr (kCluster) {  // a cluster has all ranges of one head
    head = cluster_id();
    range = cluster_rank();
  } else {
    const int turned_range = args.range_ctas.quotient(blockIdx.x);
    head = blockIdx.x - turned_range * heads;
    range = num_ranges - 1 - turned_range;
  }
  int kv_head = head * kShape.kv_heads;
  int first_head = 0;  // of the group
  int group_heads = args.tile_heads;
  if (args.head_tiles > 1) {
    kv_head = head / args.head_tiles;
    first_head = (head - kv_head * args.head_tiles) * args.tile_heads;
    group_heads = min(group_heads, args.group_size - first_head);
  }
  const int num_heads = kShape.kv_heads * group_heads;
  const int max_heads = kShape.kv_heads * args.tile_heads;
  const int q_heads = args.num_kv_heads * args.group_size;
  const int first_row = kv_head * args.group_size + first_head;

  if constexpr (kCluster) {
    cluster_arrive_relaxed();
  }

  // Which units are ours.
  const bool dealt = kCluster || (args.num_seqs == 1 && args.num_splits == 0);
  int share = 0;
  Segment segment;
  Pieces pieces;
  if (dealt) {
    segment.seq_len =
        kCluster ? usable_len(args, only_len) : load_seq_len(args, 0);
    segment.begin = range;
    segment.end = num_units(segment.seq_len, kUnitLen);
    segment.step = num_ranges;
    segment.left = max(segment.end - segment.begin, 0);
    pieces = {0, min(num_ranges, segment.end), range};
  } else if (args.num_splits > 0) {
    segment.seq_idx = range / args.num_splits;
    segment.seq_len = load_seq_len(args, segment.seq_idx);
    pieces = split_pieces(
        segment,
        kUnitLen,
        args.num_splits,
        range - segment.seq_idx * args.num_splits);
  } else {
    segment = find_range<kUnitLen>(args, range, lens, share);
  }
  const int64_t q_row_bytes =
      static_cast<int64_t>(kHeadDim) * (args.q_dtype == DType::Float32 ? 4 : 2);
  const int q_line = (member * kWarpSize + lane) * 128;
  TileLoader<kShape, !kCluster> loader(
      args,
      segment,
      crew,
      member,
      q_line < num_heads * q_row_bytes
          ? static_cast<const char*>(args.q) + first_row * q_row_bytes + q_line
          : nullptr,
      q_heads * q_row_bytes);
  const Teams teams(args.leader_quads, kWarps * kWarpSize);
  CrewBarrier<kShape> crew_barrier(crew);
  wait_for_previous_launch();

  uint8_t* const ring = smem + crew * kShape.ring_bytes();
  loader.start(smem_address(ring), kv_head);
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    loader.issue(s);
  }
  allow_next_launch();
  write_empty_rows<T, kHeadDim, kConvert>(args);

  float* const after_rings =
      reinterpret_cast<float*>(smem + kCrews * kShape.ring_bytes());
  CrewStates<kShape> states;
  states.partial = after_rings + kWarps * kShape.scratch_floats();
  states.state = reinterpret_cast<float2*>(
      states.partial + kCrews * max_heads * kShape.partial_stride());
  states.num_heads = num_heads;

  auto step = [&] {
    if constexpr (kTensorCores) {
      return MmaStep<T, kShape, kConvert>(member);
    } else {
      return SimtStep<kShape>(after_rings + warp * kShape.scratch_floats());
    }
  }();
  // The warp's first query head among the CTA's.
  const int warp_head = member * kShape.warp_kv_heads() * group_heads;
  const int quads = num_heads * (kHeadDim / 4);
  const int slot_quads = max_heads * (kHeadDim / 4);
  int slot = 0;
  bool first = true;
  for (; kCluster || segment.valid(); advance<kUnitLen>(segment, args, -1)) {
    const int64_t row =
        static_cast<int64_t>(segment.seq_idx) * q_heads + first_row;
    step.load_q(args, row + warp_head, group_heads);
    if (!dealt && args.num_splits == 0) {
      pieces = range_pieces(segment, kUnitLen, share, range);
    }

    for (int unit = segment.begin + crew * segment.step; unit < segment.end;
         unit += kCrews * segment.step) {
      cp_async_wait<kStages - 2>();
      crew_barrier.meet();
      loader.issue(slot == 0 ? kStages - 1 : slot - 1);  // consumed last turn
      const int rows = segment.seq_len - unit * kUnitLen;
      constexpr int kUnitBytes = 2 * TileLoader<kShape, true>::kHalfBytes;
      if constexpr (kTensorCores) {
        step.consume(smem_address(ring) + slot * kUnitBytes, rows);
      } else {
        step.consume(
            reinterpret_cast<const float*>(ring + slot * kUnitBytes), rows);
      }
      slot = slot + 1 == kStages ? 0 : slot + 1;
    }

    if (!first) {
      __syncthreads();  // the previous segment's states have been read
    }
    first = false;
    step.store(
        states.partial_of(crew) + warp_head * kShape.partial_stride(),
        states.state_of(crew) + warp_head,
        group_heads);
    __syncthreads();

    const int64_t out_quad = row * (kHeadDim / 4);
    if constexpr (kCluster) {
      merge_cluster<T, kShape, kConvert>(
          args,
          states,
          range,
          num_ranges,
          quads,
          out_quad,
          reinterpret_cast<float*>(states.state + kCrews * max_heads));
      return;
    }

    // Every leader writes a slice of the output; without mail, all of it.
    const Mail mail(
        args,
        static_cast<int64_t>(pieces.first_range) * heads + head,
        heads,
        slot_quads);
    const bool share_lead = dealt && pieces.count >= args.leaders;
    int begin = 0;
    int end = 0;
    if (pieces.count > 1) {
      begin = share_lead          ? min(pieces.piece * args.leader_quads, quads)
              : pieces.piece == 0 ? 0
                                  : quads;
      end = share_lead ? min(begin + args.leader_quads, quads) : quads;
    }
    for (int quad = threadIdx.x; quad < quads; quad += kWarps * kWarpSize) {
      if (quad >= begin && quad < end) {
        continue;
      }
      float lse;
      const float4 v = states.merged(quad, lse);
      if (pieces.count == 1) {
        store_out<T, kConvert>(args, out_quad + quad, v);
      } else {
        mail.post(pieces.piece, quad, v, lse);
      }
    }
    if (begin < end) {
      // The ring is free: a CTA that collects has no unit left.
      collect<T, kShape, kConvert>(
          args,
          mail,
          states,
          pieces,
          begin,
          end,
          teams,
          out_quad,
          reinterpret_cast<float*>(smem));
    }
  }
}

template <
    class T,
    int kHeadDim,
    int kKvHeads,
    int kMaxHeads,
    int kMaxStages,
    SmemClass kSmem>
inline constexpr TileShape kTile =
    tile_shape(sizeof(T), kHeadDim, kKvHeads, kMaxHeads, kMaxStages, kSmem);

/// The bounds of a launch follow the host's choice of shape, which depends on
/// the architecture; so does the code, which a pass compiles for its own.
template <
    class T,
    int kHeadDim,
    int kKvHeads,
    int kMaxHeads,
    int kMaxStages,
    bool kConvert,
    bool kCluster>
__global__ void __launch_bounds__(
    kTile<T, kHeadDim, kKvHeads, kMaxHeads, kMaxStages, kThisSmemClass>.warps*
        kWarpSize,
    1) paged_decode_kernel(const __grid_constant__ DecodeKernelArgs args) {
#if defined(__CUDA_ARCH__)
  constexpr TileShape kShape =
      kTile<T, kHeadDim, kKvHeads, kMaxHeads, kMaxStages, kThisSmemClass>;
  // Crews meet at barriers that Hopper brought; no host launches them
  // elsewhere.
  if constexpr (
      kShape.warps > 0 &&
      (kShape.crew_warps == 1 || kThisSmemClass == SmemClass::Kb227)) {
    paged_decode<T, kShape, kConvert, kCluster>(args);
  }
#endif
}

}  // namespace quire::cuda
