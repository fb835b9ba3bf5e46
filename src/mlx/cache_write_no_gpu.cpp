// Takes the place of a GPU backend's file in a build without one.
#include <stdexcept>

#include "mlx/cache_write.h"

namespace quire {

KernelSupport gpu_supports_cache_write() {
  return {false, "this library was built without a GPU backend"};
}

void KvAppend::eval_gpu(
    const std::vector<mx::array>&,
    std::vector<mx::array>&) {
  throw std::logic_error("[kv_append] No GPU backend in this build.");
}

void CopyBlocks::eval_gpu(
    const std::vector<mx::array>&,
    std::vector<mx::array>&) {
  throw std::logic_error("[copy_blocks] No GPU backend in this build.");
}

}  // namespace quire
