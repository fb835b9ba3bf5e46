#include "kernels/cuda/decode_kernels.cuh"

namespace quire::cuda {

const void* decode_kernel_bf16(const DecodeVariant& variant) {
  return decode_kernel<__nv_bfloat16>(variant);
}

}  // namespace quire::cuda
