// How one row of a head is spread over the lanes that share it. MSL only.
#pragma once

#include <metal_stdlib>

using namespace metal;

#define QUIRE_CONST static constant constexpr const
#define QUIRE_UNROLL _Pragma("clang loop unroll(full)")

/// Element j of registers that hold elements of T as 32-bit words.
template <typename T>
struct Words {
  static METAL_FUNC float get(thread const uint* words, int j) {
    return float(as_type<vec<T, 2>>(words[j / 2])[j % 2]);
  }
};
template <>
struct Words<float> {
  static METAL_FUNC float get(thread const uint* words, int j) {
    return as_type<float>(words[j]);
  }
};

/// Loads NumWords words that lie side by side: 16 bytes at a time, then 8 and 4
/// for what is left.
template <int NumWords>
METAL_FUNC void load_words(const device uint* from, thread uint* words) {
  QUIRE_UNROLL
  for (int w = 0; w < NumWords / 4 * 4; w += 4) {
    const uint4 x = *reinterpret_cast<const device uint4*>(from + w);
    words[w] = x.x;
    words[w + 1] = x.y;
    words[w + 2] = x.z;
    words[w + 3] = x.w;
  }
  if (NumWords & 2) {
    constexpr int w = NumWords / 4 * 4;
    const uint2 x = *reinterpret_cast<const device uint2*>(from + w);
    words[w] = x.x;
    words[w + (NumWords > 1)] = x.y;
  }
  if (NumWords & 1) {
    words[NumWords - 1] = from[NumWords - 1];
  }
}

/// A row of HeadDim elements of T over Lanes lanes. A lane owns pieces of 4
/// words (16 bytes) while they fit, then one of 2, then one of 1; each kind of
/// piece is contiguous over the lanes. So head dims 80 and 96 idle no lane: 80
/// halves over 8 lanes are a 16-byte and a 4-byte piece each.
template <typename T, int HeadDim, int Lanes>
struct RowLayout {
  QUIRE_CONST int kElems = HeadDim / Lanes;
  QUIRE_CONST int kElemsPerWord = 4 / sizeof(T);
  QUIRE_CONST int kWords = kElems / kElemsPerWord;
  /// Elements that lie side by side even in the smallest piece, 4 at most.
  QUIRE_CONST int kRun = kWords & 1   ? kElemsPerWord
                         : kWords & 2 ? 2 * (kElemsPerWord == 1 ? 1 : 2)
                                      : 4;
  static_assert(
      HeadDim % Lanes == 0 && kElems % kElemsPerWord == 0,
      "each lane owns whole words");

  /// Words of the piece that word w belongs to.
  static METAL_FUNC constexpr int piece(int w) {
    return w < kWords / 4 * 4 ? 4 : w < kWords / 2 * 2 ? 2 : 1;
  }

  /// Where the lane's first piece starts in the row.
  static METAL_FUNC int begin(int lane) {
    return lane * piece(0) * kElemsPerWord;
  }

  /// Where element j of the lane lies in the row, relative to begin(lane).
  static METAL_FUNC int offset(int j, int lane) {
    const int w = j / kElemsPerWord;
    const int n = piece(w);
    return (w / n * n * Lanes + lane * (n - piece(0)) + w % n) * kElemsPerWord +
           j % kElemsPerWord;
  }

  /// Loads the lane's elements. `row` points at begin(lane) of a row of U,
  /// which may be another type than T: U takes kScale words where T takes one.
  template <typename U>
  static METAL_FUNC void
  load(const device U* row, int lane, thread uint* words) {
    constexpr int kScale = kElemsPerWord * sizeof(U) / 4;
    constexpr int kFours = kWords / 4 * 4;
    QUIRE_UNROLL
    for (int w = 0; w < kFours; w += 4) {
      load_words<4 * kScale>(
          reinterpret_cast<const device uint*>(
              row + offset(w * kElemsPerWord, lane)),
          words + w * kScale);
    }
    if (kWords & 2) {
      load_words<2 * kScale>(
          reinterpret_cast<const device uint*>(
              row + offset(kFours * kElemsPerWord, lane)),
          words + kFours * kScale);
    }
    if (kWords & 1) {
      load_words<kScale>(
          reinterpret_cast<const device uint*>(
              row + offset((kWords - 1) * kElemsPerWord, lane)),
          words + (kWords - 1) * kScale);
    }
  }

  /// Loads this lane's NumRows rows, 32 / Lanes rows apart, from a step of
  /// which the first `num_left` rows exist. The others become zero: a stale V
  /// may be NaN, and 0 * NaN is NaN.
  template <int NumRows>
  static METAL_FUNC void load_rows(
      const device T* row,
      int row_stride,
      int row_group,
      int lane,
      int num_left,
      thread uint (&words)[NumRows][kWords]) {
    constexpr int kRowGroups = 32 / Lanes;
    if (num_left >= NumRows * kRowGroups) {
      QUIRE_UNROLL
      for (int i = 0; i < NumRows; ++i) {
        load(row + i * kRowGroups * row_stride, lane, words[i]);
      }
      return;
    }
    QUIRE_UNROLL
    for (int i = 0; i < NumRows; ++i) {
      QUIRE_UNROLL
      for (int w = 0; w < kWords; ++w) {
        words[i][w] = 0;
      }
      if (i * kRowGroups + row_group < num_left) {
        load(row + i * kRowGroups * row_stride, lane, words[i]);
      }
    }
  }
};
