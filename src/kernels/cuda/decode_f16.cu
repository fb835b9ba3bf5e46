#include "kernels/cuda/decode_kernels.cuh"

namespace quire::cuda {

const void* decode_kernel_f16(const DecodeVariant& variant) {
  return decode_kernel<__half>(variant);
}

}  // namespace quire::cuda
