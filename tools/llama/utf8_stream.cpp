#include "tools/llama/utf8_stream.h"

#include <cstddef>

namespace quire::tools {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct ByteRange {
  unsigned char first;
  unsigned char last;

  bool contains(unsigned char byte) const {
    return byte >= first && byte <= last;
  }
};

// Length of the character that a byte begins, 0 if it begins none, and what
// may follow it (Unicode 15, table 3-7). Later bytes are always 80..BF.
struct Lead {
  std::size_t length;
  ByteRange second;
};

Lead lead_of(unsigned char byte) {
  if (byte < 0x80) {
    return {1, {0, 0}};
  }
  if (byte >= 0xC2 && byte <= 0xDF) {
    return {2, {0x80, 0xBF}};
  }
  if (byte >= 0xE0 && byte <= 0xEF) {
    return {
        3,
        {static_cast<unsigned char>(byte == 0xE0 ? 0xA0 : 0x80),
         static_cast<unsigned char>(byte == 0xED ? 0x9F : 0xBF)}};
  }
  if (byte >= 0xF0 && byte <= 0xF4) {
    return {
        4,
        {static_cast<unsigned char>(byte == 0xF0 ? 0x90 : 0x80),
         static_cast<unsigned char>(byte == 0xF4 ? 0x8F : 0xBF)}};
  }
  return {0, {0, 0}};
}

}  // namespace

std::string Utf8Stream::push(std::string_view bytes) {
  std::string result;
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    if (!pending_.empty()) {
      const Lead lead = lead_of(static_cast<unsigned char>(pending_[0]));
      const ByteRange next =
          pending_.size() == 1 ? lead.second : ByteRange{0x80, 0xBF};
      if (next.contains(byte)) {
        pending_ += c;
        if (pending_.size() == lead.length) {
          result += pending_;
          pending_.clear();
        }
        continue;
      }
      result += kReplacement;
      pending_.clear();
    }
    const Lead lead = lead_of(byte);
    if (lead.length == 1) {
      result += c;
    } else if (lead.length == 0) {
      result += kReplacement;
    } else {
      pending_ = c;
    }
  }
  return result;
}

std::string Utf8Stream::finish() {
  const bool is_cut = !pending_.empty();
  pending_.clear();
  return is_cut ? std::string(kReplacement) : std::string();
}

std::string without_control_characters(std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    // C1 controls, U+0080 to U+009F, are C2 80 to C2 9F.
    const bool is_c1 = byte == 0xC2 && i + 1 < text.size() &&
                       static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if (is_c1 || byte == 0x7F ||
        (byte < 0x20 && byte != '\n' && byte != '\t')) {
      result += kReplacement;
      i += is_c1 ? 1 : 0;
    } else {
      result += text[i];
    }
  }
  return result;
}

}  // namespace quire::tools
