// Takes the place of a GPU backend's file in a build without one.
#include <stdexcept>

#include "mlx/paged_attention.h"

namespace quire {

const char* gpu_kernel_name() {
  return "";
}

KernelSupport gpu_supports_paged_attention(const DecodeSignature&) {
  return {false, "this library was built without a fused kernel for the GPU"};
}

void PagedAttention::eval_gpu(
    const std::vector<mx::array>&,
    std::vector<mx::array>&) {
  throw std::logic_error("[paged_attention] No GPU kernel in this build.");
}

}  // namespace quire
