#pragma once

#include <stdexcept>

namespace quire::tools {

/** SIGINT or SIGTERM came: keep what is done, and end with exit code 1. */
struct Interrupted : std::runtime_error {
  Interrupted() : std::runtime_error("Interrupted.") {}
};

/** From now on the first SIGINT or SIGTERM sets a flag that work must ask for
 * at least twice a second; the second one kills. */
void catch_interrupts();

bool is_interrupted();
void throw_if_interrupted();

}  // namespace quire::tools
