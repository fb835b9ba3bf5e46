#pragma once

#include <functional>
#include <optional>
#include <span>

#include "tools/llama/kv_store.h"
#include "tools/llama/model.h"

namespace quire::tools {

/** Tokens of a prompt that go through the model at once. */
inline constexpr int kPrefillChunk = 256;

/**
 * Runs a model over the sequences of a store, one evaluated step at a time.
 *
 * Both calls return logits [num_seqs, vocab_size] in the model's dtype,
 * evaluated, or nullopt if the cache is full; then the sequences are as they
 * were before the step that found it so.
 */
class Runner {
 public:
  /** `poll` is called between the layers of a prefill and before each decode
   * step; it may throw to stop. */
  Runner(const Model& model, KvStore& store, std::function<void()> poll);

  /** Appends a prompt to one sequence, in chunks; `progress` is called with the
   * number of tokens done. Requires: at least one token. */
  std::optional<mx::array> prefill(
      int sequence,
      std::span<const int> tokens,
      const std::function<void(int)>& progress);

  /** Appends one token to each sequence; the sequences may differ in length. */
  std::optional<mx::array> decode(
      std::span<const int> sequences,
      std::span<const int> tokens);

 private:
  const Model& model_;
  KvStore& store_;
  std::function<void()> poll_;
};

}  // namespace quire::tools
