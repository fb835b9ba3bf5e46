// Which instantiation of the decode kernel serves a shape.
#pragma once

#include <string>
#include <vector>

#include "quire/types.h"

namespace quire::metal {

/** Which kernel, and its template arguments besides types and head_dim. */
struct DecodeVariant {
  int heads;       // query heads a simdgroup serves: 1, 2, 4 or 8
  int lanes;       // lanes that share a token's row: 8, 16 or 32; 4
  int rows;        // rows a lane holds in a step
  int simdgroups;  // of a threadgroup
  int head_parts;  // simdgroups side by side, each with its own query heads
  bool matrix = false;  // paged_decode_matrix: 8 heads, 4 lanes, 1 row

  /** Tokens of one step of a simdgroup. */
  int step_size() const {
    return rows * 32 / lanes;
  }
  /** Threadgroups that serve one KV head of a group. */
  int num_head_slices(int group_size) const {
    return (group_size + heads * head_parts - 1) / (heads * head_parts);
  }
  int threads() const {
    return simdgroups * 32;
  }
  /** Threadgroup memory of paged_decode, bytes. */
  int threadgroup_bytes(int head_dim) const;

  friend bool operator==(const DecodeVariant&, const DecodeVariant&) = default;
};

/** Head dimensions that the kernel is instantiated for. */
inline constexpr int kHeadDims[] = {64, 80, 96, 128, 256};

bool is_supported_head_dim(int head_dim);

/**
 * All instantiations worth trying for a shape, the default first; the others
 * hold fewer registers or threads. The kernel is right for each of them: a
 * tuner on a real device may choose another than the first.
 *
 * Requires: is_supported_head_dim(head_dim), group_size >= 1.
 */
std::vector<DecodeVariant>
decode_variants(DType q_dtype, DType kv_dtype, int head_dim, int group_size);

/** The default: decode_variants(...)[0]. */
DecodeVariant
default_variant(DType q_dtype, DType kv_dtype, int head_dim, int group_size);

}  // namespace quire::metal
