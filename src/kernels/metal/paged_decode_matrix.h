// paged_decode by 8 x 8 matrix products, for groups of more than 4 query heads.
// The same grid, buffers and constants; MSL only.
//
// Work    A simdgroup serves 8 query heads. A step is 8 tokens: K and V of a
//         step are HeadDim / 8 matrices of 8 tokens by 8 elements, whose lanes
//         load 16 bytes of their token's row at a time. Which elements meet in
//         a matrix is not their order in the row, but the same in K, V, q and
//         the result.
//           S^T[token][head] = K q^T,  O[head][element] += P[head][token] V
//         The weights of S^T reach the lanes of P by two shuffles. A lane keeps
//         the maximum and its part of the sum of two heads. Maxima are compared
//         lane by lane: they are exchanged only when one grew by over 8.
//         No conversion: products of T and T, and of a float weight and T, are
//         summed in float.
// Memory  HeadDim / 4 accumulators a lane, and half as many words of q, K and V
//         each.
// Bytes   As paged_decode; HeadParts and slices read them again.
#pragma once

#include "kernels/metal/decode_split.h"

/// An 8 x 8 matrix: a lane holds (row, column) and (row, column + 1). The
/// language does not say where; MLX's kernels rely on the same.
METAL_FUNC int matrix_row(uint lane) {
  return int((lane >> 2 & 4) | (lane >> 1 & 3));
}
METAL_FUNC int matrix_column(uint lane) {
  return int((lane >> 1 & 4) | (lane << 1 & 2));
}
METAL_FUNC ushort matrix_lane(int row, int column) {
  return ushort(
      (row & 4) << 2 | (row & 3) << 1 | (column & 4) << 1 | (column & 2) >> 1);
}

template <typename T>
METAL_FUNC simdgroup_matrix<T, 8, 8> to_matrix(vec<T, 2> elements) {
  simdgroup_matrix<T, 8, 8> m;
  reinterpret_cast<thread vec<T, 2>&>(m.thread_elements()) = elements;
  return m;
}
template <typename T>
METAL_FUNC vec<T, 2> elements_of(simdgroup_matrix<T, 8, 8> m) {
  return reinterpret_cast<thread vec<T, 2>&>(m.thread_elements());
}

/// Over the lanes that hold a column of a matrix.
METAL_FUNC float column_max(float x) {
  x = max(x, simd_shuffle_xor(x, ushort(2)));
  x = max(x, simd_shuffle_xor(x, ushort(4)));
  return max(x, simd_shuffle_xor(x, ushort(16)));
}
METAL_FUNC float column_sum(float x) {
  x += simd_shuffle_xor(x, ushort(2));
  x += simd_shuffle_xor(x, ushort(4));
  return x + simd_shuffle_xor(x, ushort(16));
}

/// This lane's elements of the transpose. They lie in lanes (column, row) and
/// (column + 1, row), which are asked for both of theirs, by one lane each: so
/// a lane of an odd row sends its second element first.
METAL_FUNC float2 transposed(float2 x, int row, int column) {
  const int odd = row & 1;
  const float first =
      simd_shuffle(odd ? x[1] : x[0], matrix_lane(column + odd, row));
  const float second =
      simd_shuffle(odd ? x[0] : x[1], matrix_lane(column + 1 - odd, row));
  return odd ? float2(second, first) : float2(first, second);
}

template <typename T, int HeadDim, int Simdgroups, int HeadParts>
[[kernel, max_total_threads_per_threadgroup(Simdgroups * 32)]] void
paged_decode_matrix(
    const device T* q [[buffer(0)]],
    const device T* k_cache [[buffer(1)]],
    const device T* v_cache [[buffer(2)]],
    const device int* block_table [[buffer(3)]],
    const device int* seq_lens [[buffer(4)]],
    device float* partial_out [[buffer(5)]],
    device float* partial_lse [[buffer(6)]],
    device T* out [[buffer(7)]],
    const constant PagedDecodeParams& p [[buffer(8)]],
    uint3 group_pos [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simd_lane [[thread_index_in_simdgroup]]) {
  typedef RowLayout<T, HeadDim, 4> Layout;
  constexpr int kHeads = 8;
  constexpr int kStep = 8;
  constexpr int kElems = Layout::kElems;
  constexpr int kWords = Layout::kWords;  // a matrix each
  constexpr int kStride = Simdgroups / HeadParts;
  constexpr int kPass = heads_a_pass(HeadDim, kHeads, Simdgroups);
  static_assert(sizeof(T) == 2 && Simdgroups % HeadParts == 0, "shape");
  threadgroup float tg_out[Simdgroups * kPass * HeadDim];
  threadgroup float tg_max[Simdgroups * kHeads];
  threadgroup float tg_sum[Simdgroups * kHeads];

  const Place place =
      place_of(group_pos, p.num_head_slices, kHeads * HeadParts);
  const int row = matrix_row(simd_lane);
  const int column = matrix_column(simd_lane);
  const int lane = column / 2;  // of the four that share a row
  const bool odd = (row & 1) != 0;
  Steps<kStep, kStride> steps = steps_of<kStep, kStride>(
      block_table, seq_lens, place, int(simdgroup) / HeadParts, p);

  // Rows of q^T are elements: this lane's are those of lane row / 2.
  uint q_words[2][kWords];
  QUIRE_UNROLL
  for (int e = 0; e < 2; ++e) {
    const int head =
        min(place.slice_head + int(simdgroup) % HeadParts * kHeads + column + e,
            p.group_size - 1);
    Layout::load(
        q +
            (size_t(place.seq) * p.num_q_heads + place.kv_head * p.group_size +
             head) *
                HeadDim +
            Layout::begin(row / 2),
        row / 2,
        q_words[e]);
  }
  simdgroup_matrix<float, 8, 8> acc[kWords];
  QUIRE_UNROLL
  for (int w = 0; w < kWords; ++w) {
    acc[w] = to_matrix<float>(float2(0.0f));
  }
  float2 m = float2(kNoMax);
  float2 d = float2(0.0f);

  const int token_stride = p.num_kv_heads * HeadDim;
  const int lane_offset =
      row * token_stride + place.kv_head * HeadDim + Layout::begin(lane);
  uint k_words[1][kWords];
  uint v_words[1][kWords];
  int step = steps.first;
  if (steps.has(step)) {
    steps.look_ahead(step);
    const size_t at =
        steps.row(step, steps.first_block) * token_stride + lane_offset;
    const int left = steps.left(step);
    Layout::template load_rows<1>(
        k_cache + at, token_stride, row, lane, left, k_words);
    Layout::template load_rows<1>(
        v_cache + at, token_stride, row, lane, left, v_words);
  }
  simdgroup_matrix<T, 8, 8> q_t[kWords];
  QUIRE_UNROLL
  for (int w = 0; w < kWords; ++w) {
    const vec<T, 2> first = as_type<vec<T, 2>>(q_words[0][w]);
    const vec<T, 2> second = as_type<vec<T, 2>>(q_words[1][w]);
    vec<T, 2> heads;
    heads[0] = odd ? first[1] : first[0];
    heads[1] = odd ? second[1] : second[0];
    q_t[w] = to_matrix<T>(heads);
  }
  while (steps.has(step)) {
    const int next = step + kStride;
    const int next_left = steps.left(next);
    const size_t next_at =
        steps.row(next, steps.next_block) * token_stride + lane_offset;
    simdgroup_matrix<float, 8, 8> scores = to_matrix<float>(float2(0.0f));
    QUIRE_UNROLL
    for (int w = 0; w < kWords; ++w) {
      simdgroup_multiply_accumulate(
          scores,
          to_matrix<T>(as_type<vec<T, 2>>(k_words[0][w])),
          q_t[w],
          scores);
    }
    if (steps.has(next)) {
      steps.look_ahead(next);
      Layout::template load_rows<1>(
          k_cache + next_at, token_stride, row, lane, next_left, k_words);
    }
    float2 x = elements_of(scores);
    x *= p.scale_log2;
    if (row >= steps.left(step)) {
      x = float2(-INFINITY);
    }
    if (simd_any(x[0] > m[0] + kLazyMax || x[1] > m[1] + kLazyMax)) {
      float2 r;
      QUIRE_UNROLL
      for (int e = 0; e < 2; ++e) {
        const float grown = max(m[e], column_max(x[e]));
        r[e] = rescale_factor(m[e], grown);
        m[e] = grown;
        d[e] *= r[e];
      }
      // Every row of r is the same, so the first column of its transpose is
      // that of the head whose row of the accumulators this lane holds.
      const float row_r = transposed(r, row, column)[0];
      QUIRE_UNROLL
      for (int w = 0; w < kWords; ++w) {
        float2 a = elements_of(acc[w]);
        a *= row_r;
        acc[w] = to_matrix<float>(a);
      }
    }
    QUIRE_UNROLL
    for (int e = 0; e < 2; ++e) {
      x[e] = fast::exp2(x[e] - m[e]);
      d[e] += x[e];
    }
    const simdgroup_matrix<float, 8, 8> weights =
        to_matrix<float>(transposed(x, row, column));
    QUIRE_UNROLL
    for (int w = 0; w < kWords; ++w) {
      simdgroup_multiply_accumulate(
          acc[w],
          weights,
          to_matrix<T>(as_type<vec<T, 2>>(v_words[0][w])),
          acc[w]);
    }
    if (steps.has(next)) {
      Layout::template load_rows<1>(
          v_cache + next_at, token_stride, row, lane, next_left, v_words);
    }
    step = next;
  }

  QUIRE_UNROLL
  for (int e = 0; e < 2; ++e) {
    const float sum = column_sum(d[e]);
    if (row == 0) {
      tg_max[int(simdgroup) * kHeads + column + e] = m[e];
      tg_sum[int(simdgroup) * kHeads + column + e] = sum;
    }
  }
  QUIRE_UNROLL
  for (int g0 = 0; g0 < kHeads; g0 += kPass) {
    if (g0 > 0) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (row / kPass == g0 / kPass) {
      threadgroup float* to = tg_out +
                              (int(simdgroup) * kPass + row % kPass) * HeadDim +
                              Layout::begin(lane);
      QUIRE_UNROLL
      for (int j = 0; j < kElems; j += 2) {
        const float2 a = elements_of(acc[j / 2]);
        to[Layout::offset(j, lane)] = a[0];
        to[Layout::offset(j + 1, lane)] = a[1];
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    merge_simdgroups<T, HeadDim, kHeads, kPass, Simdgroups, HeadParts>(
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
