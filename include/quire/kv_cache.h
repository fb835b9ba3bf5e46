#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <mlx/mlx.h>

#include "quire/api.h"
#include "quire/ops.h"
#include "quire/sequence_cache.h"

namespace quire {

class StepTables;

struct KvCacheOptions {
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int num_blocks = 0;
  int block_size = kDefaultBlockSize;  // tokens, a power of two from 8 to 256
  mlx::core::Dtype dtype = mlx::core::float16;  // or float32, bfloat16
};

/**
 * Bytes of the cache arrays that KvCache(options) allocates.
 * Throws std::invalid_argument for options that KvCache refuses.
 */
QUIRE_API std::int64_t kv_cache_bytes(const KvCacheOptions& options);

/** How much memory a new cache may take, and what sets that limit. */
struct MemoryRoom {
  std::int64_t bytes;
  std::string limit;  // in a user's words: "the available memory"
};

/**
 * The smallest of: the system's available memory, the limits of the control
 * groups that the process is in less what they use, the address-space limit
 * (ulimit -v), and for a GPU stream MLX's memory limit. Page cache counts as
 * free, because the kernel gives it up. nullopt where nothing is known.
 */
QUIRE_API std::optional<MemoryRoom> memory_room(
    mlx::core::StreamOrDevice s = {});

/** Arrays of one decode or prefill step, the same for every layer. */
struct CacheStep {
  std::int64_t id;                // of BlockPool::begin_step()
  mlx::core::array block_table;   // [num_seqs, max_blocks_per_seq] int32
  mlx::core::array seq_lens;      // [num_seqs] int32, new tokens included
  mlx::core::array slot_mapping;  // [sum of new tokens] int64
  mlx::core::array block_copies;  // [num_copies, 2] int32
  int max_seq_len;                // the longest of seq_lens
};

/**
 * The cache arrays of all layers, the pool of their blocks, and the arrays of
 * each step.
 *
 * A step, from its sequences to its result:
 *
 *   const std::optional<CacheStep> step = cache.begin_step(sequences, counts);
 *   for each layer: cache.append(layer, *step, k, v);
 *                   x = paged_attention(q, cache.k_cache(layer), ...);
 *   mx::eval(x);                  // or mx::async_eval, and mx::eval later
 *   cache.complete_step(*step);   // after the evaluation has completed
 *
 * begin_step() is what appends to the sequences: it carries out their copies
 * on write and marks the step as in flight, and blocks that are released from
 * then on are not reused before complete_step(). Several steps may be in
 * flight. A step that is given up without being evaluated must be completed,
 * too; its sequences then hold tokens without contents and must be truncated
 * or released.
 *
 * The arrays of a step do not change once made: later steps may be built, and
 * sequences changed or destroyed, while it is in flight.
 *
 * Not thread-safe: one thread builds and evaluates the steps of a cache, on
 * one stream. The cache must outlive its sequences.
 */
class QUIRE_API KvCache {
 public:
  /**
   * Allocates 2 * num_layers arrays [num_blocks, block_size, num_kv_heads,
   * head_dim], on the device of `s`. Contents are unspecified. On the CPU the
   * system hands out the pages as they are first written; the size is charged
   * against memory_room() here.
   *
   * Throws std::invalid_argument for options out of range, and
   * std::runtime_error, before anything is allocated, if the cache is larger
   * than memory_room(); the message has both figures.
   */
  explicit KvCache(
      const KvCacheOptions& options,
      mlx::core::StreamOrDevice s = {});
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  const KvCacheOptions& options() const;
  std::int64_t memory_bytes() const;
  BlockPool& pool();

  /** An empty sequence of this cache. */
  SequenceCache make_sequence();

  /**
   * Appends num_new_tokens[i] tokens to each sequence and makes the arrays of
   * the step that will write and read them; nullopt, with nothing changed,
   * when the pool has too few blocks. Row i of the arrays is sequences[i].
   * num_new_tokens[i] may be 0.
   *
   * Tables are incremental: a row costs the entries that changed since the
   * step before last or so. Columns are rounded up by at most an eighth, so
   * that shapes stay the same for many steps.
   *
   * Throws std::invalid_argument for sequences of another pool, one twice,
   * negative counts, or spans of different sizes.
   */
  [[nodiscard]] std::optional<CacheStep> begin_step(
      std::span<SequenceCache* const> sequences,
      std::span<const int> num_new_tokens);

  /**
   * Copies the blocks that the step says and writes the step's k and v
   * [num_tokens, num_kv_heads, head_dim] of one layer, in place: token order
   * is that of the sequences. Lazy, as every op of MLX: what reads
   * k_cache(layer) afterwards sees the tokens. Errors as in kv_append().
   */
  void append(
      int layer,
      const CacheStep& step,
      const mlx::core::array& k,
      const mlx::core::array& v,
      mlx::core::StreamOrDevice s = {});

  /** The arrays of a layer after all appends so far. */
  const mlx::core::array& k_cache(int layer) const;
  const mlx::core::array& v_cache(int layer) const;

  /**
   * The arrays of all layers. Evaluate them with a step in which nothing
   * evaluated reads some layer's cache; otherwise its tokens are not written.
   */
  std::vector<mlx::core::array> arrays() const;

  /**
   * Says that the work of this step and of all before it has been evaluated
   * and has completed (mx::eval has returned): released blocks may be reused.
   */
  void complete_step(const CacheStep& step);

 private:
  void require_layer(const char* op, int layer) const;

  KvCacheOptions options_;
  BlockPool pool_;
  std::vector<mlx::core::array> k_caches_;  // [num_layers]
  std::vector<mlx::core::array> v_caches_;  // [num_layers]
  std::unique_ptr<StepTables> tables_;
};

}  // namespace quire
