#include "kernels/cuda/decode_kernels.cuh"

namespace quire::cuda {

const void* decode_kernel_f32(const DecodeVariant& variant) {
  return decode_kernel<float>(variant);
}

}  // namespace quire::cuda
