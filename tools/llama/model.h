#pragma once

#include <functional>
#include <span>
#include <vector>

#include <mlx/mlx.h>

#include "tools/llama/gguf.h"
#include "tools/llama/kv_store.h"

namespace quire::tools {

/** Sizes of a Llama-architecture model, as its GGUF file states them. */
struct ModelConfig {
  int num_layers;
  int hidden_size;
  int ffn_size;
  int num_q_heads;
  int num_kv_heads;  // llama.attention.head_count_kv; default num_q_heads
  int head_dim;      // llama.attention.key_length; default hidden_size /
                     // num_q_heads
  int context_length;
  int vocab_size;  // rows of the embedding; may exceed the tokenizer's tokens
  float rms_epsilon;
  double rope_base;  // llama.rope.freq_base; default 10000
};

/** Reads and checks a model's keys; std::invalid_argument names what is wrong
 * or not supported. */
ModelConfig read_model_config(const GgufFile& file);

/**
 * A Llama-architecture decoder: RMSNorm, rotary embedding, grouped-query
 * attention, SwiGLU; the output matrix is the embedding where the file has no
 * other.
 */
class Model {
 public:
  /**
   * Reads all weights and dequantises them, once, to `dtype`. `progress` is
   * called with the share done, 0 to 1, and may throw to stop. Throws
   * std::invalid_argument for a tensor that is missing, not known, or of a
   * shape that the keys contradict.
   */
  Model(
      const GgufFile& file,
      mx::Dtype dtype,
      const std::function<void(double)>& progress);

  const ModelConfig& config() const {
    return config_;
  }

  /**
   * Logits that follow each sequence's newest token. Appends the step's tokens
   * to the store; lazy, so the caller evaluates before KvStore::end_step.
   *
   *   sequences  of the store, which has begun a step for them
   *   tokens     [num_seqs, num_tokens], row-major
   *   after_layer  called with each layer's result; may evaluate it, or throw
   *   returns    [num_seqs, vocab_size], dtype of the model
   */
  mx::array forward(
      std::span<const int> sequences,
      std::span<const int> tokens,
      KvStore& store,
      const std::function<void(const mx::array&)>& after_layer) const;

 private:
  struct Layer {
    mx::array attention_norm;
    mx::array
        qkv;  // [hidden_size, (num_q_heads + 2 * num_kv_heads) * head_dim]
    mx::array attention_out;
    mx::array ffn_norm;
    mx::array gate_up;  // [hidden_size, 2 * ffn_size]
    mx::array down;
  };

  mx::array attention(
      int layer,
      const mx::array& x,
      const mx::array& cos,
      const mx::array& sin,
      KvStore& store) const;
  mx::array feed_forward(const Layer& layer, const mx::array& x) const;
  mx::array
  rotate(const mx::array& x, const mx::array& cos, const mx::array& sin) const;

  ModelConfig config_;
  mx::Dtype dtype_;
  mx::array embedding_;  // [vocab_size, hidden_size]
  mx::array output_norm_;
  mx::array output_;        // [hidden_size, vocab_size]
  mx::array quarter_turn_;  // [head_dim, head_dim]
  std::vector<Layer> layers_;
};

}  // namespace quire::tools
