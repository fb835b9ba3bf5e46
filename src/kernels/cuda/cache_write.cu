// Writing the caches in place. Bound by launch latency: a step of 64 sequences
// writes 256 KB.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/kernel_symbols.h"

namespace quire::cuda {
namespace {

template <class T, int kElems>
struct alignas(kElems * sizeof(T) < 16 ? kElems * sizeof(T) : 16) Pack {
  T x[kElems];
};

template <class To, class From>
__device__ __forceinline__ To convert(From x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;  // also keeps a NaN's bits
  } else {
    const float f = static_cast<float>(x);
    if constexpr (std::is_same_v<To, __half>) {
      return __float2half_rn(f);
    } else if constexpr (std::is_same_v<To, __nv_bfloat16>) {
      return __float2bfloat16_rn(f);
    } else {
      return f;
    }
  }
}

/// A thread converts kElems elements of one token's K or V.
template <class From, class To, int kElems>
__global__ void __launch_bounds__(kWriteThreads)
    kv_append_kernel(const __grid_constant__ KvAppendArgs args) {
  const int per_row = args.token_elems / kElems;
  const int64_t i =
      static_cast<int64_t>(blockIdx.x) * kWriteThreads + threadIdx.x;
  const int64_t row = i / per_row;
  const int64_t token = row / 2;
  if (token >= args.num_tokens) {
    return;
  }
  const int64_t slot = args.slots[token];
  if (slot < 0 || slot >= args.num_slots) {
    return;
  }
  const bool is_v = row % 2 != 0;
  const int64_t at = (i - row * per_row) * kElems;
  const From* const from = static_cast<const From*>(is_v ? args.v : args.k) +
                           token * (is_v ? args.v_stride : args.k_stride) + at;
  To* const to = static_cast<To*>(is_v ? args.v_cache : args.k_cache) +
                 slot * args.token_elems + at;
  const Pack<From, kElems> in =
      *reinterpret_cast<const Pack<From, kElems>*>(from);
  Pack<To, kElems> out;
#pragma unroll
  for (int j = 0; j < kElems; ++j) {
    out.x[j] = convert<To>(in.x[j]);
  }
  *reinterpret_cast<Pack<To, kElems>*>(to) = out;
}

template <class From, class To>
const void* kv_append_kernel_of(int elems) {
  return elems == 8
             ? reinterpret_cast<const void*>(&kv_append_kernel<From, To, 8>)
             : reinterpret_cast<const void*>(&kv_append_kernel<From, To, 1>);
}

template <class From>
const void* kv_append_kernel_to(DType to, int elems) {
  switch (to) {
    case DType::Float32:
      return kv_append_kernel_of<From, float>(elems);
    case DType::Float16:
      return kv_append_kernel_of<From, __half>(elems);
    default:
      return kv_append_kernel_of<From, __nv_bfloat16>(elems);
  }
}

/// A thread carries one 16-byte column of the blocks. Copies run side by side
/// unless one touches a block that another writes; then the first row of CTAs
/// does all of them in order, column by column.
__global__ void __launch_bounds__(kWriteThreads)
    copy_blocks_kernel(const __grid_constant__ CopyBlocksArgs args) {
  bool clash = false;
  for (int i = threadIdx.x; i < args.num_copies; i += kWriteThreads) {
    const int source = args.copies[2 * i];
    const int destination = args.copies[2 * i + 1];
    for (int j = 0; j < args.num_copies; ++j) {
      clash = clash || (j != i && (args.copies[2 * j + 1] == source ||
                                   args.copies[2 * j + 1] == destination));
    }
  }
  const bool in_order = __syncthreads_or(clash) != 0;
  if (in_order && blockIdx.y > 0) {
    return;
  }
  const int64_t column =
      static_cast<int64_t>(blockIdx.x) * kWriteThreads + threadIdx.x;
  const int64_t columns = args.block_bytes / 16;
  if (column >= columns) {
    return;
  }
  const int step = in_order ? 1 : static_cast<int>(gridDim.y);
  for (int i = blockIdx.y; i < args.num_copies; i += step) {
    const int source = args.copies[2 * i];
    const int destination = args.copies[2 * i + 1];
    if (source < 0 || source >= args.num_blocks || destination < 0 ||
        destination >= args.num_blocks) {
      continue;
    }
    const int64_t from = source * columns + column;
    const int64_t to = destination * columns + column;
    uint4* const k = static_cast<uint4*>(args.k_cache);
    uint4* const v = static_cast<uint4*>(args.v_cache);
    const uint4 k_part = k[from];
    const uint4 v_part = v[from];
    k[to] = k_part;
    v[to] = v_part;
  }
}

__global__ void __launch_bounds__(kWriteThreads)
    fill_kernel(uint4* to, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWriteThreads;
  for (int64_t i =
           static_cast<int64_t>(blockIdx.x) * kWriteThreads + threadIdx.x;
       i < count;
       i += step) {
    to[i] = make_uint4(~0u, ~0u, ~0u, ~0u);
  }
}

}  // namespace

const void* kv_append_kernel_symbol(DType from, DType to, int elems) {
  switch (from) {
    case DType::Float32:
      return kv_append_kernel_to<float>(to, elems);
    case DType::Float16:
      return kv_append_kernel_to<__half>(to, elems);
    default:
      return kv_append_kernel_to<__nv_bfloat16>(to, elems);
  }
}

const void* copy_blocks_kernel_symbol() {
  return reinterpret_cast<const void*>(&copy_blocks_kernel);
}

const void* fill_kernel_symbol() {
  return reinterpret_cast<const void*>(&fill_kernel);
}

}  // namespace quire::cuda
