// How a decode step's tokens become the work of CTAs; host and device share it.
//
// A unit is a few tokens (TileShape::unit_len) of one sequence. All sequences'
// units, end to end, form one list, cut into equal ranges, one a CTA of each KV
// head: balanced for any lengths, and computed on the device from seq_lens, so
// that there is no plan to make or upload. A range meets every sequence in at
// most one segment. The ranges that share a sequence are neighbours: piece i of
// the sequence belongs to range first_range + i.
//
// Two other cuts serve special cases. A single sequence is dealt out unit by
// unit, so that no address depends on its length. With a fixed number of
// splits, a CTA gets one split of one sequence: its result does not depend on
// the sequences beside it.
#pragma once

#include "kernels/cuda/decode_launch.h"

namespace quire::cuda {

QUIRE_HD int num_units(int seq_len, int unit_len) {
  return (seq_len + unit_len - 1) / unit_len;
}

/// Units of every range but the last ones.
QUIRE_HD int range_share(int total_units, const Divider& num_ranges) {
  return num_ranges.quotient_up(total_units);
}

/// One sequence's part of a CTA's work: units begin, begin + step, ... below
/// end.
struct Segment {
  int seq_idx = 0;
  int seq_len = 0;
  int begin = 0;
  int end = 0;
  int step = 1;
  int position = 0;  // of `begin` in the list of all units
  int left = 0;      // units of the CTA's range from `begin` on

  QUIRE_HD bool valid() const {
    return left > 0;
  }
  QUIRE_HD bool last() const {
    return left <= end - begin;
  }
};

/// Where a sequence's pieces are: piece 0 .. count - 1, `piece` is this CTA's.
struct Pieces {
  int first_range = 0;
  int count = 1;
  int piece = 0;
};

/// The pieces of the sequence of `segment`, which is in range `range`.
QUIRE_HD Pieces
range_pieces(const Segment& segment, int unit_len, int share, int range) {
  const int units = num_units(segment.seq_len, unit_len);
  const int start = segment.position - segment.begin;
  Pieces p{range, 1, 0};
  if (segment.begin > 0) {
    p.first_range = start / share;
  }
  if (segment.begin > 0 || segment.end < units) {
    p.count = (start + units - 1) / share - p.first_range + 1;
  }
  p.piece = range - p.first_range;
  return p;
}

/// Split `split` of a sequence: `count` may be less than num_splits, never 0.
QUIRE_HD Pieces
split_pieces(Segment& segment, int unit_len, int num_splits, int split) {
  const int units = num_units(segment.seq_len, unit_len);
  const int share = (units + num_splits - 1) / num_splits;
  segment.begin = split * share;
  segment.end = segment.begin + share < units ? segment.begin + share : units;
  segment.left = segment.end > segment.begin ? segment.end - segment.begin : 0;
  return {
      segment.seq_idx * num_splits,
      share > 0 ? (units + share - 1) / share : 1,
      split};
}

}  // namespace quire::cuda
