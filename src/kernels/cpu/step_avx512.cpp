#include "kernels/cpu/roof_impl.h"
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/step_impl.h"

namespace quire::cpu {

StepKernel find_step_avx512(DType q_dtype, DType kv_dtype, int head_dim) {
  return find_step<Avx512>(q_dtype, kv_dtype, head_dim);
}

RoofKernel find_roof_avx512() {
  return Roof<Avx512>::kernel();
}

}  // namespace quire::cpu
