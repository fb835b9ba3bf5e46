#include "quire/runtime.h"

#include <mlx/version.h>

#include "mlx/paged_attention.h"

namespace quire {

std::string version() {
  return QUIRE_VERSION;
}

std::string mlx_version() {
  return mx::version();
}

std::vector<std::string> native_kernels() {
  std::vector<std::string> names;
  if (cpu_kernel_info().num_threads > 0) {
    names.emplace_back("cpu");
  }
  if (*gpu_kernel_name() != '\0') {
    names.emplace_back(gpu_kernel_name());
  }
  return names;
}

std::string cpu_isa() {
  const std::string isa = cpu_kernel_info().isa;
  return isa.empty() ? "none" : isa;
}

int cpu_threads() {
  return cpu_kernel_info().num_threads;
}

}  // namespace quire
