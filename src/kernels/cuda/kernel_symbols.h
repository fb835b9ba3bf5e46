// The symbols of the kernels, for launch.cpp.
#pragma once

#include "kernels/cuda/cache_write.h"
#include "kernels/cuda/decode_launch.h"

namespace quire::cuda {

const void* decode_kernel_f16(const DecodeVariant& variant);
const void* decode_kernel_bf16(const DecodeVariant& variant);
const void* decode_kernel_f32(const DecodeVariant& variant);
const void* kv_append_kernel_symbol(DType from, DType to, int elems);
const void* copy_blocks_kernel_symbol();
const void* fill_kernel_symbol();

}  // namespace quire::cuda
