// Fuzzes the CPU kernels with tables, lengths and slots that nobody checked:
// whatever they hold, a call returns or throws, and touches only its arrays.
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "bytes.h"
#include "kernels/cpu/cache_write.h"
#include "kernels/cpu/paged_decode.h"

namespace {

using namespace quire;
using fuzz::Bytes;

constexpr DType kDTypes[] = {DType::Float32, DType::Float16, DType::BFloat16};

// Heap arrays of exactly the size the call is told: an overrun is reported.
struct Arrays {
  DecodeParams params;
  DType q_dtype;
  DType kv_dtype;
  std::vector<std::uint8_t> q, k_cache, v_cache, out;
  std::vector<std::int32_t> table, seq_lens;
};

Arrays make_arrays(Bytes& bytes) {
  constexpr int kHeadDims[] = {64, 80, 96, 128, 256};
  constexpr int kBlockSizes[] = {8, 16, 32, 64};
  constexpr int kGroups[] = {1, 2, 3, 4, 5, 7, 8, 16};
  Arrays a;
  DecodeParams& p = a.params;
  p.num_seqs = bytes.take<std::uint8_t>() % 4;
  p.num_kv_heads = 1 + bytes.take<std::uint8_t>() % 3;
  p.num_q_heads = p.num_kv_heads * bytes.pick(kGroups);
  p.head_dim = bytes.pick(kHeadDims);
  p.block_size = bytes.pick(kBlockSizes);
  p.num_blocks = 1 + bytes.take<std::uint8_t>() % 6;
  p.max_blocks_per_seq = bytes.take<std::uint8_t>() % 5;
  p.num_splits = bytes.take<std::uint8_t>() % 9;
  p.scale = 0.125f;
  a.q_dtype = bytes.pick(kDTypes);
  a.kv_dtype = bytes.pick(kDTypes);

  const auto size = [](auto... factors) {
    return (static_cast<std::size_t>(factors) * ...);
  };
  const std::size_t pool = size(
      p.num_blocks,
      p.block_size,
      p.num_kv_heads,
      p.head_dim,
      dtype_bytes(a.kv_dtype));
  const std::size_t rows =
      size(p.num_seqs, p.num_q_heads, p.head_dim, dtype_bytes(a.q_dtype));
  a.q.assign(rows, 0x11);
  a.out.assign(rows, 0);
  a.k_cache.assign(pool, 0x22);
  a.v_cache.assign(pool, 0x33);
  a.table.resize(size(p.num_seqs, p.max_blocks_per_seq));
  for (std::int32_t& id : a.table) {
    id = static_cast<std::int32_t>(bytes.near_bound(p.num_blocks));
  }
  a.seq_lens.resize(size(p.num_seqs));
  for (std::int32_t& seq_len : a.seq_lens) {
    seq_len = static_cast<std::int32_t>(
        bytes.near_bound(std::int64_t{p.max_blocks_per_seq} * p.block_size));
  }
  return a;
}

void fuzz_decode(Arrays& a) {
  cpu::paged_decode(
      {.params = a.params,
       .q_dtype = a.q_dtype,
       .kv_dtype = a.kv_dtype,
       .q = a.q.data(),
       .k_cache = a.k_cache.data(),
       .v_cache = a.v_cache.data(),
       .block_table = a.table.data(),
       .seq_lens = a.seq_lens.data(),
       .out = a.out.data()});
}

void fuzz_append(Arrays& a, Bytes& bytes) {
  const std::int64_t token_elems =
      std::int64_t{a.params.num_kv_heads} * a.params.head_dim;
  const std::int64_t num_slots =
      std::int64_t{a.params.num_blocks} * a.params.block_size;
  const std::int64_t num_tokens = bytes.take<std::uint8_t>() % 5;
  std::vector<std::uint8_t> rows(
      static_cast<std::size_t>(num_tokens * token_elems) *
          dtype_bytes(a.q_dtype),
      0x44);
  std::vector<std::int64_t> slots(static_cast<std::size_t>(num_tokens));
  for (std::int64_t& slot : slots) {
    slot = bytes.near_bound(num_slots);
  }
  cpu::kv_append(
      {.num_tokens = num_tokens,
       .num_slots = num_slots,
       .token_elems = token_elems,
       .dtype = a.q_dtype,
       .kv_dtype = a.kv_dtype,
       .k = rows.data(),
       .v = rows.data(),
       .slots = slots.data(),
       .k_cache = a.k_cache.data(),
       .v_cache = a.v_cache.data()});
}

void fuzz_copy(Arrays& a, Bytes& bytes) {
  const std::int64_t num_copies = bytes.take<std::uint8_t>() % 4;
  std::vector<std::int32_t> copies(static_cast<std::size_t>(2 * num_copies));
  for (std::int32_t& id : copies) {
    id = static_cast<std::int32_t>(bytes.near_bound(a.params.num_blocks));
  }
  cpu::copy_blocks(
      {.num_copies = num_copies,
       .num_blocks = a.params.num_blocks,
       .block_bytes =
           static_cast<std::int64_t>(a.k_cache.size()) / a.params.num_blocks,
       .copies = copies.data(),
       .k_cache = a.k_cache.data(),
       .v_cache = a.v_cache.data()});
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(
    const std::uint8_t* data,
    std::size_t size) {
  Bytes bytes(data, size);
  const auto what = bytes.take<std::uint8_t>() % 4;
  Arrays arrays = make_arrays(bytes);
  try {
    if (what == 0) {
      fuzz_append(arrays, bytes);
    } else if (what == 1) {
      fuzz_copy(arrays, bytes);
    } else {
      fuzz_decode(arrays);
    }
  } catch (const std::runtime_error&) {
    // What the arrays held could not be used: that is an answer.
  } catch (const std::invalid_argument&) {
  }
  return 0;
}
