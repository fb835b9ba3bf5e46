#pragma once

#include <cstdint>
#include <span>
#include <string>

#include <mlx/mlx.h>

namespace quire::tools {

namespace mx = mlx::core;

/** What a run says about its cache. */
struct CacheReport {
  std::string kind;  // "paged" or "dense"
  mx::Dtype kv_dtype = mx::float32;
  int block_size = 0;  // tokens; 0 for a dense cache, as are the next three
  int blocks_used_peak = 0;
  int blocks_shared_peak = 0;
  int blocks_total = 0;
  std::int64_t bytes = 0;
};

/**
 * Keys and values of the sequences that a model decodes, and attention over
 * them: the part of a model runner that differs between a paged and a dense
 * cache.
 *
 * A step appends the same number of tokens to each of some sequences:
 * begin_step, then attend once for each layer in order, then end_step when what
 * attend returned has been evaluated.
 */
class KvStore {
 public:
  virtual ~KvStore() = default;

  /** Index of a new, empty sequence. */
  virtual int add_sequence() = 0;
  virtual int seq_len(int sequence) const = 0;

  /**
   * Makes room for num_tokens more tokens in each sequence; false, and nothing
   * changed, if the cache is full. Requires: num_tokens is 1, or there is one
   * sequence.
   */
  [[nodiscard]] virtual bool begin_step(
      std::span<const int> sequences,
      int num_tokens) = 0;

  /**
   * Stores the step's keys and values of one layer and returns causal
   * attention over all tokens of each sequence so far.
   *
   *   q        [num_seqs, num_tokens, num_q_heads, head_dim]
   *   k, v     [num_seqs, num_tokens, num_kv_heads, head_dim]
   *   returns  [num_seqs, num_tokens, num_q_heads * head_dim], dtype of q
   */
  virtual mx::array attend(
      int layer,
      const mx::array& q,
      const mx::array& k,
      const mx::array& v) = 0;

  virtual void end_step() = 0;

  virtual CacheReport report() const = 0;
};

}  // namespace quire::tools
