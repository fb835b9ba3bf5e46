#include "kernels/metal/variants.h"

#include <algorithm>
#include <optional>

namespace quire::metal {
namespace {

constexpr int kSimdgroups = 8;
constexpr int kMaxHeads = 8;  // 16 in one simdgroup: 47 % slower
constexpr int kMatrixHeads = 8;
constexpr int kMaxAccumulators = 40;    // a lane; 48 spilled
constexpr int kMaxStateBytes = 256;     // a lane: accumulators and q
constexpr int kMaxKBytesInFlight = 96;  // a lane
constexpr int kPassFloats = 4096;       // as heads_a_pass in decode_split.h

bool divides_row(int lanes, int head_dim, DType kv_dtype) {
  const int kv_bytes = static_cast<int>(dtype_bytes(kv_dtype));
  return lanes <= 32 && head_dim % lanes == 0 &&
         head_dim / lanes * kv_bytes % 4 == 0;
}

// 8 tokens a step, fewer where K alone would take too many registers.
int rows_a_lane(int lanes, int head_dim, DType kv_dtype) {
  int rows = lanes / 4;
  while (rows > 1 &&
         rows * (head_dim / lanes) * static_cast<int>(dtype_bytes(kv_dtype)) >
             kMaxKBytesInFlight) {
    rows /= 2;
  }
  return rows;
}

// Lanes a row for `heads` query heads a simdgroup: 16 bytes a lane, doubled
// while the accumulators would not fit; nothing if they never do.
std::optional<int>
lanes_a_row(DType q_dtype, DType kv_dtype, int head_dim, int heads) {
  const int kv_bytes = static_cast<int>(dtype_bytes(kv_dtype));
  const int q_bytes =
      kv_bytes == 4 ? 4 : static_cast<int>(dtype_bytes(q_dtype));
  if (kv_bytes == 4 && heads == 8 && head_dim > 64) {
    return std::nullopt;  // two simdgroups of 4 are 5 to 14 % faster
  }
  int lanes = 8;
  while (lanes < 32 && head_dim % (2 * lanes) == 0 &&
         2 * lanes * 16 <= head_dim * kv_bytes) {
    lanes *= 2;
  }
  const auto fits = [&] {
    const int accumulators = heads * head_dim / lanes;
    return accumulators <= kMaxAccumulators &&
           accumulators * (4 + q_bytes) <= kMaxStateBytes;
  };
  while (!fits()) {
    lanes *= 2;
    if (!divides_row(lanes, head_dim, kv_dtype)) {
      return std::nullopt;
    }
  }
  return lanes;
}

// Matrices of 8 heads: fewer would be padded, at twice the products of a group
// of 4, which memory bounds. Both operands of a product have one type.
bool multiplies_matrices(
    DType q_dtype,
    DType kv_dtype,
    int head_dim,
    int group_size) {
  return q_dtype == kv_dtype && kv_dtype != DType::Float32 &&
         kMatrixHeads * head_dim / 32 <= kMaxAccumulators && group_size > 4;
}

}  // namespace

int DecodeVariant::threadgroup_bytes(int head_dim) const {
  int pass = heads;
  while (pass > 1 && simdgroups * pass * head_dim > kPassFloats) {
    pass /= 2;
  }
  return simdgroups * (pass * head_dim + 2 * heads) *
         static_cast<int>(sizeof(float));
}

bool is_supported_head_dim(int head_dim) {
  return std::find(std::begin(kHeadDims), std::end(kHeadDims), head_dim) !=
         std::end(kHeadDims);
}

std::vector<DecodeVariant>
decode_variants(DType q_dtype, DType kv_dtype, int head_dim, int group_size) {
  std::vector<DecodeVariant> variants;
  if (multiplies_matrices(q_dtype, kv_dtype, head_dim, group_size)) {
    DecodeVariant matrix{
        .heads = kMatrixHeads,
        .lanes = 4,
        .rows = 1,
        .simdgroups = kSimdgroups,
        .head_parts = group_size > kMatrixHeads ? 2 : 1,
        .matrix = true};
    variants.push_back(matrix);
    matrix.simdgroups /= 2;
    variants.push_back(matrix);
  }
  int heads = 1;
  while (heads < std::min(group_size, kMaxHeads)) {
    heads *= 2;
  }
  int head_parts = 1;
  auto lanes = lanes_a_row(q_dtype, kv_dtype, head_dim, heads);
  while (!lanes) {
    heads /= 2;
    head_parts *= 2;
    lanes = lanes_a_row(q_dtype, kv_dtype, head_dim, heads);
  }
  const DecodeVariant best{
      .heads = heads,
      .lanes = *lanes,
      .rows = rows_a_lane(*lanes, head_dim, kv_dtype),
      .simdgroups = kSimdgroups,
      .head_parts = head_parts};
  variants.push_back(best);
  const auto add_half_step = [&](DecodeVariant variant) {
    variant.rows /= 2;
    if (variant.rows > 0) {
      variants.push_back(variant);
    }
  };
  add_half_step(best);
  if (divides_row(2 * best.lanes, head_dim, kv_dtype)) {
    DecodeVariant wide = best;
    wide.lanes *= 2;
    wide.rows = rows_a_lane(wide.lanes, head_dim, kv_dtype);
    variants.push_back(wide);
    add_half_step(wide);
  }
  DecodeVariant small = best;
  small.simdgroups /= 2;
  variants.push_back(small);
  return variants;
}

DecodeVariant
default_variant(DType q_dtype, DType kv_dtype, int head_dim, int group_size) {
  return decode_variants(q_dtype, kv_dtype, head_dim, group_size).front();
}

}  // namespace quire::metal
