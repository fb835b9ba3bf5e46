#include "mlx/gate.h"

#include "common/error.h"

namespace quire {

PathChoice choose_path(
    NativeKernel wanted,
    NativeKernelEnv env,
    const KernelSupport& support) {
  if (wanted == NativeKernel::Off) {
    return {false, ""};
  }
  if (env == NativeKernelEnv::Off) {
    return {false, "QUIRE_NATIVE_PAGED_KERNEL=off"};
  }
  if (support.ok) {
    return {true, ""};
  }
  const bool forced = wanted == NativeKernel::On || env == NativeKernelEnv::On;
  require(
      !forced,
      "paged_attention",
      wanted == NativeKernel::On ? "use_native_paged_kernel = On"
                                 : "QUIRE_NATIVE_PAGED_KERNEL=on",
      " needs a fused kernel for this case; got none: ",
      support.reason,
      ".");
  return {false, support.reason};
}

}  // namespace quire
