// The arithmetic of 8 tokens in float32 without tensor cores, for float32
// caches.
#pragma once

#include "kernels/cuda/tile_loader.cuh"

namespace quire::cuda {

/// One warp's attention state of up to 4, 8 or 16 query heads of one KV head.
///
/// kRowLanes lanes share a token's row, 4 elements or more a lane, and hold
/// those elements of every head's query and output; where that are 16 lanes,
/// the warp's halves serve every other token and their sums meet at the end.
/// Logits are sums over the lanes of a row of kRowLanes (token, head) pairs at
/// a time, scattered while they are reduced: pair i ends in lane i. Every lane
/// computes its pairs in an order of its own, pair i ^ lane as its i-th, so
/// that each round of the reduction sends the upper half of them and keeps the
/// lower, whatever the lane. The exponentials go through shared memory to all
/// lanes. A step reads each cache element from shared memory once and uses it
/// for all heads.
template <TileShape kShape>
class SimtStep {
 public:
  static constexpr int kHeadDim = kShape.head_dim;

  /// `scratch`: the warp's kShape.scratch_floats() of shared memory.
  __device__ __forceinline__ explicit SimtStep(float* scratch)
      : scratch_(scratch) {}

  __device__ __forceinline__ void
  load_q(const DecodeKernelArgs& args, int64_t first_row, int num_heads) {
    const int swap = threadIdx.x % kHeads;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const int head = h ^ swap;
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        const int e = element(i);
        q_[h][i] = head < num_heads && e < kHeadDim
                       ? load_one(args, (first_row + head) * kHeadDim + e) *
                             args.scale_log2
                       : 0.0f;
        o_[h][i] = 0.0f;
      }
    }
    max_ = -INFINITY;
    sum_ = 0.0f;
  }

  __device__ __forceinline__ void consume(const float* tile, int rows) {
    const int lane = threadIdx.x % kWarpSize;
    const int row = lane / kRowLanes;  // of the warp's kRows rows at a time
    const int swap = lane % kRowLanes / kHeads;
    float x[kSteps];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const float* const k =
          tile + (step * kTokens + row * kRowTokens) * kHeadDim;
      float s[kRowLanes];  // [kRowTokens][kHeads], pair i ^ lane at i
#pragma unroll
      for (int j = 0; j < kRowTokens; ++j) {
        float elements[kElements];
        load(elements, k + (j ^ swap) * kHeadDim);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          s[j * kHeads + h] = elements[0] * q_[h][0];
#pragma unroll
          for (int i = 1; i < kElements; ++i) {
            s[j * kHeads + h] = fmaf(elements[i], q_[h][i], s[j * kHeads + h]);
          }
        }
      }
      const float logit = scatter_sum(s);
      x[step] = step * kTokens + lane / kHeads < rows ? logit : -INFINITY;
    }

    float most = x[0];
#pragma unroll
    for (int step = 1; step < kSteps; ++step) {
      most = fmaxf(most, x[step]);
    }
#pragma unroll
    for (int d = kHeads; d < kWarpSize; d <<= 1) {
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, d));
    }
    most = fmaxf(fmaxf(max_, most), -1e30f);  // -inf - -inf is NaN
    // The sums are rescaled only when a maximum grows by more than 2^8.
    if (__any_sync(kAllLanes, most > max_ + 8.0f)) {
      const float keep = exp2f(max_ - most);
      max_ = most;
      sum_ *= keep;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const float keep_h = __shfl_sync(kAllLanes, keep, h);
#pragma unroll
        for (int i = 0; i < kElements; ++i) {
          o_[h][i] *= keep_h;
        }
      }
    }
    __syncwarp();  // the previous unit's exponentials have been read
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const float p = exp2f(x[step] - max_);
      sum_ += p;
      scratch_[step * kWarpSize + lane] = p;
    }
    __syncwarp();

    const float* const v = tile + kShape.unit_len() * kHeadDim;
#pragma unroll
    for (int j = 0; j < kShape.unit_len(); j += kRows) {
      float p[kHeads];
#pragma unroll
      for (int h = 0; h < kHeads; h += 4) {
        const float4 p4 =
            *reinterpret_cast<const float4*>(scratch_ + (j + row) * kHeads + h);
        p[h] = p4.x;
        p[h + 1] = p4.y;
        p[h + 2] = p4.z;
        p[h + 3] = p4.w;
      }
      float elements[kElements];
      load(elements, v + (j + row) * kHeadDim);
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          o_[h][i] = fmaf(p[h], elements[i], o_[h][i]);
        }
      }
    }
  }

  __device__ __forceinline__ void
  store(float* partial, float2* state, int num_heads) {
    const int lane = threadIdx.x % kWarpSize;
    float sum = sum_;
#pragma unroll
    for (int d = kHeads; d < kWarpSize; d <<= 1) {
      sum += __shfl_xor_sync(kAllLanes, sum, d);
    }
    if (lane < num_heads) {
      state[lane] = make_float2(max_, sum);
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (h < num_heads) {
#pragma unroll
        for (int i = 0; i < kElements; ++i) {
          float o = o_[h][i];
          if constexpr (kRows == 2) {
            o += __shfl_xor_sync(kAllLanes, o, kRowLanes);
          }
          if (lane < kRowLanes && element(i) < kHeadDim) {
            partial[h * kShape.partial_stride() + element(i)] = o;
          }
        }
      }
    }
  }

 private:
  static constexpr int kHeads = kShape.max_heads;
  static constexpr int kRowLanes = kHeadDim == 64 ? 16 : kWarpSize;
  static constexpr int kRows = kWarpSize / kRowLanes;
  static constexpr int kTokens = kWarpSize / kHeads;  // of one reduction
  static constexpr int kRowTokens = kTokens / kRows;
  static constexpr int kSteps = kShape.unit_len() / kTokens;
  static constexpr int kElements = (kHeadDim + kRowLanes - 1) / kRowLanes;
  // Quads of neighbours where they come out even.
  static constexpr bool kQuads = kElements % 4 == 0;
  static_assert(kRowTokens > 0);

  static __device__ __forceinline__ int element(int i) {
    const int lane = threadIdx.x % kRowLanes;
    return kQuads ? (i / 4 * kRowLanes + lane) * 4 + i % 4
                  : i * kRowLanes + lane;
  }

  static __device__ __forceinline__ void load(
      float (&to)[kElements],
      const float* row) {
#pragma unroll
    for (int i = 0; i < kElements; i += kQuads ? 4 : 1) {
      if constexpr (kQuads) {
        const float4 quad = *reinterpret_cast<const float4*>(row + element(i));
        to[i] = quad.x;
        to[i + 1] = quad.y;
        to[i + 2] = quad.z;
        to[i + 3] = quad.w;
      } else {
        to[i] = element(i) < kHeadDim ? row[element(i)] : 0.0f;
      }
    }
  }

  static __device__ __forceinline__ float load_one(
      const DecodeKernelArgs& args,
      int64_t at) {
    switch (args.q_dtype) {
      case DType::Float32:
        return __ldg(static_cast<const float*>(args.q) + at);
      case DType::Float16:
        return __half2float(__ldg(static_cast<const __half*>(args.q) + at));
      default:
        return __bfloat162float(
            __ldg(static_cast<const __nv_bfloat16*>(args.q) + at));
    }
  }

  /// Sum over the lanes of a row of pair lane % kRowLanes. In every round the
  /// partner lane's upper half holds the pairs of this lane's lower half.
  template <int kHalf = kRowLanes / 2>
  static __device__ __forceinline__ float scatter_sum(float (&s)[kRowLanes]) {
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      s[i] += __shfl_xor_sync(kAllLanes, s[i + kHalf], kHalf);
    }
    if constexpr (kHalf > 1) {
      return scatter_sum<kHalf / 2>(s);
    } else {
      return s[0];
    }
  }

  float* const scratch_;
  float q_[kHeads][kElements];  // of head h ^ (lane % kHeads) at h
  float o_[kHeads][kElements];
  float max_;  // of head lane % kHeads
  float sum_;  // of that head, this lane's tokens
};

}  // namespace quire::cuda
