#include "kernels/cpu/cache_write.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/float_bits.h"

namespace quire::cpu {
namespace {

float to_f32(float x) {
  return x;
}
struct F16 {
  std::uint16_t bits;
};
struct BF16 {
  std::uint16_t bits;
};
float to_f32(F16 x) {
  return f32_from_f16(x.bits);
}
float to_f32(BF16 x) {
  return f32_from_bf16(x.bits);
}
void from_f32(float x, float& to) {
  to = x;
}
void from_f32(float x, F16& to) {
  to.bits = f16_from_f32(x);
}
void from_f32(float x, BF16& to) {
  to.bits = bf16_from_f32(x);
}

template <typename From, typename To>
void convert(const void* from, void* to, std::int64_t size) {
  const From* x = static_cast<const From*>(from);
  To* y = static_cast<To*>(to);
  for (std::int64_t i = 0; i < size; ++i) {
    from_f32(to_f32(x[i]), y[i]);
  }
}

template <typename T>
void copy(const void* from, void* to, std::int64_t size) {
  std::memcpy(to, from, static_cast<std::size_t>(size) * sizeof(T));
}

using ConvertFn = void (*)(const void* from, void* to, std::int64_t size);

template <typename From>
ConvertFn find_convert(DType from, DType to) {
  if (from == to) {
    return copy<From>;  // bit for bit, NaN payloads too
  }
  switch (to) {
    case DType::Float32:
      return convert<From, float>;
    case DType::Float16:
      return convert<From, F16>;
    case DType::BFloat16:
      return convert<From, BF16>;
  }
  return nullptr;
}

ConvertFn find_convert(DType from, DType to) {
  switch (from) {
    case DType::Float32:
      return find_convert<float>(from, to);
    case DType::Float16:
      return find_convert<F16>(from, to);
    case DType::BFloat16:
      return find_convert<BF16>(from, to);
  }
  return nullptr;
}

}  // namespace

void kv_append(const KvAppendArgs& args) {
  for (std::int64_t i = 0; i < args.num_tokens; ++i) {
    const std::int64_t slot = args.slots[i];
    if (slot < -1 || slot >= args.num_slots) {
      throw std::runtime_error(
          "[kv_append] Slots must be -1 or from 0 to " +
          std::to_string(args.num_slots - 1) + "; got " + std::to_string(slot) +
          " for token " + std::to_string(i) + ".");
    }
  }
  const ConvertFn convert_row = find_convert(args.dtype, args.kv_dtype);
  const std::int64_t from_bytes =
      args.token_elems * static_cast<std::int64_t>(dtype_bytes(args.dtype));
  const std::int64_t to_bytes =
      args.token_elems * static_cast<std::int64_t>(dtype_bytes(args.kv_dtype));
  const auto write = [&](const void* tokens, void* cache, std::int64_t i) {
    convert_row(
        static_cast<const std::byte*>(tokens) + i * from_bytes,
        static_cast<std::byte*>(cache) + args.slots[i] * to_bytes,
        args.token_elems);
  };
  for (std::int64_t i = 0; i < args.num_tokens; ++i) {
    if (args.slots[i] >= 0) {
      write(args.k, args.k_cache, i);
      write(args.v, args.v_cache, i);
    }
  }
}

void copy_blocks(const CopyBlocksArgs& args) {
  for (std::int64_t i = 0; i < 2 * args.num_copies; ++i) {
    const std::int32_t id = args.copies[i];
    if (id < 0 || id >= args.num_blocks) {
      throw std::runtime_error(
          "[copy_blocks] Block ids must be from 0 to " +
          std::to_string(args.num_blocks - 1) + "; got " + std::to_string(id) +
          " in copy " + std::to_string(i / 2) + ".");
    }
  }
  const auto bytes = static_cast<std::size_t>(args.block_bytes);
  for (std::int64_t i = 0; i < args.num_copies; ++i) {
    const std::int64_t source = args.copies[2 * i] * args.block_bytes;
    const std::int64_t target = args.copies[2 * i + 1] * args.block_bytes;
    if (source == target) {
      continue;
    }
    for (void* cache : {args.k_cache, args.v_cache}) {
      std::byte* base = static_cast<std::byte*>(cache);
      std::memcpy(base + target, base + source, bytes);
    }
  }
}

}  // namespace quire::cpu
