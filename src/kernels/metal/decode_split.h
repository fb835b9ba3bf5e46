// What the two decode kernels share: the steps of a split, and the merge of a
// threadgroup's simdgroups. MSL only.
#pragma once

#include <metal_stdlib>

#include "kernels/attention_state.h"
#include "kernels/metal/params.h"
#include "kernels/metal/row_layout.h"

using namespace metal;

/// A maximum below every logit. Finite, so that differences need no check.
QUIRE_CONST float kNoMax = -1e30f;

/// How far a maximum may grow, in base 2, before the accumulators are rescaled.
/// Weights stay below 2^8: far from overflow, and the sum loses no precision.
QUIRE_CONST float kLazyMax = 8.0f;

METAL_FUNC constexpr int log2_of(int x) {
  return x > 1 ? 1 + log2_of(x / 2) : 0;
}

/// Heads merged at a time, so that threadgroup memory stays near 16 KB.
METAL_FUNC constexpr int heads_a_pass(int head_dim, int heads, int simdgroups) {
  return heads > 1 && simdgroups * heads * head_dim > 4096
             ? heads_a_pass(head_dim, heads / 2, simdgroups)
             : heads;
}

/// The part of the step that a threadgroup does.
struct Place {
  int kv_head;
  int slice_head;  // its first query head, counted in the group
  int split;
  int seq;
};

METAL_FUNC Place place_of(uint3 group_pos, int num_head_slices, int num_heads) {
  Place place;
  place.kv_head = int(group_pos.x) / num_head_slices;
  place.slice_head =
      (int(group_pos.x) - place.kv_head * num_head_slices) * num_heads;
  place.split = group_pos.y;
  place.seq = group_pos.z;
  return place;
}

/// The steps of StepSize tokens of a split that one simdgroup takes: every
/// Stride-th. The table is read one step ahead.
template <int StepSize, int Stride>
struct Steps {
  const device int* table;
  int block_size_log2;
  int shift;  // log2 of the steps in a block
  int seq_len;
  int end;
  int first;
  int first_block;
  int next_block;

  METAL_FUNC bool has(int step) const {
    return step < end;
  }
  /// Tokens from the step's first one to the end of the sequence.
  METAL_FUNC int left(int step) const {
    return seq_len - step * StepSize;
  }
  /// The pool's row of the first token of a step that lies in `block`.
  METAL_FUNC size_t row(int step, int block) const {
    return (size_t(block) << block_size_log2) +
           (step & ((1 << shift) - 1)) * StepSize;
  }
  /// Looks up the block of the step after `step`, if there is one.
  METAL_FUNC void look_ahead(int step) {
    if (has(step + Stride)) {
      next_block = table[(step + Stride) >> shift];
    }
  }
};

/// The steps of simdgroup `first` of Stride.
template <int StepSize, int Stride>
METAL_FUNC Steps<StepSize, Stride> steps_of(
    const device int* block_table,
    const device int* seq_lens,
    Place place,
    int first,
    const constant PagedDecodeParams& p) {
  Steps<StepSize, Stride> s;
  // The first table entry does not wait for the length.
  s.table = block_table + size_t(place.seq) * p.max_blocks_per_seq;
  s.block_size_log2 = p.block_size_log2;
  s.shift = p.block_size_log2 - log2_of(StepSize);
  const int steps_a_split = p.split_size / StepSize;
  s.first = place.split * steps_a_split + first;
  s.first_block = 0;
  s.next_block = 0;
  if (s.first >> s.shift < p.max_blocks_per_seq) {
    s.first_block = s.table[s.first >> s.shift];
  }
  s.seq_len =
      min(seq_lens[place.seq], p.max_blocks_per_seq << p.block_size_log2);
  s.end = (s.seq_len + StepSize - 1) / StepSize;
  if (place.split + 1 < p.num_splits) {
    s.end = min(s.end, (place.split + 1) * steps_a_split);
  }
  return s;
}

/// Merges Pass heads, from head g0 on, of a threadgroup's simdgroups, and
/// writes the split's partials or, for one split, the output. `tg_out` holds
/// [Simdgroups][Pass][HeadDim], `tg_max` and `tg_sum` [Simdgroups][Heads].
template <
    typename Q,
    int HeadDim,
    int Heads,
    int Pass,
    int Simdgroups,
    int HeadParts>
METAL_FUNC void merge_simdgroups(
    int g0,
    uint thread_index,
    Place place,
    const threadgroup float* tg_out,
    const threadgroup float* tg_max,
    const threadgroup float* tg_sum,
    device float* partial_out,
    device float* partial_lse,
    device Q* out,
    const constant PagedDecodeParams& p) {
  constexpr int kColumns = HeadDim / 4;
  constexpr int kTokenSimdgroups = Simdgroups / HeadParts;
  for (int e = int(thread_index); e < HeadParts * Pass * kColumns;
       e += Simdgroups * 32) {
    const int part = e / (Pass * kColumns);
    const int g = e / kColumns % Pass;
    const int column = e % kColumns * 4;
    const int head = place.slice_head + part * Heads + g0 + g;
    if (head >= p.group_size) {
      continue;  // padding
    }
    float total_max = kNoMax;
    QUIRE_UNROLL
    for (int t = 0; t < kTokenSimdgroups; ++t) {
      total_max =
          max(total_max, tg_max[(t * HeadParts + part) * Heads + g0 + g]);
    }
    float4 o = float4(0.0f);
    float total = 0.0f;
    QUIRE_UNROLL
    for (int t = 0; t < kTokenSimdgroups; ++t) {
      const int sg = t * HeadParts + part;
      const float r = rescale_factor(tg_max[sg * Heads + g0 + g], total_max);
      total += r * tg_sum[sg * Heads + g0 + g];
      o += r * *reinterpret_cast<const threadgroup float4*>(
                   tg_out + (sg * Pass + g) * HeadDim + column);
    }
    const size_t row =
        size_t(place.seq) * p.num_q_heads + place.kv_head * p.group_size + head;
    const size_t partial = row * p.num_splits + place.split;
    o *= inverse_denominator(total);
    if (p.num_splits == 1) {
      vec<Q, 4> y;
      QUIRE_UNROLL
      for (int c = 0; c < 4; ++c) {
        y[c] = static_cast<Q>(o[c]);
      }
      *reinterpret_cast<device vec<Q, 4>*>(out + row * HeadDim + column) = y;
      continue;
    }
    if (column == 0) {
      partial_lse[partial] = state_lse_log2(total_max, total);
    }
    if (total > 0.0f) {
      *reinterpret_cast<device float4*>(
          partial_out + partial * HeadDim + column) = o;
    }
  }
}
