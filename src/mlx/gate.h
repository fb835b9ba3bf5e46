// The one decision between a fused kernel and gather.
#pragma once

#include <string>

#include "common/env.h"
#include "quire/ops.h"

namespace quire {

/** Whether a fused kernel takes a case, and if not, why, in a user's words. */
struct KernelSupport {
  bool ok = false;
  std::string reason;  // empty when ok
};

/** What runs; fallback_reason says why not the fused kernel, if wanted. */
struct PathChoice {
  bool fused = false;
  std::string fallback_reason;
};

/**
 * Applies the gate's rules: env Off beats everything and means gather; env On
 * stands in for Auto; On with an unsupported case throws
 * std::invalid_argument with the reason; Auto then falls back.
 */
PathChoice choose_path(
    NativeKernel wanted,
    NativeKernelEnv env,
    const KernelSupport& support);

}  // namespace quire
