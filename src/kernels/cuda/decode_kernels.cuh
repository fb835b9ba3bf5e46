// The kernels of one cache type: instantiates them and finds them by variant.
#pragma once

#include "kernels/cuda/paged_decode.cuh"

namespace quire::cuda {

template <
    class T,
    int kHeadDim,
    int kKvHeads,
    int kMaxHeads,
    int kMaxStages,
    bool kConvert = false,
    bool kCluster = false>
const void* address() {
  return reinterpret_cast<const void*>(&paged_decode_kernel<
                                       T,
                                       kHeadDim,
                                       kKvHeads,
                                       kMaxHeads,
                                       kMaxStages,
                                       kConvert,
                                       kCluster>);
}

template <class T, int kHeadDim>
const void* decode_kernel(const DecodeVariant& v) {
  if constexpr (sizeof(T) == 4) {
    if constexpr (kHeadDim < 256) {
      if (v.max_heads == 16) {
        return address<T, kHeadDim, 1, 16, 3, true>();
      }
    }
    return v.max_heads == 4 ? address<T, kHeadDim, 1, 4, 3, true>()
                            : address<T, kHeadDim, 1, 8, 3, true>();
  } else {
    if constexpr (kHeadDim == 64) {
      if (v.kv_heads == 3) {
        return address<T, kHeadDim, 3, 4, 4>();
      }
    }
    if constexpr (kHeadDim == 96) {
      if (v.kv_heads == 2) {
        return v.max_heads == 16 ? address<T, kHeadDim, 2, 16, 4>()
                                 : address<T, kHeadDim, 2, 8, 4>();
      }
    }
    if (v.cluster) {
      if constexpr (kHeadDim >= 128) {  // where 3 stages may not fit
        if (v.max_stages == 2) {
          return address<T, kHeadDim, 1, 8, 2, false, true>();
        }
      }
      return address<T, kHeadDim, 1, 8, 3, false, true>();
    }
    if (v.convert) {
      return address<T, kHeadDim, 1, 8, 3, true>();
    }
    if (v.max_heads == 16) {
      return address<T, kHeadDim, 1, 16, 3>();
    }
    return v.max_stages == 2 ? address<T, kHeadDim, 1, 8, 2>()
                             : address<T, kHeadDim, 1, 8, 3>();
  }
}

template <class T>
const void* decode_kernel(const DecodeVariant& v) {
  switch (v.head_dim) {
    case 64:
      return decode_kernel<T, 64>(v);
    case 80:
      return decode_kernel<T, 80>(v);
    case 96:
      return decode_kernel<T, 96>(v);
    case 128:
      return decode_kernel<T, 128>(v);
    case 256:
      return decode_kernel<T, 256>(v);
    default:
      return nullptr;
  }
}

}  // namespace quire::cuda
