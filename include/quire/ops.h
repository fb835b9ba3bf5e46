#pragma once

#include <utility>

#include <mlx/mlx.h>

#include "quire/api.h"
#include "quire/types.h"

namespace quire {

/**
 * Whether paged_attention may use a fused kernel.
 *
 *   Auto  the fused kernel where one exists, else gather; the fallback is
 *         counted with its reason (path_counts())
 *   On    the fused kernel; throws with the reason where none exists
 *   Off   gather
 *
 * The environment variable QUIRE_NATIVE_PAGED_KERNEL is stronger where it is
 * "off" (all three mean gather) and stands in for Auto where it is "on".
 */
enum class NativeKernel { Auto, On, Off };

struct PagedAttentionOptions {
  NativeKernel use_native_paged_kernel = NativeKernel::Auto;

  /**
   * Tokens; an upper bound of seq_lens, 0 for the block table's width. It may
   * size a launch, never the result; on the CPU a longer sequence is an error
   * at evaluation. It is a constant of a compiled function: under mx::compile
   * give the bound of all calls, or 0.
   */
  int max_seq_len = 0;

  /**
   * KV splits of a sequence; 0: QUIRE_NUM_SPLITS, else chosen. A forced value
   * makes each row's result independent of the rest of the batch, bit for
   * bit. Gather has no splits.
   */
  int num_splits = 0;
};

/**
 * Attention of one decode step over a paged KV cache:
 * out[i] = softmax(scale * q[i] @ K_i^T) @ V_i, where K_i, V_i are the first
 * seq_lens[i] tokens of sequence i's blocks.
 *
 *   q            [num_seqs, num_q_heads, head_dim]     f32 | f16 | bf16
 *   k_cache      [num_blocks, block_size, num_kv_heads, head_dim]
 *                                                      f32 | f16 | bf16
 *   v_cache      as k_cache
 *   block_table  [num_seqs, max_blocks_per_seq]        int32; entries past a
 *                sequence's last block are not followed
 *   seq_lens     [num_seqs]                            int32, tokens
 *   returns      [num_seqs, num_q_heads, head_dim]     dtype of q; zero where
 *                seq_lens[i] is 0
 *
 * The dtype of the caches is independent of q's. Query head h attends to KV
 * head h / (num_q_heads / num_kv_heads). block_size is a power of two from 8
 * to 256; head_dim is any for gather, and a fused kernel's list otherwise.
 * q, block_table and seq_lens may have any strides. What the caches hold past
 * a sequence's length, in other blocks and in tail slots, is never part of
 * the result, NaN included.
 *
 * Throws std::invalid_argument for wrong shapes, dtypes and options when the
 * op is built. On the CPU, block ids, lengths and the caches' layout (row
 * contiguous for a fused kernel) are checked at evaluation, which then throws
 * std::runtime_error; on GPUs only with QUIRE_CHECKS=1.
 *
 * Fused kernels accumulate logits and output in float32 and never copy the
 * caches. Gather copies each sequence's K and V, computes in float32 on the
 * CPU and in the promoted dtype of q and the caches on a GPU, and calls
 * mx::fast::scaled_dot_product_attention; it is also the reference. Its work
 * grows with the table's width, and so may, in the last bits, its rounding.
 *
 * Not differentiable, and no vmap: batch through num_seqs.
 */
QUIRE_API mlx::core::array paged_attention(
    const mlx::core::array& q,
    const mlx::core::array& k_cache,
    const mlx::core::array& v_cache,
    const mlx::core::array& block_table,
    const mlx::core::array& seq_lens,
    float scale,
    const PagedAttentionOptions& options = {},
    mlx::core::StreamOrDevice s = {});

/**
 * Writes new tokens into the caches, in place: token i of k and v goes to slot
 * slot_mapping[i] = block_id * block_size + offset; -1 skips the token.
 *
 *   k_cache       [num_blocks, block_size, num_kv_heads, head_dim]
 *                                                      f32 | f16 | bf16
 *   v_cache       as k_cache
 *   k, v          [num_tokens, num_kv_heads, head_dim] f32 | f16 | bf16, one
 *                 dtype, rounded to the cache's (to nearest even)
 *   slot_mapping  [num_tokens]                         int64
 *   returns       the caches after the write: the same buffers
 *
 * Use the caches linearly: replace both handles by the results, at once, and
 * let whatever is to see the new tokens read the results. The old handles
 * share the buffer; an op built on them earlier is right as long as it reads
 * no slot that is written here, and such an op is not ordered against this
 * one. A result that nothing evaluated depends on is not written: include it
 * in the mx::eval of the step. Two tokens of one call must not share a slot.
 *
 * Throws std::invalid_argument for wrong shapes and dtypes when the op is
 * built. On the CPU, and on GPUs with QUIRE_CHECKS=1, a slot outside the
 * cache, other than -1, throws std::runtime_error at evaluation, before
 * anything is written; otherwise it is skipped. A cache that is not row
 * contiguous throws at evaluation, too.
 */
QUIRE_API std::pair<mlx::core::array, mlx::core::array> kv_append(
    const mlx::core::array& k_cache,
    const mlx::core::array& v_cache,
    const mlx::core::array& k,
    const mlx::core::array& v,
    const mlx::core::array& slot_mapping,
    mlx::core::StreamOrDevice s = {});

/**
 * Copies whole blocks within the caches, in place, as if one copy were done
 * after the other: what copy-on-write asks for before a step's tokens are
 * written.
 *
 *   k_cache, v_cache  [num_blocks, block_size, num_kv_heads, head_dim]
 *                                                      f32 | f16 | bf16
 *   block_copies      [num_copies, 2]                  int32: source,
 *                     destination
 *   returns           the caches after the copies: the same buffers
 *
 * A block may be the destination of one copy and the source or destination of
 * another. The caches are used linearly and errors are reported as in
 * kv_append, those of block ids among them.
 */
QUIRE_API std::pair<mlx::core::array, mlx::core::array> copy_blocks(
    const mlx::core::array& k_cache,
    const mlx::core::array& v_cache,
    const mlx::core::array& block_copies,
    mlx::core::StreamOrDevice s = {});

}  // namespace quire
