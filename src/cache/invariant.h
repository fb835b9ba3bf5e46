#pragma once

#include <sstream>
#include <stdexcept>

namespace quire {

/** Throws std::logic_error("[op] parts...") unless `ok`: what a class says
 * about itself does not hold, which is a bug of ours. */
template <typename... Parts>
void ensure(bool ok, const char* op, const Parts&... parts) {
  if (ok) [[likely]] {
    return;
  }
  std::ostringstream message;
  message << '[' << op << "] ";
  (message << ... << parts);
  throw std::logic_error(message.str());
}

}  // namespace quire
