#include "tools/llama/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <queue>
#include <stdexcept>

#include "common/error.h"

namespace quire::tools {
namespace {

// Token types of GGUF that Quire treats apart.
constexpr int kUnknown = 2;
constexpr int kControl = 3;
constexpr int kUserDefined = 4;
constexpr int kUnused = 5;

// Unicode's White_Space. PCRE2's \s adds U+180E, which is none.
#define QUIRE_SPACE                                                         \
  "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}" \
  "\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

constexpr const char* kNumberPattern = "\\p{N}|\\P{N}+";
// GPT-2's pattern (Radford et al., 2019, encoder.py).
constexpr const char* kWordPattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+"
    "| ?[^" QUIRE_SPACE
    "\\p{L}\\p{N}]+"
    "|[" QUIRE_SPACE "]+(?![^" QUIRE_SPACE
    "])"
    "|[" QUIRE_SPACE "]+";

/** A compiled pattern, and what it matches in a text. */
class Pattern {
 public:
  explicit Pattern(const char* text) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(
        reinterpret_cast<PCRE2_SPTR>(text),
        PCRE2_ZERO_TERMINATED,
        PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF,
        &error,
        &offset,
        nullptr));
    if (!code_) {
      throw std::runtime_error("[tokenizer] PCRE2 lacks Unicode support.");
    }
    // Where there is no JIT, matching interprets the pattern instead.
    (void)pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
  }

  /** Calls `piece` for each match, and for each single byte between matches,
   * which can't belong to a valid character. */
  template <typename Piece>
  void split(std::string_view text, const Piece& piece) const {
    const std::unique_ptr<pcre2_match_data, Free> match(
        pcre2_match_data_create(1, nullptr));
    std::size_t done = 0;
    const auto bytes_until = [&](std::size_t end) {
      for (; done < end; ++done) {
        piece(text.substr(done, 1));
      }
    };
    while (done < text.size()) {
      const int count = pcre2_match(
          code_.get(),
          reinterpret_cast<PCRE2_SPTR>(text.data()),
          text.size(),
          done,
          0,
          match.get(),
          nullptr);
      if (count == PCRE2_ERROR_NOMATCH) {
        break;
      }
      if (count < 0) {
        throw std::runtime_error(
            "[tokenizer] PCRE2 failed with error " + std::to_string(count) +
            ".");
      }
      const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(match.get());
      bytes_until(ends[0]);
      piece(text.substr(ends[0], ends[1] - ends[0]));
      done = ends[1];
    }
    bytes_until(text.size());
  }

 private:
  struct Free {
    void operator()(pcre2_code* code) const {
      pcre2_code_free(code);
    }
    void operator()(pcre2_match_data* data) const {
      pcre2_match_data_free(data);
    }
  };
  std::unique_ptr<pcre2_code, Free> code_;
};

// UTF-8 of a character below U+0800.
std::string utf8(unsigned code_point) {
  if (code_point < 0x80) {
    return {static_cast<char>(code_point)};
  }
  return {
      static_cast<char>(0xC0u | (code_point >> 6)),
      static_cast<char>(0x80u | (code_point & 0x3Fu))};
}

// The printable character that byte-level BPE writes for each byte: the byte
// itself where Latin-1 has a visible character, else U+0100 and up.
const std::array<std::string, 256>& byte_characters() {
  static const auto table = [] {
    std::array<std::string, 256> result;
    unsigned next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool is_visible =
          (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
      result[byte] = utf8(is_visible ? byte : next++);
    }
    return result;
  }();
  return table;
}

std::uint64_t pair_key(int left, int right) {
  return (std::uint64_t{static_cast<std::uint32_t>(left)} << 32) |
         static_cast<std::uint32_t>(right);
}

}  // namespace

class Tokenizer::Splitter {
 public:
  template <typename Piece>
  void split(std::string_view text, const Piece& piece) const {
    numbers_.split(text, [&](std::string_view segment) {
      // Each segment alone: the word pattern must not look past its end.
      words_.split(segment, piece);
    });
  }

 private:
  Pattern numbers_{kNumberPattern};
  Pattern words_{kWordPattern};
};

Tokenizer::Tokenizer(const GgufFile& file)
    : splitter_(std::make_unique<const Splitter>()) {
  const auto require_name = [&](const char* key, std::string_view name) {
    const std::string_view value = file.string(key);
    require(
        value == name,
        file.path(),
        "Key \"",
        key,
        "\" must be \"",
        name,
        "\"; got \"",
        value.substr(0, 80),
        "\".");
  };
  require_name("tokenizer.ggml.model", "gpt2");
  require_name("tokenizer.ggml.pre", "smollm");

  texts_ = file.strings("tokenizer.ggml.tokens");
  types_ = file.int32s("tokenizer.ggml.token_type");
  require(
      !texts_.empty() &&
          texts_.size() <
              static_cast<std::size_t>(std::numeric_limits<int>::max()) &&
          texts_.size() == types_.size(),
      file.path(),
      "Keys \"tokenizer.ggml.tokens\" and \"tokenizer.ggml.token_type\" must "
      "have the same number of elements, at least 1; got ",
      texts_.size(),
      " and ",
      types_.size(),
      ".");
  bos_id_ = special_id(file, "tokenizer.ggml.bos_token_id");
  eos_id_ = special_id(file, "tokenizer.ggml.eos_token_id");
  const auto unknown_id = special_id(file, "tokenizer.ggml.unknown_token_id");
  if (!file.find_bool("tokenizer.ggml.add_bos_token").value_or(false)) {
    bos_id_.reset();
  }

  std::unordered_map<std::string_view, int> ids;
  ids.reserve(texts_.size());
  for (int id = 0; id < num_tokens(); ++id) {
    const auto i = static_cast<std::size_t>(id);
    ids.emplace(texts_[i], id);
    const bool is_special = types_[i] == kControl || types_[i] == kUserDefined;
    if (is_special && !texts_[i].empty()) {
      special_.emplace_back(texts_[i], id);
    }
  }
  std::stable_sort(
      special_.begin(), special_.end(), [](const auto& a, const auto& b) {
        return a.first.size() > b.first.size();
      });

  const auto& characters = byte_characters();
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const auto at = ids.find(characters[byte]);
    const int id = at != ids.end() ? at->second : unknown_id.value_or(-1);
    byte_ids_.push_back(id);
    bytes_of_chars_.emplace(characters[byte], static_cast<unsigned char>(byte));
  }

  int rank = 0;
  const auto merges = file.strings("tokenizer.ggml.merges");
  merges_.reserve(merges.size());
  std::string joined;
  for (const std::string_view merge : merges) {
    const auto space = merge.find(' ', 1);
    const auto find = [&](std::string_view text) {
      const auto at = ids.find(text);
      require(
          space != std::string_view::npos && at != ids.end(),
          file.path(),
          "Key \"tokenizer.ggml.merges\" must hold pairs of tokens that join "
          "to a token; got \"",
          merge.substr(0, 80),
          "\" at index ",
          rank,
          ".");
      return at->second;
    };
    const std::string_view left = merge.substr(0, space);
    const std::string_view right =
        space < merge.size() ? merge.substr(space + 1) : std::string_view();
    joined = left;
    joined += right;
    const int id = find(joined);
    merges_.emplace(pair_key(find(left), find(right)), Merge{rank, id});
    ++rank;
  }
}

Tokenizer::~Tokenizer() = default;

std::optional<int> Tokenizer::special_id(const GgufFile& file, const char* key)
    const {
  const auto id = file.find_integer(key, 0, num_tokens() - 1);
  return id ? std::optional(static_cast<int>(*id)) : std::nullopt;
}

std::vector<int> Tokenizer::encode(std::string_view text) const {
  std::vector<int> ids;
  std::size_t plain_begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto token = std::find_if(
        special_.begin(), special_.end(), [&](const auto& special) {
          return text.compare(at, special.first.size(), special.first) == 0;
        });
    if (token == special_.end()) {
      ++at;
      continue;
    }
    encode_plain(text.substr(plain_begin, at - plain_begin), ids);
    ids.push_back(token->second);
    at += token->first.size();
    plain_begin = at;
  }
  encode_plain(text.substr(plain_begin), ids);
  if (bos_id_ && (ids.empty() || ids.front() != *bos_id_)) {
    ids.insert(ids.begin(), *bos_id_);
  }
  return ids;
}

void Tokenizer::encode_plain(std::string_view text, std::vector<int>& ids)
    const {
  splitter_->split(
      text, [&](std::string_view piece) { encode_piece(piece, ids); });
}

void Tokenizer::encode_piece(std::string_view piece, std::vector<int>& ids)
    const {
  // Symbols form a linked list, so that a merge is O(1); candidates wait in a
  // heap by (rank, position) and are stale when a symbol of theirs has changed.
  struct Symbol {
    int id;
    int previous;
    int next;
  };
  struct Candidate {
    int rank;
    int left;
    int right;
    int left_id;
    int right_id;
    int merged_id;

    bool operator>(const Candidate& other) const {
      return std::pair(rank, left) > std::pair(other.rank, other.left);
    }
  };

  const int num_symbols = static_cast<int>(piece.size());
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  for (int i = 0; i < num_symbols; ++i) {
    const auto byte =
        static_cast<unsigned char>(piece[static_cast<std::size_t>(i)]);
    require(
        byte_ids_[byte] >= 0,
        "tokenizer",
        "The model has no token for byte ",
        int{byte},
        " and no unknown token.");
    symbols.push_back(
        {byte_ids_[byte], i - 1, i + 1 < num_symbols ? i + 1 : -1});
  }
  const auto symbol = [&](int i) -> Symbol& {
    return symbols[static_cast<std::size_t>(i)];
  };

  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](int left, int right) {
    if (left < 0 || right < 0) {
      return;
    }
    const int left_id = symbol(left).id;
    const int right_id = symbol(right).id;
    const auto at = merges_.find(pair_key(left_id, right_id));
    if (at != merges_.end()) {
      queue.push(
          {at->second.rank, left, right, left_id, right_id, at->second.id});
    }
  };
  for (int i = 0; i + 1 < num_symbols; ++i) {
    offer(i, i + 1);
  }
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbol(best.left);
    Symbol& right = symbol(best.right);
    if (left.id != best.left_id || right.id != best.right_id ||
        left.next != best.right) {
      continue;
    }
    left.id = best.merged_id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) {
      symbol(left.next).previous = best.left;
    }
    offer(left.previous, best.left);
    offer(best.left, left.next);
  }
  for (int i = 0; i >= 0 && i < num_symbols; i = symbol(i).next) {
    ids.push_back(symbol(i).id);
  }
}

std::string Tokenizer::decode(int id) const {
  if (id < 0 || id >= num_tokens()) {
    return {};
  }
  const std::string_view text = texts_[static_cast<std::size_t>(id)];
  switch (types_[static_cast<std::size_t>(id)]) {
    case kUnknown:
    case kControl:
    case kUnused:
      return {};
    case kUserDefined:
      return std::string(text);
    default:
      break;
  }
  // Every character of a byte-level token has one or two bytes.
  std::string result;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length =
        static_cast<unsigned char>(text[i]) < 0x80 ? 1 : 2;
    const auto at = bytes_of_chars_.find(text.substr(i, length));
    if (at == bytes_of_chars_.end()) {
      return std::string(text);
    }
    result += static_cast<char>(at->second);
    i += length;
  }
  return result;
}

}  // namespace quire::tools
