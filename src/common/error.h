#pragma once

#include <sstream>
#include <stdexcept>
#include <string_view>

namespace quire {

/** Throws std::invalid_argument("[op] parts..."). Out of line, so that the
 * message costs its callers nothing while it is not needed. */
template <typename... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void throw_invalid(
    std::string_view op,
    const Parts&... parts) {
  std::ostringstream message;
  message << '[' << op << "] ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

/**
 * Throws std::invalid_argument("[op] parts...") unless `ok`.
 *
 * The parts read as one sentence: the requirement in the caller's words, then
 * the value that broke it ("...; got 12 and 8.").
 */
template <typename... Parts>
void require(bool ok, std::string_view op, const Parts&... parts) {
  if (!ok) [[unlikely]] {
    throw_invalid(op, parts...);
  }
}

}  // namespace quire
