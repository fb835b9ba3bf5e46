// What a Metal launch is, as plain data: pure functions of shapes and limits.
//
// MLX's command encoder and the host execution consume the same values, so what
// is tested on the host is what ships. Whoever enqueues them decides nothing:
// it binds each operand's buffer at its byte offset, the constants after them,
// and dispatches.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/decode_params.h"
#include "kernels/metal/variants.h"
#include "quire/decode_plan.h"

namespace quire::metal {

/** What the device allows to one threadgroup. */
struct DeviceLimits {
  int max_threads = 1024;        // the smaller of device and pipeline
  int max_memory_bytes = 32768;  // threadgroup memory
};

/** Most threads that a launch asks for, whatever the device would allow: an M1
 * Max wrote zeros, silently, for larger ones. */
inline constexpr int kMaxThreads = 512;
/** Most threadgroup memory that a launch asks for. */
inline constexpr int kMaxThreadgroupBytes = 28 * 1024;

/** An array of the op. */
enum class Operand {
  Q,
  KCache,
  VCache,
  BlockTable,
  SeqLens,
  Out,
  Workspace,  // DecodeLaunch::workspace_bytes, uninitialised
  K,
  V,
  SlotMapping,
  BlockCopies
};

/** The buffer of one slot; its slot is its index. */
struct BufferBinding {
  Operand operand;
  bool written = false;
  std::int64_t byte_offset = 0;  // from the operand's first byte

  friend bool operator==(const BufferBinding&, const BufferBinding&) = default;
};

/** Which embedded text a kernel is in (source.h). */
enum class Source { PagedDecode, CacheWrite };

/** One dispatch. */
struct KernelLaunch {
  Source source = Source::PagedDecode;
  bool matrices = false;      // the kernel multiplies them
  std::string kernel_name;    // the host name; names its library as well
  std::string instantiation;  // text to append to the source, may be empty
  std::vector<BufferBinding> buffers;   // in slot order
  std::vector<std::byte> constants;     // bound after the last buffer
  std::array<int, 3> num_threadgroups;  // x, y, z
  std::array<int, 3> num_threads;       // of one threadgroup
  int threadgroup_bytes = 0;            // static, of one threadgroup

  friend bool operator==(const KernelLaunch&, const KernelLaunch&) = default;
};

/** The MSL text that defines a launch's kernel. */
std::string kernel_text(const KernelLaunch& launch);

/** Whether a kernel exists, and if not, why, in the user's words. */
struct Support {
  bool ok = true;
  std::string reason;  // empty when ok
};

/** Whether make_decode_launch() accepts the case. Says nothing of the device.
 */
Support supports_paged_decode(const DecodeParams& params);

/** Whether a device can run the launch as it is. */
Support fits_device(const KernelLaunch& launch, const DeviceLimits& limits);

/** A decode step: one kernel, or two with partials in a workspace between. */
struct DecodeLaunch {
  std::vector<KernelLaunch> kernels;  // in order; the second reads the first's
  std::int64_t workspace_bytes = 0;   // 0 for one split

  friend bool operator==(const DecodeLaunch&, const DecodeLaunch&) = default;
};

/** Threadgroups of paged_decode that serve one split of one sequence. */
int groups_per_split(const DecodeParams& params, const DecodeVariant& variant);

/**
 * The launch of paged attention over the caches.
 *
 * Buffers are bound as: q, k_cache, v_cache, block_table, seq_lens, partials,
 * their log-sum-exps, out; the shapes are those of DecodeArgs. An empty batch
 * needs no kernel. params.num_splits is ignored: the plan has decided.
 * Throws std::invalid_argument where supports_paged_decode() says no, or the
 * device does not allow the threadgroup.
 */
DecodeLaunch make_decode_launch(
    const DecodeParams& params,
    DType q_dtype,
    DType kv_dtype,
    const DecodePlan& plan,
    const DecodeVariant& variant,
    const DeviceLimits& limits = {});

/**
 * The launch that writes num_tokens rows of num_kv_heads * head_dim elements
 * to their slots: k, v, slot_mapping, k_cache, v_cache. A slot outside
 * [0, num_slots) is skipped.
 * Requires: num_tokens and token_elems are positive.
 */
KernelLaunch make_kv_append_launch(
    int num_tokens,
    std::int64_t num_slots,
    int token_elems,
    DType dtype,
    DType kv_dtype);

/**
 * The launch that copies whole blocks, as if one copy were done after the
 * other: block_copies, k_cache, v_cache. An id outside the pool is skipped.
 * Requires: block_bytes is a multiple of 16; num_copies > 0.
 */
KernelLaunch make_copy_blocks_launch(
    int num_copies,
    int num_blocks,
    std::int64_t block_bytes);

/** Launches without sizes of the kernels that default variants name: to build
 * or to check all of them. */
std::vector<KernelLaunch> all_kernels();

/** The same for every variant worth trying of some shapes. */
std::vector<KernelLaunch>
variant_kernels(DType q_dtype, DType kv_dtype, int head_dim);

}  // namespace quire::metal
