// quire bench in a build without the fused kernels, and so without the roofs
// that its shares are taken of.
#include <stdexcept>

#include "tools/cli/command.h"

namespace quire::tools {

RunCommand configure_bench(CLI::App& app) {
  app.allow_extras();
  return [](const Session&) -> int {
    throw std::invalid_argument(
        "[bench] This build must have the fused kernels; it was made with "
        "QUIRE_WITH_NATIVE_KERNELS=OFF.");
  };
}

}  // namespace quire::tools
