// What one cell of a benchmark computes, and what that must cost.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/decode_params.h"
#include "quire/types.h"

namespace quire::bench {

/** One decode step of a batch; counts as the glossary names them. */
struct Shape {
  int num_seqs = 1;
  int context = 0;      // tokens; the longest sequence
  bool ragged = false;  // lengths spread evenly up to context
  int block_size = kDefaultBlockSize;
  int head_dim = 0;
  int num_q_heads = 0;
  int num_kv_heads = 0;
  DType q_dtype = DType::Float32;
  DType kv_dtype = DType::Float32;  // of the paged cache
};

/** Batch and context as "4x4096 ragged". */
std::string describe(const Shape& shape);

/** Tokens of each sequence; ragged ones do not end with their block. */
std::vector<int> seq_lens(const Shape& shape);

/** Width of the block table. */
int blocks_per_seq(const Shape& shape);

/** The shape as a kernel takes it, in a pool of `num_blocks`; splits as
 * QUIRE_NUM_SPLITS says, as in the op. */
DecodeParams decode_params(const Shape& shape, int num_blocks);

/** Elements of K and V that a step must read. */
double kv_elements(const Shape& shape);

/** Bytes of K and V that a step must read, in a cache of `kv_dtype`. */
std::int64_t kv_bytes(const Shape& shape, DType kv_dtype);

/** Multiply-adds of a step: q.K and p.V. */
double multiply_adds(const Shape& shape);

}  // namespace quire::bench
