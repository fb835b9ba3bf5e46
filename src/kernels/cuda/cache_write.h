// Writing the caches in place, and checking what a step says about them: plain
// data, as decode_launch.h.
#pragma once

#include <cstdint>

#include "quire/types.h"

namespace quire::cuda {

inline constexpr int kWriteThreads = 128;

/// Token i of k and v goes to slot slots[i] with round to nearest even. A
/// negative slot is padding; one beyond the cache is skipped too.
struct KvAppendArgs {
  const void* k = nullptr;              // [num_tokens, token_elems]
  const void* v = nullptr;              // as k
  const std::int64_t* slots = nullptr;  // [num_tokens]
  void* k_cache = nullptr;              // [num_slots, token_elems]
  void* v_cache = nullptr;              // as k_cache
  std::int64_t num_slots = 0;
  std::int64_t k_stride = 0;  // elements from a token to the next
  std::int64_t v_stride = 0;
  std::int32_t token_elems = 0;  // num_kv_heads * head_dim, a multiple of 8
  std::int32_t num_tokens = 0;
};

struct KvAppendLaunch {
  KvAppendArgs args;
  DType dtype = DType::Float32;     // of k and v
  DType kv_dtype = DType::Float32;  // of the caches
  std::int64_t grid = 0;            // CTAs of kWriteThreads
};

/// Copy i: block copies[2 i] onto block copies[2 i + 1], as if in order.
struct CopyBlocksArgs {
  const std::int32_t* copies = nullptr;  // [num_copies, 2]
  void* k_cache = nullptr;               // [num_blocks, block_bytes]
  void* v_cache = nullptr;
  std::int64_t block_bytes = 0;  // a multiple of 16
  std::int32_t num_copies = 0;
  std::int32_t num_blocks = 0;  // ids outside are skipped
};

struct CopyBlocksLaunch {
  CopyBlocksArgs args;
  std::int32_t grid_x = 0;  // CTAs of kWriteThreads along a block
  std::int32_t grid_y = 0;  // copies at a time
};

/// What check_kernel writes: the first fault it saw, kind 0 if none.
struct CheckReport {
  enum Kind : std::int32_t { Ok = 0, Length = 1, BlockId = 2, Slot = 3 };
  std::int32_t kind = 0;
  std::int32_t index = 0;  // sequence, or token of a slot
  std::int64_t value = 0;
};

/// Arrays that are null are not checked.
struct CheckArgs {
  const std::int32_t* seq_lens = nullptr;     // [num_seqs]
  const std::int32_t* block_table = nullptr;  // [num_seqs, max_blocks_per_seq]
  const std::int64_t* slots = nullptr;        // [num_slots_given]
  CheckReport* report = nullptr;              // zero before the launch
  std::int64_t num_slots = 0;                 // of the cache
  std::int32_t num_seqs = 0;
  std::int32_t max_blocks_per_seq = 0;
  std::int32_t block_size = 0;
  std::int32_t num_blocks = 0;
  std::int32_t num_slots_given = 0;
};

struct CheckLaunch {
  CheckArgs args;
  std::int32_t grid = 0;  // CTAs of kWriteThreads
};

inline KvAppendLaunch
make_kv_append_launch(const KvAppendArgs& args, DType dtype, DType kv_dtype) {
  const std::int64_t pieces =  // 8 elements of K or V each
      static_cast<std::int64_t>(args.num_tokens) * (args.token_elems / 8) * 2;
  return {args, dtype, kv_dtype, (pieces + kWriteThreads - 1) / kWriteThreads};
}

inline CopyBlocksLaunch make_copy_blocks_launch(const CopyBlocksArgs& args) {
  const std::int64_t pieces = args.block_bytes / 16;
  return {
      args,
      static_cast<std::int32_t>((pieces + kWriteThreads - 1) / kWriteThreads),
      args.num_copies < 4096 ? args.num_copies : 4096};
}

inline CheckLaunch make_check_launch(const CheckArgs& args) {
  const int rows = args.num_seqs > args.num_slots_given ? args.num_seqs
                                                        : args.num_slots_given;
  return {args, rows < 1024 ? rows : 1024};
}

}  // namespace quire::cuda
