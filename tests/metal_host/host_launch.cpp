#include "host_launch.h"

#include <algorithm>
#include <stdexcept>

#include "lockstep.h"

// Made by CMake: the tables of the generated launchers, ended by null.
extern const lockstep::KernelEntry* const quire_metal_host_tables[];

namespace quire::metal_host {
namespace {

lockstep::KernelFn find_kernel(const std::string& name) {
  for (auto table = quire_metal_host_tables; *table; ++table) {
    for (auto entry = *table; entry->name; ++entry) {
      if (name == entry->name) {
        return entry->run;
      }
    }
  }
  throw std::runtime_error(
      "[metal_host] " + name + " is not compiled into this program.");
}

lockstep::Id3 to_id3(const std::array<int, 3>& v) {
  return {
      static_cast<unsigned>(v[0]),
      static_cast<unsigned>(v[1]),
      static_cast<unsigned>(v[2])};
}

}  // namespace

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (auto table = quire_metal_host_tables; *table; ++table) {
    for (auto entry = *table; entry->name; ++entry) {
      names.emplace_back(entry->name);
    }
  }
  return names;
}

bool is_compiled_in(const metal::DecodeLaunch& launch) {
  const auto names = kernel_names();
  return std::all_of(
      launch.kernels.begin(), launch.kernels.end(), [&](const auto& kernel) {
        return std::find(names.begin(), names.end(), kernel.kernel_name) !=
               names.end();
      });
}

void run(
    const metal::KernelLaunch& launch,
    const Operands& operands,
    unsigned schedule) {
  std::vector<void*> slots;
  for (const metal::BufferBinding& binding : launch.buffers) {
    // Read-only operands lose their const here only because a slot has one
    // type; the runtime checks that the kernel does not store to them.
    auto* data =
        static_cast<char*>(const_cast<void*>(operands[binding.operand]));
    slots.push_back(data + binding.byte_offset);
  }
  std::vector<std::byte> constants = launch.constants;
  slots.push_back(constants.data());
  lockstep::dispatch(
      to_id3(launch.num_threadgroups),
      to_id3(launch.num_threads),
      find_kernel(launch.kernel_name),
      slots.data(),
      schedule);
}

metal::DecodeLaunch make_launch(
    const DecodeArgs& args,
    const DecodeOptions& options) {
  const DecodeParams& params = args.params;
  const metal::Support support = metal::supports_paged_decode(params);
  if (!support.ok) {
    throw std::invalid_argument("[metal_host] " + support.reason);
  }
  const metal::DecodeVariant variant =
      options.variants.empty() ? metal::default_variant(
                                     args.q_dtype,
                                     args.kv_dtype,
                                     params.head_dim,
                                     params.num_q_heads / params.num_kv_heads)
                               : options.variants.front();
  int max_seq_len = options.max_seq_len;
  if (max_seq_len == 0) {
    for (int seq = 0; seq < params.num_seqs; ++seq) {
      max_seq_len = std::max(max_seq_len, args.seq_lens[seq]);
    }
  }
  const DecodePlan plan = make_decode_plan(
      {.num_seqs = params.num_seqs,
       .max_seq_len = max_seq_len,
       .groups_per_split = metal::groups_per_split(params, variant),
       .num_splits = params.num_splits},
      options.device);
  return metal::make_decode_launch(
      params, args.q_dtype, args.kv_dtype, plan, variant, options.limits);
}

void run(
    const metal::DecodeLaunch& launch,
    const DecodeArgs& args,
    void* workspace,
    unsigned schedule) {
  Operands operands;
  operands[metal::Operand::Q] = args.q;
  operands[metal::Operand::KCache] = args.k_cache;
  operands[metal::Operand::VCache] = args.v_cache;
  operands[metal::Operand::BlockTable] = args.block_table;
  operands[metal::Operand::SeqLens] = args.seq_lens;
  operands[metal::Operand::Out] = args.out;
  operands[metal::Operand::Workspace] = workspace;
  for (const metal::KernelLaunch& kernel : launch.kernels) {
    run(kernel, operands, schedule);
  }
}

void paged_decode(const DecodeArgs& args, const DecodeOptions& options) {
  const metal::DecodeLaunch launch = make_launch(args, options);
  std::vector<unsigned char> workspace(
      static_cast<std::size_t>(launch.workspace_bytes), 0xff);
  run(launch, args, workspace.data(), options.schedule);
}

void kv_append(const cpu::KvAppendArgs& args, unsigned schedule) {
  if (args.num_tokens == 0) {
    return;
  }
  Operands operands;
  operands[metal::Operand::K] = args.k;
  operands[metal::Operand::V] = args.v;
  operands[metal::Operand::SlotMapping] = args.slots;
  operands[metal::Operand::KCache] = args.k_cache;
  operands[metal::Operand::VCache] = args.v_cache;
  run(metal::make_kv_append_launch(
          static_cast<int>(args.num_tokens),
          args.num_slots,
          static_cast<int>(args.token_elems),
          args.dtype,
          args.kv_dtype),
      operands,
      schedule);
}

void copy_blocks(const cpu::CopyBlocksArgs& args, unsigned schedule) {
  if (args.num_copies == 0) {
    return;
  }
  Operands operands;
  operands[metal::Operand::BlockCopies] = args.copies;
  operands[metal::Operand::KCache] = args.k_cache;
  operands[metal::Operand::VCache] = args.v_cache;
  run(metal::make_copy_blocks_launch(
          static_cast<int>(args.num_copies),
          static_cast<int>(args.num_blocks),
          args.block_bytes),
      operands,
      schedule);
}

}  // namespace quire::metal_host
