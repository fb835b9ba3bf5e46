#include "kernels/cpu/simd_avx512_bf16.h"
#include "kernels/cpu/step_impl.h"

namespace quire::cpu {

StepKernel find_step_avx512_bf16(DType q_dtype, DType kv_dtype, int head_dim) {
  // Pairs need both sides in bf16; everything else is as without BF16.
  if (q_dtype == DType::BFloat16 && kv_dtype == DType::BFloat16) {
    return find_step_for<Avx512Bf16, BFloat, BFloatPair>(head_dim);
  }
  return find_step_avx512(q_dtype, kv_dtype, head_dim);
}

}  // namespace quire::cpu
