// Takes the place of paged_attention_cpu.cpp in a build without kernels.
#include <stdexcept>

#include "mlx/paged_attention.h"

namespace quire {

CpuKernelInfo cpu_kernel_info() {
  return {};
}

KernelSupport cpu_supports_paged_attention(const DecodeSignature&) {
  return {
      false,
      "this library was built without fused kernels "
      "(QUIRE_WITH_NATIVE_KERNELS=OFF)"};
}

void PagedAttention::eval_cpu(
    const std::vector<mx::array>&,
    std::vector<mx::array>&) {
  throw std::logic_error("[paged_attention] No CPU kernel in this build.");
}

}  // namespace quire
