#include "kernels/cpu/roof_impl.h"
#include "kernels/cpu/simd_portable.h"
#include "kernels/cpu/step_impl.h"

namespace quire::cpu {

StepKernel find_step_portable(DType q_dtype, DType kv_dtype, int head_dim) {
  return find_step<Portable>(q_dtype, kv_dtype, head_dim);
}

RoofKernel find_roof_portable() {
  return Roof<Portable>::kernel();
}

}  // namespace quire::cpu
