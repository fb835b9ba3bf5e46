// The arithmetic of 16 tokens on the tensor cores, for 16-bit caches.
#pragma once

#include "kernels/cuda/tile_loader.cuh"

namespace quire::cuda {

/// One warp's attention state of up to 8 or 16 query heads of each KV head
/// that it serves.
///
/// K and V are the A operand of m16n8k16, the query heads its 8 columns, so a
/// group of any size up to 8 costs the same and nothing is repeated. Logits
/// come out as columns; their exponentials, transposed in registers, are the B
/// operand of the second product. Lane (g, t) = (lane / 4, lane % 4) owns
/// tokens g and g + 8 of heads 2t and 2t + 1.
///
/// kConvert: q is of another type than the cache. It is scaled by a power of
/// two to below 2 and split into two parts of the cache's type, so that no
/// more than 2^-17 (bf16) or 2^-22 (f16) of it is lost.
template <class T, TileShape kShape, bool kConvert>
class MmaStep {
 public:
  static constexpr int kHeadDim = kShape.head_dim;

  /// `member`: the warp's place in its crew; it serves the KV heads from
  /// member * warp_kv_heads() on.
  __device__ __forceinline__ explicit MmaStep(int member)
      : first_chunk_(member * kShape.warp_kv_heads() * kHeadChunks) {}

  __device__ __forceinline__ void
  load_q(const DecodeKernelArgs& args, int64_t first_row, int group_heads) {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int head = n % kGroupTiles * 8 + lane / 4;
      const bool on = head < group_heads;
      const int64_t row =
          first_row + n / kGroupTiles * group_heads + (on ? head : 0);
      const int64_t at = row * kHeadDim + lane % 4 * 2;
      if constexpr (!kConvert) {
        const auto* const q = reinterpret_cast<const uint32_t*>(
            static_cast<const T*>(args.q) + at);
#pragma unroll
        for (int k = 0; k < kSlices; ++k) {
          q_[n][0][k][0] = on ? __ldg(q + k * 8) : 0u;
          q_[n][0][k][1] = on ? __ldg(q + k * 8 + 4) : 0u;
        }
      } else {
        load_converted(args, at, on, n);
      }
#pragma unroll
      for (int k = 0; k < kSlices; ++k) {
        o_[n][k][0] = o_[n][k][1] = o_[n][k][2] = o_[n][k][3] = 0.0f;
      }
      max_[n][0] = max_[n][1] = -INFINITY;
      sum_[n][0] = sum_[n][1] = 0.0f;
      if constexpr (!kConvert) {
        scale_[n][0] = scale_[n][1] = args.scale_log2;
      }
    }
  }

  /// Takes in the unit at shared-memory address `tile`, of which `rows` tokens
  /// are the sequence's.
  __device__ __forceinline__ void consume(uint32_t tile, int rows) {
    const int lane = threadIdx.x % kWarpSize;
    const uint32_t v_tile = tile + kShape.unit_len() * kShape.row_bytes();

    float s[kTiles][2][4] = {};  // two chains, so that the products overlap
#pragma unroll
    for (int i = 0; i < kShape.warp_kv_heads() * kSlices; ++i) {
      const int first = i / kSlices * kGroupTiles;
      const int k = i % kSlices;
      uint32_t a[4];
      ldmatrix4<false>(
          a, chunk_address(tile, lane & 15, first_chunk_ + 2 * i, lane >> 4));
#pragma unroll
      for (int n = first; n < first + kGroupTiles; ++n) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          mma_m16n8k16<T>(s[n][k & 1], a, q_[n][part][k][0], q_[n][part][k][1]);
        }
      }
    }

    uint32_t p[kTiles][2];
    float keep[kTiles][2];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      softmax(n, s[n], rows, p[n], keep[n]);
    }

    const int v_row = (lane & 7) + (lane >> 4 << 3);
#pragma unroll
    for (int j = 0; j < kShape.warp_kv_heads() * kSlices; ++j) {
      const int first = j / kSlices * kGroupTiles;
      const int i = j % kSlices;
      uint32_t a[4];
      ldmatrix4<true>(
          a, chunk_address(v_tile, v_row, first_chunk_ + 2 * j, lane >> 3 & 1));
#pragma unroll
      for (int n = first; n < first + kGroupTiles; ++n) {
        o_[n][i][0] *= keep[n][0];
        o_[n][i][1] *= keep[n][1];
        o_[n][i][2] *= keep[n][0];
        o_[n][i][3] *= keep[n][1];
        mma_m16n8k16<T>(o_[n][i], a, p[n][0], p[n][1]);
      }
    }
  }

  /// Writes the state: o to [num_heads][partial_stride], (maximum, sum) to
  /// [num_heads], num_heads being group_heads of each KV head that
  /// it serves.
  __device__ __forceinline__ void
  store(float* partial, float2* state, int group_heads) {
    const int lane = threadIdx.x % kWarpSize;
    const int g = lane / 4;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        float sum = sum_[n][column];
#pragma unroll
        for (int d = 4; d < kWarpSize; d <<= 1) {
          sum += __shfl_xor_sync(kAllLanes, sum, d);
        }
        const int of_group = n % kGroupTiles * 8 + lane % 4 * 2 + column;
        if (of_group >= group_heads) {
          continue;
        }
        const int head = n / kGroupTiles * group_heads + of_group;
        float* const to = partial + head * kShape.partial_stride() + g;
#pragma unroll
        for (int i = 0; i < kSlices; ++i) {
          to[i * 16] = o_[n][i][column];
          to[i * 16 + 8] = o_[n][i][column + 2];
        }
        if (g == 0) {
          state[head] = make_float2(max_[n][column], sum);
        }
      }
    }
  }

 private:
  // A tile is 8 columns: query heads of one KV head.
  static constexpr int kGroupTiles = (kShape.max_heads + 7) / 8;
  static constexpr int kTiles = kShape.warp_kv_heads() * kGroupTiles;
  static constexpr int kSlices = kHeadDim / 16;
  static constexpr int kHeadChunks = 2 * kSlices;  // of a head's row
  static constexpr int kParts = kConvert ? 2 : 1;

  /// Address of 16-byte chunk `even` + `odd` of a row, `odd` in {0, 1}.
  static __device__ __forceinline__ uint32_t
  chunk_address(uint32_t tile, int row, int even, int odd) {
    const uint32_t start = tile + row * kShape.row_bytes();
    if constexpr (kShape.swizzled()) {
      return start + ((even * 16) ^ ((odd ^ (row & 7)) << 4));
    } else {
      return start + even * 16 + odd * 16;
    }
  }

  __device__ __forceinline__ void softmax(
      int n,
      const float (&s)[2][4],
      int rows,
      uint32_t (&p)[2],
      float (&keep)[2]) {
    const int g = threadIdx.x % kWarpSize / 4;
    float x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] = (s[0][i] + s[1][i]) * scale_[n][i & 1];
    }
    if (rows < kShape.unit_len()) {
      x[0] = g < rows ? x[0] : -INFINITY;
      x[1] = g < rows ? x[1] : -INFINITY;
      x[2] = g + 8 < rows ? x[2] : -INFINITY;
      x[3] = g + 8 < rows ? x[3] : -INFINITY;
    }
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      float most = fmaxf(x[column], x[column + 2]);
#pragma unroll
      for (int d = 4; d < kWarpSize; d <<= 1) {
        most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, d));
      }
      // -1e30: a maximum of -inf would make -inf - -inf, which is NaN.
      most = fmaxf(fmaxf(max_[n][column], most), -1e30f);
      keep[column] = exp2f(max_[n][column] - most);
      max_[n][column] = most;
      x[column] = exp2f(x[column] - most);
      x[column + 2] = exp2f(x[column + 2] - most);
      sum_[n][column] =
          sum_[n][column] * keep[column] + x[column] + x[column + 2];
    }
    p[0] = transpose8x8(pack2<T>(x[0], x[1]));
    p[1] = transpose8x8(pack2<T>(x[2], x[3]));
  }

  static __device__ __forceinline__ float2
  load_pair(const DecodeKernelArgs& args, int64_t at) {
    if (args.q_dtype == DType::Float32) {
      return __ldg(reinterpret_cast<const float2*>(
          static_cast<const float*>(args.q) + at));
    }
    const uint32_t bits = __ldg(reinterpret_cast<const uint32_t*>(
        static_cast<const uint16_t*>(args.q) + at));
    return args.q_dtype == DType::Float16 ? unpack2<__half>(bits)
                                          : unpack2<__nv_bfloat16>(bits);
  }

  __device__ __forceinline__ void
  load_converted(const DecodeKernelArgs& args, int64_t at, bool on, int n) {
    float most = 0.0f;
#pragma unroll
    for (int k = 0; k < 2 * kSlices; ++k) {
      const float2 x = load_pair(args, at + k * 8);
      most = fmaxf(most, fmaxf(fabsf(x.x), fabsf(x.y)));
    }
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
    // 2^-e and 2^e with 2^e <= most < 2^(e + 1).
    const int biased =
        min(max(static_cast<int>(__float_as_uint(most) >> 23), 1), 253);
    const float down =
        __uint_as_float(static_cast<uint32_t>(254 - biased) << 23);
    const float up = __uint_as_float(static_cast<uint32_t>(biased) << 23);
#pragma unroll
    for (int k = 0; k < kSlices; ++k) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float2 x = load_pair(args, at + (2 * k + j) * 8);
        const float a = on ? x.x * down : 0.0f;
        const float b = on ? x.y * down : 0.0f;
        const uint32_t high = pack2<T>(a, b);
        const float2 rounded = unpack2<T>(high);
        q_[n][0][k][j] = high;
        q_[n][kParts - 1][k][j] = pack2<T>(a - rounded.x, b - rounded.y);
      }
    }
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int column = 0; column < 2; ++column) {  // of head 2t + column
      scale_[n][column] =
          args.scale_log2 * __shfl_sync(kAllLanes, up, (2 * t + column) * 4);
    }
  }

  const int first_chunk_;  // of the warp's heads in a row of the unit
  uint32_t q_[kTiles][kParts][kSlices][2];
  float o_[kTiles][kSlices][4];
  float max_[kTiles][2];
  float sum_[kTiles][2];
  float scale_[kTiles][2];
};

}  // namespace quire::cuda
