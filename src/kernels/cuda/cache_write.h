// Writing the caches in place: plain data, as decode_launch.h.
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
  std::int32_t token_elems = 0;  // num_kv_heads * head_dim
  std::int32_t num_tokens = 0;
};

struct KvAppendLaunch {
  KvAppendArgs args;
  DType dtype = DType::Float32;     // of k and v
  DType kv_dtype = DType::Float32;  // of the caches
  std::int32_t elems = 8;           // of K or V a thread: 8, or 1 where rows
                                    // are odd or not aligned to 16 bytes
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

inline KvAppendLaunch
make_kv_append_launch(const KvAppendArgs& args, DType dtype, DType kv_dtype) {
  const auto aligned = [](const void* p) {
    return reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
  };
  KvAppendLaunch launch;
  launch.args = args;
  launch.dtype = dtype;
  launch.kv_dtype = kv_dtype;
  launch.elems = args.token_elems % 8 == 0 && args.k_stride % 8 == 0 &&
                         args.v_stride % 8 == 0 && aligned(args.k) &&
                         aligned(args.v) && aligned(args.k_cache) &&
                         aligned(args.v_cache)
                     ? 8
                     : 1;
  const std::int64_t threads = static_cast<std::int64_t>(args.num_tokens) *
                               (args.token_elems / launch.elems) * 2;
  launch.grid = (threads + kWriteThreads - 1) / kWriteThreads;
  return launch;
}

inline CopyBlocksLaunch make_copy_blocks_launch(const CopyBlocksArgs& args) {
  const std::int64_t pieces = args.block_bytes / 16;
  return {
      args,
      static_cast<std::int32_t>((pieces + kWriteThreads - 1) / kWriteThreads),
      args.num_copies < 4096 ? args.num_copies : 4096};
}

}  // namespace quire::cuda
