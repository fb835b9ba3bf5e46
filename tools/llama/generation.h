#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tools/llama/runner.h"
#include "tools/llama/tokenizer.h"

namespace quire::tools {

/** Why a sequence ended. */
enum class Finish { Eos, Length, CacheFull, Interrupted };

const char* finish_text(Finish finish);

/** What came of a prompt so far; whole at any time, also after an exception. */
struct Generation {
  std::vector<int> token_ids;  // an end-of-sequence token is the last
  std::string text;            // valid UTF-8
  Finish finish = Finish::Interrupted;
  double prefill_seconds = 0;
  double decode_seconds = 0;  // of all tokens but the first
};

struct GenerationOptions {
  int max_tokens;
  bool ignore_eos;
};

/** The most likely token of each row of logits [num_seqs, vocab_size], among
 * the first num_tokens: an embedding may have more rows than there are tokens.
 */
std::vector<int> pick_greedy(const mx::array& logits, int num_tokens);

/**
 * Prefills one new sequence with a prompt and decodes greedily until the end of
 * the sequence, the limit, the model's context or the cache.
 *
 * `on_prefill` is called with the number of prompt tokens done; `on_text` with
 * each piece of text, of which the whole is `result.text`. Exceptions of these
 * and of the runner's poll pass through, and `result` holds what was done.
 */
void generate(
    const Model& model,
    const Tokenizer& tokenizer,
    KvStore& store,
    std::span<const int> prompt,
    const GenerationOptions& options,
    const std::function<void()>& poll,
    const std::function<void(int)>& on_prefill,
    const std::function<void(const std::string&)>& on_text,
    Generation& result);

}  // namespace quire::tools
