#include "tools/llama/runner.h"

#include <algorithm>
#include <utility>

namespace quire::tools {

Runner::Runner(const Model& model, KvStore& store, std::function<void()> poll)
    : model_(model), store_(store), poll_(std::move(poll)) {}

std::optional<mx::array> Runner::prefill(
    int sequence,
    std::span<const int> tokens,
    const std::function<void(int)>& progress) {
  const std::span sequences(&sequence, 1);
  std::optional<mx::array> logits;
  for (std::size_t begin = 0; begin < tokens.size(); begin += kPrefillChunk) {
    const auto chunk = tokens.subspan(
        begin, std::min<std::size_t>(kPrefillChunk, tokens.size() - begin));
    if (!store_.begin_step(sequences, static_cast<int>(chunk.size()))) {
      return std::nullopt;
    }
    // Layer by layer: a long chunk can be interrupted, and its scores never
    // take more memory than one layer's.
    logits =
        model_.forward(sequences, chunk, store_, [this](const mx::array& x) {
          mx::eval(x);
          poll_();
        });
    mx::eval(*logits);
    store_.end_step();
    progress(static_cast<int>(begin + chunk.size()));
  }
  return logits;
}

std::optional<mx::array> Runner::decode(
    std::span<const int> sequences,
    std::span<const int> tokens) {
  poll_();
  if (!store_.begin_step(sequences, 1)) {
    return std::nullopt;
  }
  const auto logits =
      model_.forward(sequences, tokens, store_, [](const mx::array&) {});
  mx::eval(logits);
  store_.end_step();
  return logits;
}

}  // namespace quire::tools
