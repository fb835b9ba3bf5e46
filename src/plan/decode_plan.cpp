#include "quire/decode_plan.h"

#include <algorithm>
#include <cstdint>

#include "common/error.h"

namespace quire {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

int round_to_granule(std::int64_t tokens) {
  return static_cast<int>(
      std::max<std::int64_t>(1, ceil_div(tokens, kSplitGranule)) *
      kSplitGranule);
}

// Splits of the whole batch that have work; an empty sequence still needs one
// threadgroup to write its zeros.
std::int64_t num_working_splits(
    const DecodePlanRequest& request,
    int split_size) {
  if (request.seq_lens.empty()) {
    return std::int64_t{request.num_seqs} *
           std::max<std::int64_t>(1, ceil_div(request.max_seq_len, split_size));
  }
  std::int64_t sum = 0;
  for (const int seq_len : request.seq_lens) {
    sum += std::max<std::int64_t>(1, ceil_div(seq_len, split_size));
  }
  return sum;
}

std::int64_t total_tokens(const DecodePlanRequest& request) {
  if (request.seq_lens.empty()) {
    return std::int64_t{request.num_seqs} * request.max_seq_len;
  }
  std::int64_t sum = 0;
  for (const int seq_len : request.seq_lens) {
    sum += seq_len;
  }
  return sum;
}

DecodePlan with_split_size(const DecodePlanRequest& request, int split_size) {
  return {
      .num_splits = static_cast<int>(
          std::max<std::int64_t>(1, ceil_div(request.max_seq_len, split_size))),
      .split_size = split_size};
}

}  // namespace

int DecodePlan::begin_token(int split, int seq_len) const {
  if (split >= num_splits) {
    return seq_len;
  }
  return static_cast<int>(
      std::min<std::int64_t>(std::int64_t{split} * split_size, seq_len));
}

DecodePlan make_decode_plan(
    const DecodePlanRequest& request,
    const DecodeDevice& device) {
  require(
      request.num_seqs >= 0 && request.max_seq_len >= 0 &&
          request.num_splits >= 0,
      "make_decode_plan",
      "num_seqs, max_seq_len and num_splits must not be negative; got ",
      request.num_seqs,
      ", ",
      request.max_seq_len,
      " and ",
      request.num_splits,
      ".");
  require(
      request.groups_per_split > 0 && device.num_cores > 0 &&
          device.groups_per_core > 0,
      "make_decode_plan",
      "groups_per_split, num_cores and groups_per_core must be positive; got ",
      request.groups_per_split,
      ", ",
      device.num_cores,
      " and ",
      device.groups_per_core,
      ".");
  require(
      request.seq_lens.empty() ||
          request.seq_lens.size() == static_cast<std::size_t>(request.num_seqs),
      "make_decode_plan",
      "seq_lens must be empty or have num_seqs entries; got ",
      request.seq_lens.size(),
      " and ",
      request.num_seqs,
      ".");
  if (request.num_splits > 0) {
    return with_split_size(
        request,
        round_to_granule(ceil_div(request.max_seq_len, request.num_splits)));
  }
  const std::int64_t slots = std::max<std::int64_t>(
      1,
      std::int64_t{device.num_cores} * device.groups_per_core /
          request.groups_per_split);
  if (num_working_splits(request, round_to_granule(request.max_seq_len)) >
      slots) {
    // More than one wave in any case.
    const std::int64_t fair_share = ceil_div(total_tokens(request), slots);
    return with_split_size(
        request,
        round_to_granule(
            std::min<std::int64_t>(fair_share, request.max_seq_len)));
  }
  // The smallest split size that still fits into one wave.
  int low = 0;
  int high = round_to_granule(request.max_seq_len) / kSplitGranule;
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    (num_working_splits(request, middle * kSplitGranule) <= slots ? high
                                                                  : low) =
        middle;
  }
  return with_split_size(request, high * kSplitGranule);
}

}  // namespace quire
