#include "tools/llama/generation.h"

#include <algorithm>
#include <chrono>

#include "tools/llama/utf8_stream.h"

namespace quire::tools {
namespace {

/** Adds the time that it lives to a sum, also when an exception ends it. */
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds)
      : seconds_(seconds), begin_(std::chrono::steady_clock::now()) {}
  ~Stopwatch() {
    seconds_ +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_)
            .count();
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& seconds_;
  std::chrono::steady_clock::time_point begin_;
};

}  // namespace

const char* finish_text(Finish finish) {
  switch (finish) {
    case Finish::Eos:
      return "eos";
    case Finish::Length:
      return "length";
    case Finish::CacheFull:
      return "cache_full";
    case Finish::Interrupted:
      return "interrupted";
  }
  return "?";
}

std::vector<int> pick_greedy(const mx::array& logits, int num_tokens) {
  const int num_seqs = logits.shape(0);
  const int end = std::min(num_tokens, logits.shape(1));
  auto ids = mx::astype(
      mx::argmax(mx::slice(logits, {0, 0}, {num_seqs, end}), -1), mx::int32);
  mx::eval(ids);
  return {ids.data<std::int32_t>(), ids.data<std::int32_t>() + num_seqs};
}

void generate(
    const Model& model,
    const Tokenizer& tokenizer,
    KvStore& store,
    std::span<const int> prompt,
    const GenerationOptions& options,
    const std::function<void()>& poll,
    const std::function<void(int)>& on_prefill,
    const std::function<void(const std::string&)>& on_text,
    Generation& result) {
  Runner runner(model, store, poll);
  const int sequence = store.add_sequence();
  Utf8Stream stream;
  const auto emit = [&](const std::string& text) {
    result.text += text;
    if (!text.empty()) {
      on_text(text);
    }
  };
  // Half a character at the end of an interrupted text is part of it too.
  struct FlushAtExit {
    Utf8Stream& stream;
    std::string& text;
    ~FlushAtExit() {
      text += stream.finish();
    }
  } const flush{stream, result.text};

  const auto next_id =
      [&](const std::optional<mx::array>& logits) -> std::optional<int> {
    if (!logits) {
      return std::nullopt;
    }
    return pick_greedy(*logits, tokenizer.num_tokens()).front();
  };

  std::optional<int> id;
  {
    const Stopwatch watch(result.prefill_seconds);
    id = next_id(runner.prefill(sequence, prompt, on_prefill));
  }
  while (true) {
    if (!id) {
      result.finish = Finish::CacheFull;
      break;
    }
    result.token_ids.push_back(*id);
    emit(stream.push(tokenizer.decode(*id)));
    if (id == tokenizer.eos_id() && !options.ignore_eos) {
      result.finish = Finish::Eos;
      break;
    }
    if (static_cast<int>(result.token_ids.size()) == options.max_tokens ||
        store.seq_len(sequence) == model.config().context_length) {
      result.finish = Finish::Length;
      break;
    }
    const Stopwatch watch(result.decode_seconds);
    const int token = *id;
    id = next_id(runner.decode({&sequence, 1}, {&token, 1}));
  }
  emit(stream.finish());
}

}  // namespace quire::tools
