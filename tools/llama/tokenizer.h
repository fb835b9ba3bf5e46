#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tools/llama/gguf.h"

namespace quire::tools {

/**
 * Byte-level BPE as GPT-2 introduced it, built from a GGUF file's metadata
 * (tokenizer.ggml.model "gpt2", tokenizer.ggml.pre "smollm").
 *
 * Text is cut at control tokens' texts, then around each single number
 * character (Unicode N), then by GPT-2's pattern; each piece's bytes become
 * symbols that are merged in order of the merges' ranks. Any bytes are
 * accepted, NUL and invalid UTF-8 included; a byte that has no token becomes
 * the unknown token.
 *
 * Keeps views into the file, which must live as long.
 */
class Tokenizer {
 public:
  /** Throws std::invalid_argument naming the key that cannot be used. */
  explicit Tokenizer(const GgufFile& file);
  ~Tokenizer();

  int num_tokens() const {
    return static_cast<int>(texts_.size());
  }
  std::optional<int> eos_id() const {
    return eos_id_;
  }

  /**
   * Token ids of a text. Texts of control tokens ("<|im_start|>") become those
   * tokens. Begins with the beginning-of-sequence token if the file asks for it
   * (tokenizer.ggml.add_bos_token) and the text does not begin with it.
   */
  std::vector<int> encode(std::string_view text) const;

  /**
   * The bytes that a token stands for, which may be part of a character. None
   * for control, unknown and unused tokens, and for an id with no token.
   */
  std::string decode(int id) const;

 private:
  struct Merge {
    int rank;
    int id;
  };
  class Splitter;

  std::optional<int> special_id(const GgufFile& file, const char* key) const;
  void encode_plain(std::string_view text, std::vector<int>& ids) const;
  void encode_piece(std::string_view piece, std::vector<int>& ids) const;

  std::vector<std::string_view> texts_;
  std::vector<std::int32_t> types_;
  std::vector<std::pair<std::string_view, int>> special_;  // longest first
  std::unordered_map<std::uint64_t, Merge> merges_;  // by (left id, right id)
  std::vector<int> byte_ids_;                        // 256
  std::unordered_map<std::string_view, unsigned char> bytes_of_chars_;
  std::optional<int> bos_id_;
  std::optional<int> eos_id_;
  std::unique_ptr<const Splitter> splitter_;
};

}  // namespace quire::tools
