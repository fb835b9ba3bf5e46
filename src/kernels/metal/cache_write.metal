// Writes into a paged KV cache, in place (MSL 3.1). No arithmetic but the
// conversion of kv_append; both are bound by the bytes they move.
//
// Apple hardware has not run it yet.
#include <metal_stdlib>

#include "kernels/metal/params.h"

using namespace metal;

/// Token i of k and v goes to row slots[i] of the caches, rounded to nearest
/// even. A slot outside the cache is skipped: -1 is padding, and a broken slot
/// must not write elsewhere.
///
/// Grid: (pieces, tokens, 2) threads; a thread moves Piece elements, 8 or 1, z
/// = 0 of K and z = 1 of V. No two tokens have the same slot.
template <typename T, typename From, int Piece>
[[kernel]] void kv_append(
    const device From* k [[buffer(0)]],
    const device From* v [[buffer(1)]],
    const device long* slots [[buffer(2)]],
    device T* k_cache [[buffer(3)]],
    device T* v_cache [[buffer(4)]],
    const constant KvAppendParams& p [[buffer(5)]],
    uint3 pos [[thread_position_in_grid]]) {
  const int piece = int(pos.x);
  const int token = int(pos.y);
  if (piece >= p.num_pieces) {
    return;
  }
  const long slot = slots[token];
  if (slot < 0 || slot >= p.num_slots) {
    return;
  }
  const device From* from =
      (pos.z == 0 ? k : v) + (size_t(token) * p.num_pieces + piece) * Piece;
  device T* to = (pos.z == 0 ? k_cache : v_cache) +
                 (size_t(slot) * p.num_pieces + piece) * Piece;
  if (Piece == 1) {
    *to = static_cast<T>(float(*from));
    return;
  }
  for (int i = 0; i < Piece; i += 4) {
    const vec<From, 4> x =
        *reinterpret_cast<const device vec<From, 4>*>(from + i);
    vec<T, 4> y;
    for (int c = 0; c < 4; ++c) {
      y[c] = static_cast<T>(float(x[c]));
    }
    *reinterpret_cast<device vec<T, 4>*>(to + i) = y;
  }
}

/// Block copies[i][0] goes onto block copies[i][1], in both caches, as if one
/// copy were done after the other: a thread carries one 16-byte column of the
/// blocks through all copies. A copy with an id outside the pool is skipped.
///
/// Grid: (pieces, 1, 2) threads. Copies are few: those of one step's appends to
/// shared blocks.
[[kernel]] void copy_blocks(
    const device int* copies [[buffer(0)]],
    device uint4* k_cache [[buffer(1)]],
    device uint4* v_cache [[buffer(2)]],
    const constant CopyBlocksParams& p [[buffer(3)]],
    uint3 pos [[thread_position_in_grid]]) {
  if (int(pos.x) >= p.num_pieces) {
    return;
  }
  device uint4* column = (pos.z == 0 ? k_cache : v_cache) + pos.x;
  for (int i = 0; i < p.num_copies; ++i) {
    const int source = copies[2 * i];
    const int target = copies[2 * i + 1];
    if (source >= 0 && source < p.num_blocks && target >= 0 &&
        target < p.num_blocks) {
      column[size_t(target) * p.num_pieces] =
          column[size_t(source) * p.num_pieces];
    }
  }
}
