#pragma once

#include <span>

namespace quire {

/** What a GPU offers to one decode step. */
struct DecodeDevice {
  int num_cores = 1;  // GPU cores (Apple), multiprocessors (NVIDIA)
  int groups_per_core =
      1;  // threadgroups of the kernel that run on one at once
};

/** One decode step as the schedule sees it. */
struct DecodePlanRequest {
  int num_seqs = 0;
  int max_seq_len = 0;                 // tokens; upper bound over the batch
  std::span<const int> seq_lens = {};  // [num_seqs]; empty: all max_seq_len
  int groups_per_split = 1;  // threadgroups that serve one split of a sequence
  int num_splits = 0;        // 0: chosen; else forced, see make_decode_plan
};

/**
 * The split-KV schedule of one decode step, the same for every layer: sequence
 * i is cut at multiples of split_size, so ragged sequences get splits of equal
 * work. A split that starts past its sequence's end has nothing to do.
 */
struct DecodePlan {
  int num_splits = 1;  // ceil(max_seq_len / split_size), at least 1
  int split_size = 0;  // tokens, a multiple of kSplitGranule

  /** First token of a split; split num_splits begins at the sequence's end. */
  int begin_token(int split, int seq_len) const;

  friend bool operator==(const DecodePlan&, const DecodePlan&) = default;
};

/** Splits are multiples of it: 8 simdgroups with steps of 8 tokens. */
inline constexpr int kSplitGranule = 64;

/**
 * Cuts the sequences so that the threadgroups fill the device once and no more:
 * the shortest splits whose number does not exceed what runs at once. Where the
 * sequences alone exceed that, only a sequence longer than a fair share of the
 * whole work is cut.
 *
 * A forced num_splits is rounded down to what the granule allows; the result's
 * num_splits says so. A sequence longer than max_seq_len is still attended to
 * in full: its last split takes the rest.
 *
 * Pure: equal requests give equal plans. O(num_seqs * log(max_seq_len)).
 * Throws std::invalid_argument for a negative or zero count where one is
 * needed.
 */
DecodePlan make_decode_plan(
    const DecodePlanRequest& request,
    const DecodeDevice& device);

}  // namespace quire
