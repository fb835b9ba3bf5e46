// The Metal kernels on the CPU as a path of the validation.
#pragma once

#include <memory>

#include "support/validation.h"

namespace quire::metal_host {

/** Appends and attends through the launches that MLX's Metal encoder would get;
 * counted as fused_metal_host. Needs the cache on the CPU. */
std::unique_ptr<testing::FusedPath> make_metal_host_path();

}  // namespace quire::metal_host
