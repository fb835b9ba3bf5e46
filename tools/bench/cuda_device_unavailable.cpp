#include <stdexcept>

#include "tools/bench/device.h"

namespace quire::bench {

std::unique_ptr<Device> make_cuda_device() {
  throw std::invalid_argument(
      "[bench] --device cuda needs a build with the CUDA kernels (preset "
      "cuda).");
}

}  // namespace quire::bench
