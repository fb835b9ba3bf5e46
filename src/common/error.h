#pragma once

#include <sstream>
#include <stdexcept>
#include <string_view>

namespace quire {

/**
 * Throws std::invalid_argument("[op] parts...") unless `ok`.
 *
 * The parts read as one sentence: the requirement in the caller's words, then
 * the value that broke it ("...; got 12 and 8.").
 */
template <typename... Parts>
void require(bool ok, std::string_view op, const Parts&... parts) {
  if (ok) [[likely]] {
    return;
  }
  std::ostringstream message;
  message << '[' << op << "] ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace quire
