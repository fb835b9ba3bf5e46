// One decode step in host memory for tests of every backend, poisoned so that
// whatever must not be read would show.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "kernels/decode_params.h"

namespace quire::test {

inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
inline constexpr std::int32_t kUnusedId = 2147480000;

/** What a case is made of; values are N(0, 1) rounded to the dtypes. */
struct PagedCaseSpec {
  std::vector<int> seq_lens;
  int num_q_heads = 4;
  int num_kv_heads = 2;
  int head_dim = 64;
  int block_size = 16;
  DType q_dtype = DType::Float32;
  DType kv_dtype = DType::Float32;
  int num_spare_blocks = 3;    // in the pool, in no table
  int num_unused_entries = 2;  // of the table, beyond the longest sequence
  float poison = kNaN;         // in spare blocks and past the lengths
  std::int32_t unused_id = kUnusedId;  // in unused table entries
  unsigned seed = 1;

  std::string name() const;
};

struct PagedCase {
  DecodeParams params;
  DType q_dtype;
  DType kv_dtype;
  std::vector<std::byte> q;        // as DecodeArgs names them
  std::vector<std::byte> k_cache;  // blocks of a sequence lie permuted
  std::vector<std::byte> v_cache;
  std::vector<std::int32_t> block_table;
  std::vector<std::int32_t> seq_lens;

  /** Everything but `out`, which stays null. */
  DecodeArgs args() const;

  /** The oracle's result, [num_seqs, num_q_heads, head_dim]. */
  std::vector<double> expected() const;
};

PagedCase make_paged_case(const PagedCaseSpec& spec);

/** `values` in the elements of `dtype`, rounded to nearest even; and back. */
std::vector<std::byte> to_elements(
    const std::vector<float>& values,
    DType dtype);
std::vector<float>
from_elements(const void* data, std::size_t size, DType dtype);

/**
 * Empty if `actual` is finite and within rounding of `expected`; else where
 * and how far it is off. A fused kernel and gather accumulate in float32, so
 * the bound is 1e-5 of the values' size (1) plus half an ulp of `dtype`.
 */
std::string compare(
    const std::vector<float>& actual,
    const std::vector<double>& expected,
    DType dtype);

}  // namespace quire::test
