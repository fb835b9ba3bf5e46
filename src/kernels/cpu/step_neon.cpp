#include "kernels/cpu/roof_impl.h"
#include "kernels/cpu/simd_neon.h"
#include "kernels/cpu/step_impl.h"

namespace quire::cpu {

StepKernel find_step_neon(DType q_dtype, DType kv_dtype, int head_dim) {
  return find_step<Neon>(q_dtype, kv_dtype, head_dim);
}

RoofKernel find_roof_neon() {
  return Roof<Neon>::kernel();
}

}  // namespace quire::cpu
