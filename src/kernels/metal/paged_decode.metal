// Attention of one decode step over a paged KV cache, split-KV (MSL 3.1).
//
// Grid    paged_decode: (num_kv_heads * num_head_slices, num_splits, num_seqs)
//         threadgroups of (32, Simdgroups) threads. Split s covers the tokens
//         [s * split_size, (s + 1) * split_size) of its sequence, the last one
//         all that is left.
//         paged_combine: (num_q_heads, num_seqs) threadgroups. Not launched for
//         one split: then paged_decode writes out.
// Work    A simdgroup serves Heads query heads of one KV head, so each byte of
//         K and V is loaded once for all of them. A group that is no power of
//         two is padded: its last head is repeated and thrown away. HeadParts
//         such simdgroups sit side by side; num_head_slices threadgroups serve
//         a group of more than Heads * HeadParts.
//         Lanes lanes share a token's row (row_layout.h), a lane holds Rows of
//         them: a step is Rows * 32 / Lanes tokens. Steps go round robin over
//         the simdgroups. The Rows * Heads partial dots of a lane are summed by
//         a reduce-scatter, after which the lane owns whole scores: one scale,
//         one maximum and one exp2 for all of its scores. The weights go back
//         by one shuffle each.
//         The loads of the next step's K and V are issued as soon as their
//         registers are free. No barrier and no simd reduction in the loop.
// Memory  Heads * HeadDim / Lanes accumulators a lane, 40 at most (48 spilled
//         on another vendor's lanes); threadgroup memory 16.9 KB at most.
// Bytes   Each byte of K and V once per KV head and slice, the tail included,
//         nothing past seq_len. Bound by memory up to 4 heads a simdgroup; for
//         more there is paged_decode_matrix.h.
// Host    split_size is a multiple of 64, hence of every step times the
//         simdgroups; the block size is a power of two and at least a step.
//
// Apple hardware has not run it yet.
#include <metal_stdlib>

#include "kernels/metal/decode_split.h"
#ifndef QUIRE_WITHOUT_MATRICES
#include "kernels/metal/paged_decode_matrix.h"
#endif

/// Sums Count * Heads partial dots over Lanes lanes. Halves the number of live
/// sums at each step, heads first: a lane keeps its heads in xor order (index g
/// is head g ^ lane / (Lanes / Heads)), so those steps need no select. Returns
/// the one sum that this lane owns.
template <int Lanes, int Count, int Heads>
METAL_FUNC float reduce_scatter(thread float (&s)[Count][Heads], uint lane) {
  int width = Lanes / 2;
  QUIRE_UNROLL
  for (int h = Heads / 2; h > 0; h >>= 1, width >>= 1) {
    QUIRE_UNROLL
    for (int i = 0; i < Count; ++i) {
      QUIRE_UNROLL
      for (int g = 0; g < Heads; ++g) {
        if (g < h) {
          s[i][g] += simd_shuffle_xor(s[i][g + h], ushort(width));
        }
      }
    }
  }
  QUIRE_UNROLL
  for (int h = Count / 2; h > 0; h >>= 1, width >>= 1) {
    const bool upper = (lane & uint(width)) != 0;
    QUIRE_UNROLL
    for (int i = 0; i < Count; ++i) {
      if (i < h) {
        const float keep = upper ? s[i + h][0] : s[i][0];
        const float send = upper ? s[i][0] : s[i + h][0];
        s[i][0] = keep + simd_shuffle_xor(send, ushort(width));
      }
    }
  }
  QUIRE_UNROLL
  for (; width > 0; width >>= 1) {
    s[0][0] += simd_shuffle_xor(s[0][0], ushort(width));
  }
  return s[0][0];
}

/// Partial dots of one row with every head, over this lane's elements.
template <typename T, typename Q, int Heads, int Elems, int KWords, int QWords>
METAL_FUNC void partial_dots(
    thread const uint (&q)[Heads][QWords],
    thread const uint (&k)[KWords],
    thread float (&dots)[Heads]) {
  float row[Elems];
  QUIRE_UNROLL
  for (int j = 0; j < Elems; ++j) {
    row[j] = Words<T>::get(k, j);
  }
  QUIRE_UNROLL
  for (int g = 0; g < Heads; ++g) {
    float dot = Words<Q>::get(q[g], 0) * row[0];
    QUIRE_UNROLL
    for (int j = 1; j < Elems; ++j) {
      dot += Words<Q>::get(q[g], j) * row[j];
    }
    dots[g] = dot;
  }
}

template <
    typename T,
    typename Q,
    int HeadDim,
    int Heads,
    int Lanes,
    int Rows,
    int Simdgroups,
    int HeadParts>
[[kernel, max_total_threads_per_threadgroup(Simdgroups * 32)]] void
paged_decode(
    const device Q* q [[buffer(0)]],
    const device T* k_cache [[buffer(1)]],
    const device T* v_cache [[buffer(2)]],
    const device int* block_table [[buffer(3)]],
    const device int* seq_lens [[buffer(4)]],
    device float* partial_out [[buffer(5)]],
    device float* partial_lse [[buffer(6)]],
    device Q* out [[buffer(7)]],
    const constant PagedDecodeParams& p [[buffer(8)]],
    uint3 group_pos [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simd_lane [[thread_index_in_simdgroup]]) {
  // q in registers: as it is, but f32 beside an f32 cache.
  typedef conditional_t<sizeof(T) == 4, float, Q> QReg;
  typedef RowLayout<T, HeadDim, Lanes> Layout;
  constexpr int kElems = Layout::kElems;
  constexpr int kWords = Layout::kWords;
  constexpr int kQWords = kElems * sizeof(QReg) / 4;
  constexpr int kRowGroups = 32 / Lanes;     // rows a load instruction
  constexpr int kStep = Rows * kRowGroups;   // tokens a step
  constexpr int kHeadLanes = Lanes / Heads;  // lanes that own a head's scores
  constexpr int kCount = Rows < kHeadLanes ? Rows : kHeadLanes;
  constexpr int kScores = Rows / kCount;        // scores a lane owns
  constexpr int kCopies = kHeadLanes / kCount;  // lanes that own the same score
  constexpr int kStride = Simdgroups / HeadParts;
  constexpr int kPass = heads_a_pass(HeadDim, Heads, Simdgroups);
  static_assert(
      Heads <= Lanes && Lanes <= 32 && Simdgroups % HeadParts == 0, "shape");
  threadgroup float tg_out[Simdgroups * kPass * HeadDim];
  threadgroup float tg_max[Simdgroups * Heads];
  threadgroup float tg_sum[Simdgroups * Heads];

  const Place place = place_of(group_pos, p.num_head_slices, Heads * HeadParts);
  const int part = int(simdgroup) % HeadParts;
  const int row_group = int(simd_lane) / Lanes;
  const int lane = int(simd_lane) % Lanes;
  const int own_head = lane / kHeadLanes;
  const ushort first_lane = ushort(simd_lane & uint(32 - Lanes));

  Steps<kStep, kStride> steps = steps_of<kStep, kStride>(
      block_table, seq_lens, place, int(simdgroup) / HeadParts, p);

  // Index g of a lane is head g ^ own_head of its part, see reduce_scatter.
  uint q_words[Heads][kQWords];
  QUIRE_UNROLL
  for (int g = 0; g < Heads; ++g) {
    const int head =
        min(place.slice_head + part * Heads + (g ^ own_head), p.group_size - 1);
    const device Q* row = q +
                          (size_t(place.seq) * p.num_q_heads +
                           place.kv_head * p.group_size + head) *
                              HeadDim +
                          Layout::begin(lane);
    if (sizeof(T) == 4) {
      QUIRE_UNROLL
      for (int j = 0; j < kElems; ++j) {
        q_words[g][j * kQWords / kElems] =
            as_type<uint>(float(row[Layout::offset(j, lane)]));
      }
    } else {
      Layout::load(row, lane, q_words[g]);
    }
  }
  float acc[Heads][kElems];
  QUIRE_UNROLL
  for (int g = 0; g < Heads; ++g) {
    QUIRE_UNROLL
    for (int j = 0; j < kElems; ++j) {
      acc[g][j] = 0.0f;
    }
  }
  float m = kNoMax;
  float d = 0.0f;

  const int token_stride = p.num_kv_heads * HeadDim;
  const int lane_offset =
      row_group * token_stride + place.kv_head * HeadDim + Layout::begin(lane);
  uint k_words[Rows][kWords];
  uint v_words[Rows][kWords];
  int step = steps.first;
  if (steps.has(step)) {
    steps.look_ahead(step);
    const size_t at =
        steps.row(step, steps.first_block) * token_stride + lane_offset;
    const int left = steps.left(step);
    Layout::template load_rows<Rows>(
        k_cache + at, token_stride, row_group, lane, left, k_words);
    Layout::template load_rows<Rows>(
        v_cache + at, token_stride, row_group, lane, left, v_words);
  }
  while (steps.has(step)) {
    const int left = steps.left(step);
    const int next = step + kStride;
    const int next_left = steps.left(next);
    const size_t next_at =
        steps.row(next, steps.next_block) * token_stride + lane_offset;
    float x[kScores];
    float step_max = -INFINITY;
    QUIRE_UNROLL
    for (int c = 0; c < kScores; ++c) {
      float dots[kCount][Heads];
      QUIRE_UNROLL
      for (int i = 0; i < kCount; ++i) {
        partial_dots<T, QReg, Heads, kElems>(
            q_words, k_words[c * kCount + i], dots[i]);
      }
      if (c == kScores - 1 && steps.has(next)) {
        steps.look_ahead(next);
        Layout::template load_rows<Rows>(
            k_cache + next_at,
            token_stride,
            row_group,
            lane,
            next_left,
            k_words);
      }
      x[c] = reduce_scatter<Lanes>(dots, simd_lane) * p.scale_log2;
      const int row = c * kCount + lane % kHeadLanes / kCopies;
      if (left < kStep && row * kRowGroups + row_group >= left) {
        x[c] = -INFINITY;
      }
      step_max = max(step_max, x[c]);
    }
    QUIRE_UNROLL
    for (int v = kCopies; v < kHeadLanes; v <<= 1) {
      step_max = max(step_max, simd_shuffle_xor(step_max, ushort(v)));
    }
    if (simd_any(step_max > m + kLazyMax)) {
      const float grown = max(m, step_max);
      const float r = rescale_factor(m, grown);
      m = grown;
      d *= r;
      QUIRE_UNROLL
      for (int g = 0; g < Heads; ++g) {
        const float rg = simd_shuffle(r, ushort(first_lane + g * kHeadLanes));
        QUIRE_UNROLL
        for (int j = 0; j < kElems; ++j) {
          acc[g][j] *= rg;
        }
      }
    }
    QUIRE_UNROLL
    for (int c = 0; c < kScores; ++c) {
      x[c] = fast::exp2(x[c] - m);
      d += x[c];
    }
    QUIRE_UNROLL
    for (int i = 0; i < Rows; ++i) {
      float row[kElems];
      QUIRE_UNROLL
      for (int j = 0; j < kElems; ++j) {
        row[j] = Words<T>::get(v_words[i], j);
      }
      QUIRE_UNROLL
      for (int g = 0; g < Heads; ++g) {
        const float weight = simd_shuffle(
            x[i / kCount],
            ushort(first_lane + g * kHeadLanes + i % kCount * kCopies));
        QUIRE_UNROLL
        for (int j = 0; j < kElems; ++j) {
          acc[g][j] += weight * row[j];
        }
      }
    }
    if (steps.has(next)) {
      Layout::template load_rows<Rows>(
          v_cache + next_at, token_stride, row_group, lane, next_left, v_words);
    }
    step = next;
  }

  // The lanes of a head, then the row groups of the simdgroup.
  QUIRE_UNROLL
  for (int v = kCopies; v < kHeadLanes; v <<= 1) {
    d += simd_shuffle_xor(d, ushort(v));
  }
  float simd_max_log2 = m;
  QUIRE_UNROLL
  for (int v = Lanes; v < 32; v <<= 1) {
    simd_max_log2 =
        max(simd_max_log2, simd_shuffle_xor(simd_max_log2, ushort(v)));
  }
  const float to_simd = rescale_factor(m, simd_max_log2);
  d *= to_simd;
  QUIRE_UNROLL
  for (int v = Lanes; v < 32; v <<= 1) {
    d += simd_shuffle_xor(d, ushort(v));
  }
  if (row_group == 0 && lane % kHeadLanes == 0) {
    tg_max[int(simdgroup) * Heads + own_head] = simd_max_log2;
    tg_sum[int(simdgroup) * Heads + own_head] = d;
  }
  // The simdgroups of the threadgroup, kPass heads at a time.
  constexpr int kRun = Layout::kRun;
  QUIRE_UNROLL
  for (int g0 = 0; g0 < Heads; g0 += kPass) {
    if (g0 > 0) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    QUIRE_UNROLL
    for (int g = 0; g < kPass; ++g) {
      threadgroup float* row = tg_out + (int(simdgroup) * kPass + g) * HeadDim;
      const float rg =
          simd_shuffle(to_simd, ushort(first_lane + (g0 + g) * kHeadLanes));
      thread float* a = acc[g0 + g];
      QUIRE_UNROLL
      for (int j = 0; j < kElems; ++j) {
        a[j] *= rg;
        QUIRE_UNROLL
        for (int v = Lanes; v < 32; v <<= 1) {
          a[j] += simd_shuffle_xor(a[j], ushort(v));
        }
      }
      QUIRE_UNROLL
      for (int j = 0; j < kElems; j += kRun) {
        if (j / kRun % kRowGroups != row_group) {
          continue;
        }
        const int at = Layout::begin(lane) + Layout::offset(j, lane);
        if (kRun == 4) {
          *reinterpret_cast<threadgroup float4*>(row + at) = float4(
              a[j], a[j + kRun / 4], a[j + kRun / 2], a[j + kRun * 3 / 4]);
        } else {
          QUIRE_UNROLL
          for (int c = 0; c < kRun; ++c) {
            row[at + c] = a[j + c];
          }
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    merge_simdgroups<Q, HeadDim, Heads, kPass, Simdgroups, HeadParts>(
        g0,
        simdgroup * 32 + simd_lane,
        place,
        tg_out,
        tg_max,
        tg_sum,
        partial_out,
        partial_lse,
        out,
        p);
  }
}

/// Merges the splits of one (sequence, query head). Threads (head_dim / 4,
/// Rows): a thread owns 4 elements, a column, of every Rows-th split; InFlight
/// are loaded before the maximum is known. Its place comes from the shape of
/// the threadgroup: a division would be waited for before the first load. An
/// empty split has lse -inf and no partial.
template <typename Q, int Rows, int InFlight>
[[kernel, max_total_threads_per_threadgroup(Rows * 64)]] void paged_combine(
    const device float* partial_out [[buffer(0)]],
    const device float* partial_lse [[buffer(1)]],
    device Q* out [[buffer(2)]],
    const constant PagedCombineParams& p [[buffer(3)]],
    uint3 group_pos [[threadgroup_position_in_grid]],
    uint3 num_groups [[threadgroups_per_grid]],
    uint3 pos [[thread_position_in_threadgroup]]) {
  threadgroup float tg_out[Rows * 256];
  threadgroup float tg_max[Rows];
  threadgroup float tg_sum[Rows];
  const int column = int(pos.x);
  const int row = int(pos.y);
  const size_t head = size_t(group_pos.y) * num_groups.x + group_pos.x;
  const device float* lse = partial_lse + head * p.num_splits;
  const device float* from =
      partial_out + (head * p.num_splits * p.num_columns + column) * 4;
  float4 o = float4(0.0f);
  float d = 0.0f;
  float m = kNoMax;
  for (int s0 = row; s0 < p.num_splits; s0 += Rows * InFlight) {
    float4 x[InFlight];
    float x_lse[InFlight];
    QUIRE_UNROLL
    for (int i = 0; i < InFlight; ++i) {
      const int split = s0 + i * Rows;
      x_lse[i] = -INFINITY;
      x[i] = float4(0.0f);
      if (split < p.num_splits) {
        x_lse[i] = lse[split];
        x[i] = *reinterpret_cast<const device float4*>(
            from + size_t(split) * p.num_columns * 4);
      }
    }
    float grown = m;
    QUIRE_UNROLL
    for (int i = 0; i < InFlight; ++i) {
      grown = max(grown, x_lse[i]);
    }
    const float r = rescale_factor(m, grown);
    o *= r;
    d *= r;
    m = grown;
    QUIRE_UNROLL
    for (int i = 0; i < InFlight; ++i) {
      const float w = rescale_factor(x_lse[i], m);
      d += w;
      o += w * (w > 0.0f ? x[i] : float4(0.0f));
    }
  }
  *reinterpret_cast<threadgroup float4*>(
      tg_out + (row * p.num_columns + column) * 4) = o;
  if (column == 0) {
    tg_max[row] = m;
    tg_sum[row] = d;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (row > 0) {
    return;
  }
  QUIRE_UNROLL
  for (int t = 1; t < Rows; ++t) {
    m = max(m, tg_max[t]);
  }
  o = float4(0.0f);
  d = 0.0f;
  QUIRE_UNROLL
  for (int t = 0; t < Rows; ++t) {
    const float r = rescale_factor(tg_max[t], m);
    d += r * tg_sum[t];
    o += r * *reinterpret_cast<const threadgroup float4*>(
                 tg_out + (t * p.num_columns + column) * 4);
  }
  o *= inverse_denominator(d);
  vec<Q, 4> y;
  QUIRE_UNROLL
  for (int c = 0; c < 4; ++c) {
    y[c] = static_cast<Q>(o[c]);
  }
  *reinterpret_cast<device vec<Q, 4>*>(
      out + (head * p.num_columns + column) * 4) = y;
}
