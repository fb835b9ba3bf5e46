// The machine instructions that CUDA C++ has no name for.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace quire::cuda {

__device__ __forceinline__ uint32_t smem_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- Two 16-bit elements in one register --------------------------------

template <class T>
__device__ __forceinline__ uint32_t pack2(float a, float b) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 h = __floats2half2_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&h);
  } else {
    const __nv_bfloat162 h = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&h);
  }
}

template <class T>
__device__ __forceinline__ float2 unpack2(uint32_t x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half22float2(*reinterpret_cast<const __half2*>(&x));
  } else {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&x));
  }
}

// ---- Tensor cores -----------------------------------------------------------

/// c += a * b, a 16x16 in rows, b 16x8 in columns, c 16x8 in float32.
template <class T>
__device__ __forceinline__ void
mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

/// Four 8x8 matrices from shared memory, lane i gives the address of row i.
template <bool kTransposed>
__device__ __forceinline__ void ldmatrix4(uint32_t (&r)[4], uint32_t address) {
  if constexpr (kTransposed) {
    asm volatile(
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
        : "r"(address)
        : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
}

__device__ __forceinline__ uint32_t transpose8x8(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// ---- Asynchronous copies ----------------------------------------------------

/// 16 bytes of which `valid_bytes` (0 or 16) are read; the others become zero.
/// kWholeLine: fetches the rest of the 128-byte line into L2 as well.
template <bool kWholeLine>
__device__ __forceinline__ void cp_async16(
    uint32_t destination,
    const void* source,
    int valid_bytes,
    uint64_t policy) {
  if constexpr (kWholeLine) {
    asm volatile(
        "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, "
        "%3;" ::"r"(destination),
        "l"(source),
        "r"(valid_bytes),
        "l"(policy)
        : "memory");
  } else {
    asm volatile(
        "cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, "
        "%3;" ::"r"(destination),
        "l"(source),
        "r"(valid_bytes),
        "l"(policy)
        : "memory");
  }
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// A load that is issued here; the compiler would move it down to its use.
__device__ __forceinline__ int load_now(const int* p) {
  int x;
  asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(x) : "l"(p));
  return x;
}

// ---- L2 policies ------------------------------------------------------------

/// For K and V, which are read once.
__device__ __forceinline__ uint64_t evict_first_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

/// For output and mail, soon read or written again: written back amid the
/// stream of K and V they cost about 1.5 us a MB.
__device__ __forceinline__ uint64_t evict_last_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ __forceinline__ void store_kept(void* p, uint2 v) {
  asm volatile("st.global.L2::cache_hint.v2.u32 [%0], {%1,%2}, %3;" ::"l"(p),
               "r"(v.x),
               "r"(v.y),
               "l"(evict_last_policy())
               : "memory");
}

__device__ __forceinline__ void store_kept(void* p, float4 v) {
  asm volatile(
      "st.global.L2::cache_hint.v4.f32 [%0], {%1,%2,%3,%4}, %5;" ::"l"(p),
      "f"(v.x),
      "f"(v.y),
      "f"(v.z),
      "f"(v.w),
      "l"(evict_last_policy())
      : "memory");
}

__device__ __forceinline__ void prefetch_l2(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// ---- Words that other CTAs poll ---------------------------------------------
// Relaxed: each word says itself whether it is there.

__device__ __forceinline__ void store_relaxed(float* p, uint4 w) {
  asm volatile(
      "st.relaxed.gpu.global.L2::cache_hint.v4.u32 [%0], {%1,%2,%3,%4}, "
      "%5;" ::"l"(p),
      "r"(w.x),
      "r"(w.y),
      "r"(w.z),
      "r"(w.w),
      "l"(evict_last_policy())
      : "memory");
}

__device__ __forceinline__ void store_relaxed(float* p, uint32_t w) {
  asm volatile(
      "st.relaxed.gpu.global.L2::cache_hint.u32 [%0], %1, %2;" ::"l"(p),
      "r"(w),
      "l"(evict_last_policy())
      : "memory");
}

__device__ __forceinline__ uint4 load_relaxed4(const float* p) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}

__device__ __forceinline__ uint32_t load_relaxed(const float* p) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];"
               : "=r"(v)
               : "l"(p)
               : "memory");
  return v;
}

// ---- Hopper: overlapping launches, barriers, clusters -----------------------

/// Lets the next kernel of the stream start, if it was launched to overlap.
__device__ __forceinline__ void allow_next_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Waits for the previous kernel of the stream, if launched to overlap it.
__device__ __forceinline__ void wait_for_previous_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// A barrier in shared memory for `count` arrivals a phase.
__device__ __forceinline__ void mbarrier_init(uint32_t barrier, int count) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier),
               "r"(count)
               : "memory");
#endif
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier)
               : "memory");
#endif
}

/// Waits for the end of phase 0, 1, 0, ...
__device__ __forceinline__ void mbarrier_wait(
    uint32_t barrier,
    uint32_t phase) {
#if __CUDA_ARCH__ >= 900
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
        "selp.u32 %0, 1, 0, p;}"
        : "=r"(done)
        : "r"(barrier), "r"(phase)
        : "memory");
  }
#endif
}

/// Which cluster of the grid, and which CTA of the cluster, this is.
__device__ __forceinline__ int cluster_id() {
  int x = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(x));
#endif
  return x;
}

__device__ __forceinline__ int cluster_rank() {
  int x = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(x));
#endif
  return x;
}

__device__ __forceinline__ void cluster_arrive_relaxed() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/// Address of `p` in the shared memory of CTA `rank` of the cluster.
__device__ __forceinline__ uint32_t cluster_address(const void* p, int rank) {
  uint32_t address = 0;
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(address)
      : "r"(smem_address(p)), "r"(rank));
#endif
  return address;
}

__device__ __forceinline__ void cluster_store(uint32_t address, float4 v) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(address),
               "f"(v.x),
               "f"(v.y),
               "f"(v.z),
               "f"(v.w)
               : "memory");
#endif
}

__device__ __forceinline__ void cluster_store(uint32_t address, float v) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(v)
               : "memory");
#endif
}

}  // namespace quire::cuda
