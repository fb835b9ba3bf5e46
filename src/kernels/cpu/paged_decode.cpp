#include "kernels/cpu/paged_decode.h"

#include "kernels/cpu/decode_engine.h"
#include "kernels/cpu/isa.h"

namespace quire::cpu {

Support supports_paged_decode(
    const DecodeParams& params,
    DType q_dtype,
    DType kv_dtype) {
  static_cast<void>(q_dtype);  // every pair of dtypes has a kernel
  static_cast<void>(kv_dtype);
  switch (params.head_dim) {
    case 64:
    case 80:
    case 96:
    case 128:
    case 256:
      break;
    default:
      return {false, "The CPU kernel has head_dim 64, 80, 96, 128 and 256."};
  }
  if (params.num_kv_heads < 1 || params.num_q_heads < 1 ||
      params.num_q_heads % params.num_kv_heads != 0) {
    return {false, "num_q_heads must be a positive multiple of num_kv_heads."};
  }
  const int size = params.block_size;
  if (size < kMinBlockSize || size > kMaxBlockSize ||
      (size & (size - 1)) != 0) {
    return {false, "block_size must be a power of two from 8 to 256."};
  }
  if (params.num_seqs < 0 || params.num_blocks < 0 ||
      params.max_blocks_per_seq < 0 || params.num_splits < 0) {
    return {false, "Counts must not be negative."};
  }
  return {true, ""};
}

void paged_decode(const DecodeArgs& args) {
  default_engine().paged_decode(args, selected_isa());
}

}  // namespace quire::cpu
