#include "nv_launch.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "kernels/cuda/device_buffer.h"

// Made by CMake: the tables of the generated kernels, ended by null.
extern const nv::Symbol* const quire_metal_nv_kernels[];
extern const nv::Symbol* const quire_metal_nv_constants[];

namespace quire::metal_nv {
namespace {

const void* find(const nv::Symbol* const* tables, const std::string& name) {
  for (; *tables; ++tables) {
    for (const nv::Symbol* symbol = *tables; symbol->name; ++symbol) {
      if (name == symbol->name) {
        return symbol->address;
      }
    }
  }
  return nullptr;
}

dim3 to_dim3(const std::array<int, 3>& v) {
  return {
      static_cast<unsigned>(v[0]),
      static_cast<unsigned>(v[1]),
      static_cast<unsigned>(v[2])};
}

std::vector<std::byte> bytes_of(const void* data, std::int64_t num_bytes) {
  const auto* begin = static_cast<const std::byte*>(data);
  return {begin, begin + num_bytes};
}

}  // namespace

bool is_compiled_in(const metal::DecodeLaunch& launch) {
  return std::all_of(
      launch.kernels.begin(), launch.kernels.end(), [](const auto& kernel) {
        return find(quire_metal_nv_kernels, kernel.kernel_name) != nullptr;
      });
}

const void* find_kernel(const std::string& name) {
  const void* kernel = find(quire_metal_nv_kernels, name);
  if (kernel == nullptr) {
    throw std::runtime_error(
        "[metal_nv] " + name + " is not compiled into this program.");
  }
  return kernel;
}

void set_function_constant(const std::string& name, int value) {
  const void* symbol = find(quire_metal_nv_constants, name);
  if (symbol == nullptr) {
    throw std::runtime_error("[metal_nv] No function constant " + name + ".");
  }
  QUIRE_CHECK_CUDA(cudaMemcpyToSymbol(
      symbol, &value, sizeof value, 0, cudaMemcpyHostToDevice));
}

void enqueue(
    const void* kernel,
    const std::array<int, 3>& num_threadgroups,
    const std::array<int, 3>& num_threads,
    const nv::Slots& slots,
    cudaStream_t stream) {
  void* arguments[] = {const_cast<nv::Slots*>(&slots)};
  QUIRE_CHECK_CUDA(cudaLaunchKernel(
      kernel,
      to_dim3(num_threadgroups),
      to_dim3(num_threads),
      static_cast<void**>(arguments),
      0,
      stream));
}

void enqueue(
    const metal::KernelLaunch& launch,
    const Operands& operands,
    cudaStream_t stream) {
  nv::Slots slots{};
  std::size_t slot = 0;
  for (const metal::BufferBinding& binding : launch.buffers) {
    const char* data = static_cast<const char*>(
        operands[static_cast<std::size_t>(binding.operand)]);
    data += binding.byte_offset;
    std::memcpy(slots.slot[slot++].bytes, &data, sizeof data);
  }
  std::memcpy(
      slots.slot[slot].bytes, launch.constants.data(), launch.constants.size());
  enqueue(
      find_kernel(launch.kernel_name),
      launch.num_threadgroups,
      launch.num_threads,
      slots,
      stream);
}

void paged_decode(const DecodeArgs& args, const metal::DecodeLaunch& launch) {
  const DecodeParams& p = args.params;
  if (launch.kernels.empty()) {
    return;
  }
  const auto q_bytes = static_cast<std::int64_t>(dtype_bytes(args.q_dtype));
  const auto kv_bytes = static_cast<std::int64_t>(dtype_bytes(args.kv_dtype));
  const std::int64_t row_bytes =
      std::int64_t{p.num_seqs} * p.num_q_heads * p.head_dim * q_bytes;
  const std::int64_t pool_bytes = std::int64_t{p.num_blocks} * p.block_size *
                                  p.num_kv_heads * p.head_dim * kv_bytes;
  using Buffer = cuda::DeviceBuffer<std::byte>;
  const Buffer q(bytes_of(args.q, row_bytes));
  const Buffer k(bytes_of(args.k_cache, pool_bytes));
  const Buffer v(bytes_of(args.v_cache, pool_bytes));
  const Buffer table(bytes_of(
      args.block_table, std::int64_t{p.num_seqs} * p.max_blocks_per_seq * 4));
  const Buffer lens(bytes_of(args.seq_lens, std::int64_t{p.num_seqs} * 4));
  Buffer out(static_cast<std::size_t>(row_bytes));
  Buffer workspace(static_cast<std::size_t>(launch.workspace_bytes));
  out.fill(0xff);
  workspace.fill(0xff);
  Operands operands{};
  const auto set = [&](metal::Operand operand, const Buffer& buffer) {
    operands[static_cast<std::size_t>(operand)] = buffer.data();
  };
  set(metal::Operand::Q, q);
  set(metal::Operand::KCache, k);
  set(metal::Operand::VCache, v);
  set(metal::Operand::BlockTable, table);
  set(metal::Operand::SeqLens, lens);
  set(metal::Operand::Out, out);
  set(metal::Operand::Workspace, workspace);
  for (const metal::KernelLaunch& kernel : launch.kernels) {
    enqueue(kernel, operands, nullptr);
  }
  const auto result = out.download();
  std::memcpy(args.out, result.data(), result.size());
}

metal::DecodeLaunch make_launch(
    const DecodeArgs& args,
    const metal::DecodeVariant& variant,
    int num_cores) {
  const DecodeParams& params = args.params;
  int max_seq_len = 0;
  for (int seq = 0; seq < params.num_seqs; ++seq) {
    max_seq_len = std::max(max_seq_len, args.seq_lens[seq]);
  }
  const DecodePlan plan = make_decode_plan(
      {.num_seqs = params.num_seqs,
       .max_seq_len = max_seq_len,
       .groups_per_split = metal::groups_per_split(params, variant),
       .num_splits = params.num_splits},
      {.num_cores = num_cores, .groups_per_core = 2});
  return metal::make_decode_launch(
      params, args.q_dtype, args.kv_dtype, plan, variant);
}

}  // namespace quire::metal_nv
