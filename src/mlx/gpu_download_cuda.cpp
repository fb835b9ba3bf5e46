#include <mlx/backend/cuda/device.h>
#include <mlx/backend/cuda/utils.h>

#include "kernels/cuda/launch.h"
#include "mlx/gpu_checks.h"

namespace quire {

void download(const mx::array& a, void* to, mx::Stream stream) {
  mx::cu::get_command_encoder(stream).synchronize();
  QUIRE_CHECK_CUDA(
      cudaMemcpy(to, mx::gpu_ptr<void>(a), a.nbytes(), cudaMemcpyDefault));
}

}  // namespace quire
