// Merging partial attention states: the crews of a CTA, then the CTAs that
// share a sequence. The algebra is attention_state.h's, for many states at
// once; a merged state travels as (o / d, log2-sum-exp).
#pragma once

#include "kernels/attention_state.h"
#include "kernels/cuda/tile_loader.cuh"

namespace quire::cuda {

__device__ __forceinline__ void
add_scaled(float4& sum, const float4& v, float factor) {
  sum.x += v.x * factor;
  sum.y += v.y * factor;
  sum.z += v.z * factor;
  sum.w += v.w * factor;
}

__device__ __forceinline__ float4 scaled(const float4& v, float factor) {
  return make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
}

/// Running merge of states (o / d, lse_log2) of 4 elements of the output.
struct QuadState {
  float4 o = {0.0f, 0.0f, 0.0f, 0.0f};
  float max_log2 = -INFINITY;
  float d = 0.0f;

  __device__ __forceinline__ void raise(float max) {
    const float keep = rescale_factor(max_log2, max);
    max_log2 = max;
    d *= keep;
    o = scaled(o, keep);
  }
  /// Adds a state of weight `weight` whose maximum raise() has seen.
  __device__ __forceinline__ void
  add(const float4& v, float lse_log2, float weight = 1.0f) {
    const float factor = rescale_factor(lse_log2, max_log2);
    d += weight * factor;
    add_scaled(o, v, factor);
  }
  __device__ __forceinline__ float4 result() const {
    return scaled(o, inverse_denominator(d));
  }
};

/// The states of a CTA's crews, in shared memory.
template <TileShape kShape>
struct CrewStates {
  float* partial;  // [crews][num_heads][partial_stride]
  float2* state;   // [crews][num_heads]: maximum and sum
  int num_heads;

  __device__ __forceinline__ float* partial_of(int crew) const {
    return partial + crew * num_heads * kShape.partial_stride();
  }
  __device__ __forceinline__ float2* state_of(int crew) const {
    return state + crew * num_heads;
  }

  /// The CTA's o / d of elements 4 * quad .. 4 * quad + 3, and its lse.
  __device__ __forceinline__ float4 merged(int quad, float& lse_log2) const {
    const int head = quad / (kShape.head_dim / 4);
    const int at = quad % (kShape.head_dim / 4) * 4;
    float2 st[kShape.crews()];  // one without a unit has (-inf, 0) and zeros
    float max_log2 = -INFINITY;
#pragma unroll
    for (int c = 0; c < kShape.crews(); ++c) {
      st[c] = state_of(c)[head];
      max_log2 = fmaxf(max_log2, st[c].x);
    }
    float d = 0.0f;
    float4 o = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int c = 0; c < kShape.crews(); ++c) {
      const float factor = rescale_factor(st[c].x, max_log2);
      d += st[c].y * factor;
      add_scaled(
          o,
          *reinterpret_cast<const float4*>(
              partial_of(c) + head * kShape.partial_stride() + at),
          factor);
    }
    lse_log2 = state_lse_log2(max_log2, d);
    return scaled(o, inverse_denominator(d));
  }
};

/// Mail: how CTAs hand their states to the one that writes the output.
///
/// A slot is a piece's output and, once for each 4 floats, its log-sum-exp.
/// Every word of a slot at rest is kEmpty, a NaN that no arithmetic returns; a
/// word that differs has arrived. So the reader needs no flag, fence or
/// counter, and the slots are empty again for the next launch once it has
/// collected them. Slots are private to one stream of launches.
class Mail {
 public:
  static constexpr uint32_t kEmpty = 0xffffffffu;

  /// `first`: the slot of piece 0. Slots of neighbouring pieces are
  /// `piece_slots` apart.
  __device__ __forceinline__ Mail(
      const DecodeKernelArgs& args,
      int64_t first,
      int piece_slots,
      int slot_quads)
      : o_(args.mail + first * slot_quads * 4),
        lse_(
            args.mail + args.num_mail_slots * slot_quads * 4 +
            first * slot_quads),
        stride_(static_cast<int64_t>(piece_slots) * slot_quads) {}

  __device__ __forceinline__ void
  post(int piece, int quad, const float4& v, float lse_log2) const {
    const int64_t at = piece * stride_ + quad;
    store_relaxed(
        o_ + at * 4, make_uint4(word(v.x), word(v.y), word(v.z), word(v.w)));
    store_relaxed(lse_ + at, word(lse_log2));
  }

  /// False while a word is on its way.
  __device__ __forceinline__ bool
  peek(int piece, int quad, float4& v, float& lse_log2) const {
    const int64_t at = piece * stride_ + quad;
    const uint32_t l = load_relaxed(lse_ + at);
    const uint4 w = load_relaxed4(o_ + at * 4);
    v = make_float4(
        __uint_as_float(w.x),
        __uint_as_float(w.y),
        __uint_as_float(w.z),
        __uint_as_float(w.w));
    lse_log2 = __uint_as_float(l);
    return arrived(v, lse_log2);
  }

  __device__ __forceinline__ void empty(int piece, int quad) const {
    const int64_t at = piece * stride_ + quad;
    store_relaxed(o_ + at * 4, make_uint4(kEmpty, kEmpty, kEmpty, kEmpty));
    store_relaxed(lse_ + at, kEmpty);
  }

  static __device__ __forceinline__ bool arrived(
      const float4& v,
      float lse_log2) {
    return __float_as_uint(lse_log2) != kEmpty &&
           __float_as_uint(v.x) != kEmpty && __float_as_uint(v.y) != kEmpty &&
           __float_as_uint(v.z) != kEmpty && __float_as_uint(v.w) != kEmpty;
  }

 private:
  static __device__ __forceinline__ uint32_t word(float x) {
    const uint32_t w = __float_as_uint(x);
    return w == kEmpty ? 0x7fffffffu : w;
  }

  float* const o_;
  float* const lse_;
  const int64_t stride_;
};

}  // namespace quire::cuda
