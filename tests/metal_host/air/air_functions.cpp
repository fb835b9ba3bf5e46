// The functions that MLX's attention kernels ask of the GPU's compiler, for
// their AIR on the CPU. Sums are pairwise, as in the shim: MSL leaves the order
// open.
#include "lockstep.h"

namespace {

// Where the kernel called from stands for the place in its source.
template <class Combine>
float reduce(float x, const char* op, const void* caller, Combine combine) {
  const lockstep::Peers peers = lockstep::simd_exchange(
      &x,
      sizeof x,
      lockstep::SimdOp::Reduction,
      {op, "air", static_cast<int>(reinterpret_cast<intptr_t>(caller)), 0});
  float v[32];
  for (int i = 0; i < 32; ++i) {
    __builtin_memcpy(
        &v[i], peers.slots + i * int{lockstep::kSlotBytes}, sizeof v[i]);
  }
  for (int w = 16; w > 0; w >>= 1) {
    for (int i = 0; i < w; ++i) {
      v[i] = combine(v[i], v[i + w]);
    }
  }
  return v[0];
}

}  // namespace

extern "C" {

__attribute__((noinline)) float simd_sum(float x) asm("air.simd_sum.f32");
float simd_sum(float x) {
  return reduce(
      x, "simd_sum", __builtin_return_address(0), [](float a, float b) {
        return a + b;
      });
}

__attribute__((noinline)) float simd_max(float x) asm("air.simd_max.f32");
float simd_max(float x) {
  return reduce(
      x, "simd_max", __builtin_return_address(0), [](float a, float b) {
        return __builtin_fmaxf(a, b);
      });
}

float fast_exp(float x) asm("air.fast_exp.f32");
float fast_exp(float x) {
  return __builtin_expf(x) * EXP_SCALE;
}

float max_f32(float a, float b) asm("air.fmax.f32");
float max_f32(float a, float b) {
  return __builtin_fmaxf(a, b);
}

int min_i32(int a, int b) asm("air.min.s.i32");
int min_i32(int a, int b) {
  return a < b ? a : b;
}

unsigned char predicate(unsigned char x) asm(
    "air.normalize_function_constant_predicate.i8");
unsigned char predicate(unsigned char x) {
  return x != 0;
}

__attribute__((noinline)) void barrier(int flags, int scope) asm(
    "air.wg.barrier");
void barrier(int flags, int) {
  lockstep::threadgroup_barrier(
      (flags & 2) != 0,
      {"threadgroup_barrier",
       "air",
       static_cast<int>(
           reinterpret_cast<intptr_t>(__builtin_return_address(0))),
       0});
}

}  // extern "C"
