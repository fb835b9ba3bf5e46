// The kernels of one cache type: instantiates them and finds them by variant.
#pragma once

#include "kernels/cuda/paged_decode.cuh"

namespace quire::cuda {

template <class T, int kHeadDim>
const void* decode_kernel(const DecodeVariant& v) {
  const auto address = [](auto* kernel) {
    return reinterpret_cast<const void*>(kernel);
  };
  if constexpr (sizeof(T) == 4) {
    return v.max_heads == 4
               ? address(&paged_decode_kernel<T, kHeadDim, 4, 3, true, false>)
               : address(&paged_decode_kernel<T, kHeadDim, 8, 3, true, false>);
  } else {
    if (v.cluster) {
      return v.max_stages == 2
                 ? address(&paged_decode_kernel<T, kHeadDim, 8, 2, false, true>)
                 : address(
                       &paged_decode_kernel<T, kHeadDim, 8, 3, false, true>);
    }
    if (v.convert) {
      return address(&paged_decode_kernel<T, kHeadDim, 8, 3, true, false>);
    }
    if (v.max_heads == 16) {
      return address(&paged_decode_kernel<T, kHeadDim, 16, 3, false, false>);
    }
    return v.max_stages == 2
               ? address(&paged_decode_kernel<T, kHeadDim, 8, 2, false, false>)
               : address(&paged_decode_kernel<T, kHeadDim, 8, 3, false, false>);
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
