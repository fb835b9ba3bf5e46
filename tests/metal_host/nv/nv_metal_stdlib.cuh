// A stand-in for <metal_stdlib> on NVIDIA GPUs: a simdgroup is a warp, a
// threadgroup a CTA, threadgroup memory shared memory. What is language, not
// library, is rewritten by msl_to_cuda.py.
#pragma once

#include <cuda_fp16.h>
#include <stdint.h>

#include "nv_slots.h"

#define __METAL_VERSION__ 310
#define METAL_FUNC __device__ __forceinline__
#define NV_FN __device__ __forceinline__

typedef unsigned int uint;
typedef unsigned short ushort;

namespace nv {

/// Types of our own: CUDA's promote differently, and in MSL float * half is a
/// float.
struct alignas(2) Half {
  unsigned short bits;
  Half() = default;
  NV_FN explicit Half(float x) : bits(__half_as_ushort(__float2half_rn(x))) {}
  NV_FN operator float() const {
    return __half2float(__ushort_as_half(bits));
  }
};
struct alignas(2) BFloat {
  unsigned short bits;
  BFloat() = default;
  NV_FN explicit BFloat(float x) {
    const uint u = __float_as_uint(x);
    bits = static_cast<unsigned short>(
        x != x ? (u >> 16) | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
  }
  NV_FN operator float() const {
    return __uint_as_float(uint{bits} << 16);
  }
};

struct Id3 {
  uint x, y, z;
  NV_FN Id3(uint x_, uint y_, uint z_) : x(x_), y(y_), z(z_) {}
};

/// A warp's lanes are renamed, so that Apple's layout of an 8 x 8 matrix is
/// that of a fragment here: the row is bits 1, 2 and 4 of an Apple lane and 2,
/// 3 and 4 of a warp's, the column bits 0 and 3, and 0 and 1.
NV_FN uint msl_lane(uint lane) {
  return (lane & 17) | (lane >> 1 & 6) | (lane << 2 & 8);
}
/// The inverse, of a lane or of an xor mask.
NV_FN uint warp_lane(uint lane) {
  return (lane & 17) | (lane & 6) << 1 | (lane & 8) >> 2;
}

struct ThreadIds {
  Id3 threadgroup_position{blockIdx.x, blockIdx.y, blockIdx.z};
  Id3 threadgroups_per_grid{gridDim.x, gridDim.y, gridDim.z};
  Id3 threads_per_threadgroup{blockDim.x, blockDim.y, blockDim.z};
  Id3 position_in_threadgroup{threadIdx.x, threadIdx.y, threadIdx.z};
  Id3 position_in_grid{
      blockIdx.x * blockDim.x + threadIdx.x,
      blockIdx.y* blockDim.y + threadIdx.y,
      blockIdx.z* blockDim.z + threadIdx.z};
  uint index_in_threadgroup =
      threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  // The same in all lanes, and the compiler may know it.
  uint simdgroup_index = __shfl_sync(~0u, index_in_threadgroup / 32, 0);
  uint simd_lane = msl_lane(index_in_threadgroup % 32);
};

struct Pointer {
  void* p;
  template <class T>
  NV_FN operator T*() const {
    return static_cast<T*>(p);
  }
};
NV_FN Pointer pointer(const Slot& slot) {
  return {*reinterpret_cast<void* const*>(slot.bytes)};
}
struct Constant {
  const Slot& slot;
  template <class T>
  NV_FN operator const T&() const {
    return *reinterpret_cast<const T*>(slot.bytes);
  }
};
NV_FN Constant constant(const Slot& slot) {
  return {slot};
}

/// `count` adjacent elements by one load of 4 or 8 bytes.
template <class T, int Count>
NV_FN void load_adjacent(T (&to)[Count], const T* from) {
  static_assert(sizeof to == 4 || sizeof to == 8, "one load");
  if (sizeof to == 8) {
    const ::uint2 x = *reinterpret_cast<const ::uint2*>(from);
    memcpy(&to, &x, sizeof to);
  } else {
    const uint x = *reinterpret_cast<const uint*>(from);
    memcpy(&to, &x, sizeof to);
  }
}

}  // namespace nv

namespace metal {

template <class T, int N>
struct vec;
template <class T>
struct alignas(sizeof(T) * 2) vec<T, 2> {
  T x, y;
  vec() = default;
  NV_FN explicit vec(T s) : x(s), y(s) {}
  NV_FN vec(T a, T b) : x(a), y(b) {}
  NV_FN T& operator[](int i) {
    return (&x)[i];
  }
  NV_FN const T& operator[](int i) const {
    return (&x)[i];
  }
};
template <class T>
struct alignas(sizeof(T) * 4) vec<T, 4> {
  T x, y, z, w;
  vec() = default;
  NV_FN explicit vec(T s) : x(s), y(s), z(s), w(s) {}
  NV_FN vec(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}
  NV_FN T& operator[](int i) {
    return (&x)[i];
  }
  NV_FN const T& operator[](int i) const {
    return (&x)[i];
  }
};
typedef vec<float, 4> Float4;
NV_FN Float4 operator*(float s, Float4 a) {
  return {s * a.x, s * a.y, s * a.z, s * a.w};
}
NV_FN Float4& operator+=(Float4& a, Float4 b) {
  return a = {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}
NV_FN Float4& operator*=(Float4& a, float s) {
  return a = s * a;
}

NV_FN vec<float, 2>& operator*=(vec<float, 2>& a, float s) {
  return a = {s * a.x, s * a.y};
}

template <bool B, class T, class F>
struct conditional {
  typedef T type;
};
template <class T, class F>
struct conditional<false, T, F> {
  typedef F type;
};
template <bool B, class T, class F>
using conditional_t = typename conditional<B, T, F>::type;

// Every exponential is one ex2.approx, every logarithm CUDA's own.
namespace fast {
NV_FN float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
NV_FN float exp(float x) {
  return exp2(x * 1.4426950408889634f);
}
}  // namespace fast
NV_FN float log2(float x) {
  return ::log2f(x);
}
NV_FN float max(float a, float b) {
  return fmaxf(a, b);
}
NV_FN int max(int a, int b) {
  return a > b ? a : b;
}
NV_FN int min(int a, int b) {
  return a < b ? a : b;
}

template <class T>
NV_FN T simd_shuffle_xor(T x, ushort mask) {
  return __shfl_xor_sync(~0u, x, nv::warp_lane(mask));
}
template <class T>
NV_FN T simd_shuffle(T x, ushort lane) {
  return __shfl_sync(~0u, x, nv::warp_lane(lane));
}
NV_FN bool simd_any(bool x) {
  return __any_sync(~0u, x);
}
NV_FN float simd_sum(float x) {
#pragma unroll
  for (int v = 16; v > 0; v >>= 1) {
    x += __shfl_xor_sync(~0u, x, v);
  }
  return x;
}
NV_FN float simd_max(float x) {
#pragma unroll
  for (int v = 16; v > 0; v >>= 1) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, v));
  }
  return x;
}

/// A lane holds (row, column) and (row, column + 1), see nv::msl_lane().
template <class T, int Columns, int Rows>
struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8, "8 x 8");
  vec<T, 2> elements;
  NV_FN vec<T, 2>& thread_elements() {
    return elements;
  }
};

}  // namespace metal

namespace nv {

template <class T>
NV_FN uint word_of(metal::vec<T, 2> x) {
  return x.x.bits | uint{x.y.bits} << 16;
}
/// The transpose of an 8 x 8 matrix: mma's B operand is laid out so.
NV_FN uint transposed(uint x) {
  uint y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

/// d += a * b, 8 x 8 each: the first 8 of the 16 rows of an m16n8k8. The other
/// rows are zero, and so are d[2] and d[3].
NV_FN void add_product(float (&d)[4], uint a, uint b, Half) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a), "r"(0), "r"(b));
}
NV_FN void add_product(float (&d)[4], uint a, uint b, BFloat) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a), "r"(0), "r"(b));
}
/// The same of TF32: 11 bits of a float, all of a half or bfloat. Elements 0
/// and 1 of a lane are columns of a and rows of b that the fragment calls t and
/// t + 4; that is another order of the sum.
NV_FN void add_product(float (&d)[4], const uint (&a)[2], const uint (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(0), "r"(a[1]), "r"(0), "r"(b[0]), "r"(b[1]));
}

}  // namespace nv

namespace metal {

template <class T>
NV_FN void simdgroup_multiply_accumulate(
    simdgroup_matrix<float, 8, 8>& d,
    simdgroup_matrix<T, 8, 8> a,
    simdgroup_matrix<T, 8, 8> b,
    simdgroup_matrix<float, 8, 8> c) {
  float sum[4] = {c.elements.x, c.elements.y, 0.0f, 0.0f};
  nv::add_product(
      sum,
      nv::word_of(a.elements),
      nv::transposed(nv::word_of(b.elements)),
      T());
  d.elements = {sum[0], sum[1]};
}
/// There is no product of float and half here: the float is taken as the sum
/// of two TF32, which keeps 22 of its 24 bits.
template <class T>
NV_FN void simdgroup_multiply_accumulate(
    simdgroup_matrix<float, 8, 8>& d,
    simdgroup_matrix<float, 8, 8> a,
    simdgroup_matrix<T, 8, 8> b,
    simdgroup_matrix<float, 8, 8> c) {
  const uint word = nv::transposed(nv::word_of(b.elements));
  uint high[2];
  uint low[2];
  uint columns[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float x = a.elements[e];
    high[e] = __float_as_uint(x) & 0xffffe000u;
    low[e] = __float_as_uint(x - __uint_as_float(high[e]));
    T element;
    element.bits = static_cast<unsigned short>(word >> (16 * e));
    columns[e] = __float_as_uint(element);
  }
  float sum[4] = {c.elements.x, c.elements.y, 0.0f, 0.0f};
  nv::add_product(sum, high, columns);
  nv::add_product(sum, low, columns);
  d.elements = {sum[0], sum[1]};
}

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
NV_FN void threadgroup_barrier(mem_flags) {
  __syncthreads();
}

}  // namespace metal

template <class To, class From>
NV_FN To as_type(From x) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the bits");
  To to;
  memcpy(&to, &x, sizeof to);
  return to;
}

/// Of MLX's utils.h, what its attention kernels need.
template <class T>
struct Limits {
  static constexpr float finite_min = -3.402823466e+38f;
};
