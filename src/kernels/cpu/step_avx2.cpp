#include "kernels/cpu/roof_impl.h"
#include "kernels/cpu/simd_avx2.h"
#include "kernels/cpu/step_impl.h"

namespace quire::cpu {

StepKernel find_step_avx2(DType q_dtype, DType kv_dtype, int head_dim) {
  return find_step<Avx2>(q_dtype, kv_dtype, head_dim);
}

RoofKernel find_roof_avx2() {
  return Roof<Avx2>::kernel();
}

}  // namespace quire::cpu
