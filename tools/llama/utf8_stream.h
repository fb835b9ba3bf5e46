#pragma once

#include <string>
#include <string_view>

namespace quire::tools {

/**
 * Makes valid UTF-8 of bytes that arrive in pieces cut anywhere.
 *
 * Whole characters come out as soon as their last byte arrives; a byte sequence
 * that can't be one comes out as U+FFFD, once for each maximal part of a
 * character (Unicode 15, section 3.9). So the result does not depend on where
 * the pieces were cut.
 */
class Utf8Stream {
 public:
  /** What is complete after these bytes. */
  std::string push(std::string_view bytes);
  /** What is left at the end: nothing, or U+FFFD for half a character. */
  std::string finish();

 private:
  std::string pending_;  // a proper prefix of a valid character
};

/** Control characters, which could drive a terminal, as U+FFFD; line feeds and
 * tabs stay. Expects valid UTF-8. */
std::string without_control_characters(std::string_view text);

}  // namespace quire::tools
