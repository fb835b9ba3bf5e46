#include "kernels/metal/launch.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numbers>
#include <sstream>

#include "common/error.h"
#include "kernels/metal/params.h"
#include "kernels/metal/source.h"

namespace quire::metal {
namespace {

constexpr int kCombineRows = 8;  // splits side by side
constexpr int kCombineInFlight = 4;
constexpr int kMaxColumns = 64;  // of 4 elements: the largest head_dim
constexpr int kCopyThreads = 256;
constexpr int kPaddedGroupSizes[] = {1, 2, 4, 8, 16};

const char* msl_type(DType dtype) {
  switch (dtype) {
    case DType::Float32:
      return "float";
    case DType::Float16:
      return "half";
    case DType::BFloat16:
      return "bfloat";
  }
  return "?";
}

template <typename Params>
std::vector<std::byte> to_bytes(const Params& params) {
  std::vector<std::byte> bytes(sizeof(Params));
  std::memcpy(bytes.data(), &params, sizeof(Params));
  return bytes;
}

// As MLX instantiates its own kernels: the host name finds the function.
std::string instantiate(
    const std::string& name,
    const std::string& kernel,
    const std::string& arguments) {
  const std::string call = kernel + "<" + arguments + ">";
  return "template [[host_name(\"" + name + "\")]] [[kernel]] decltype(" +
         call + ") " + call + ";\n";
}

template <typename... Parts>
std::string join(const char* separator, const Parts&... parts) {
  std::ostringstream text;
  const char* before = "";
  ((text << before << parts, before = separator), ...);
  return text.str();
}

KernelLaunch
decode_kernel(DType q, DType kv, int head_dim, const DecodeVariant& v) {
  KernelLaunch launch;
  launch.kernel_name =
      "quire_paged_decode_" + join("_", dtype_name(q), dtype_name(kv)) + "_d" +
      join("", head_dim, "_h", v.heads) +
      (v.matrix ? "_matrix" : join("", "_l", v.lanes, "_r", v.rows)) +
      join("", "_s", v.simdgroups, "_p", v.head_parts);
  const std::string arguments = v.matrix ? join(", ", msl_type(kv), head_dim)
                                         : join(
                                               ", ",
                                               msl_type(kv),
                                               msl_type(q),
                                               head_dim,
                                               v.heads,
                                               v.lanes,
                                               v.rows);
  launch.matrices = v.matrix;
  launch.instantiation = instantiate(
      launch.kernel_name,
      v.matrix ? "paged_decode_matrix" : "paged_decode",
      join(", ", arguments, v.simdgroups, v.head_parts));
  launch.num_threads = {32, v.simdgroups, 1};
  launch.threadgroup_bytes = v.threadgroup_bytes(head_dim);
  return launch;
}

KernelLaunch combine_kernel(DType q) {
  KernelLaunch launch;
  launch.kernel_name = join("", "quire_paged_combine_", dtype_name(q));
  launch.instantiation = instantiate(
      launch.kernel_name,
      "paged_combine",
      join(", ", msl_type(q), kCombineRows, kCombineInFlight));
  launch.num_threads = {kMaxColumns, kCombineRows, 1};
  launch.threadgroup_bytes =
      kCombineRows * (4 * kMaxColumns + 2) * static_cast<int>(sizeof(float));
  return launch;
}

// Elements a thread moves: rows of another size than 8 are not aligned for
// more.
int append_piece(int token_elems) {
  return token_elems % 8 == 0 ? 8 : 1;
}

KernelLaunch append_kernel(DType dtype, DType kv_dtype, int piece) {
  KernelLaunch launch;
  launch.source = Source::CacheWrite;
  launch.kernel_name =
      join("_", "quire_kv_append", dtype_name(dtype), dtype_name(kv_dtype)) +
      join("", "_e", piece);
  launch.instantiation = instantiate(
      launch.kernel_name,
      "kv_append",
      join(", ", msl_type(kv_dtype), msl_type(dtype), piece));
  return launch;
}

KernelLaunch copy_kernel() {
  KernelLaunch launch;
  launch.source = Source::CacheWrite;
  launch.kernel_name = "copy_blocks";
  return launch;
}

// Threads and threadgroups for num_pieces in x, whole simdgroups.
void set_pieces(KernelLaunch& launch, int num_pieces, int num_rows) {
  const int threads = std::min(kCopyThreads, (num_pieces + 31) / 32 * 32);
  launch.num_threads = {threads, 1, 1};
  launch.num_threadgroups = {(num_pieces + threads - 1) / threads, num_rows, 2};
}

}  // namespace

std::string kernel_text(const KernelLaunch& launch) {
  if (launch.source == Source::CacheWrite) {
    return cache_write_source() + launch.instantiation;
  }
  // A compiler that refuses matrices must not refuse the other kernels for
  // them.
  return (launch.matrices ? "" : "#define QUIRE_WITHOUT_MATRICES\n") +
         std::string(paged_decode_source()) + launch.instantiation;
}

Support supports_paged_decode(const DecodeParams& params) {
  const auto no = [](const auto&... parts) {
    return Support{false, join("", parts...)};
  };
  if (!is_supported_head_dim(params.head_dim)) {
    std::ostringstream dims;
    for (const int head_dim : kHeadDims) {
      dims << (head_dim == kHeadDims[0] ? "" : ", ") << head_dim;
    }
    return no(
        "head_dim must be one of ", dims.str(), "; got ", params.head_dim, ".");
  }
  if (params.block_size < kMinBlockSize || params.block_size > kMaxBlockSize ||
      !std::has_single_bit(static_cast<unsigned>(params.block_size))) {
    return no(
        "block_size must be a power of two from ",
        kMinBlockSize,
        " to ",
        kMaxBlockSize,
        "; got ",
        params.block_size,
        ".");
  }
  if (params.num_kv_heads <= 0 || params.num_q_heads <= 0 ||
      params.num_q_heads % params.num_kv_heads != 0) {
    return no(
        "num_q_heads must be a positive multiple of num_kv_heads; got ",
        params.num_q_heads,
        " and ",
        params.num_kv_heads,
        ".");
  }
  return {};
}

Support fits_device(const KernelLaunch& launch, const DeviceLimits& limits) {
  const auto& threads = launch.num_threads;
  const int num_threads = threads[0] * threads[1] * threads[2];
  const int max_threads = std::min(limits.max_threads, kMaxThreads);
  if (num_threads > max_threads) {
    return {
        false,
        join(
            "",
            launch.kernel_name,
            " needs ",
            num_threads,
            " threads in a threadgroup; the device allows ",
            max_threads,
            ".")};
  }
  const int max_bytes = std::min(limits.max_memory_bytes, kMaxThreadgroupBytes);
  if (launch.threadgroup_bytes > max_bytes) {
    return {
        false,
        join(
            "",
            launch.kernel_name,
            " needs ",
            launch.threadgroup_bytes,
            " bytes of threadgroup memory; the device allows ",
            max_bytes,
            ".")};
  }
  return {};
}

int groups_per_split(const DecodeParams& params, const DecodeVariant& variant) {
  return params.num_kv_heads *
         variant.num_head_slices(params.num_q_heads / params.num_kv_heads);
}

DecodeLaunch make_decode_launch(
    const DecodeParams& params,
    DType q_dtype,
    DType kv_dtype,
    const DecodePlan& plan,
    const DecodeVariant& variant,
    const DeviceLimits& limits) {
  const Support support = supports_paged_decode(params);
  require(support.ok, "make_decode_launch", support.reason);
  require(
      plan.split_size > 0 && plan.split_size % kSplitGranule == 0 &&
          plan.num_splits > 0,
      "make_decode_launch",
      "split_size must be a positive multiple of ",
      kSplitGranule,
      " and num_splits positive; got ",
      plan.split_size,
      " and ",
      plan.num_splits,
      ".");
  DecodeLaunch launch;
  if (params.num_seqs == 0) {
    return launch;
  }
  const int group_size = params.num_q_heads / params.num_kv_heads;
  const bool combines = plan.num_splits > 1;
  const std::int64_t num_partials =
      std::int64_t{params.num_seqs} * params.num_q_heads * plan.num_splits;
  const std::int64_t lse_offset =
      num_partials * params.head_dim * static_cast<std::int64_t>(sizeof(float));
  if (combines) {
    launch.workspace_bytes =
        lse_offset + num_partials * static_cast<std::int64_t>(sizeof(float));
  }
  // With one split no partial is written; the slots need some buffer.
  const auto partials = [&](std::int64_t byte_offset) {
    return combines ? BufferBinding{Operand::Workspace, true, byte_offset}
                    : BufferBinding{Operand::Out, true, 0};
  };

  KernelLaunch decode =
      decode_kernel(q_dtype, kv_dtype, params.head_dim, variant);
  decode.buffers = {
      {Operand::Q},
      {Operand::KCache},
      {Operand::VCache},
      {Operand::BlockTable},
      {Operand::SeqLens},
      partials(0),
      partials(lse_offset),
      {Operand::Out, true}};
  decode.constants = to_bytes(PagedDecodeParams{
      .num_q_heads = params.num_q_heads,
      .num_kv_heads = params.num_kv_heads,
      .group_size = group_size,
      .num_head_slices = variant.num_head_slices(group_size),
      .max_blocks_per_seq = params.max_blocks_per_seq,
      .block_size_log2 =
          std::countr_zero(static_cast<unsigned>(params.block_size)),
      .split_size = plan.split_size,
      .num_splits = plan.num_splits,
      .scale_log2 = params.scale * std::numbers::log2e_v<float>});
  decode.num_threadgroups = {
      groups_per_split(params, variant), plan.num_splits, params.num_seqs};
  const Support fits = fits_device(decode, limits);
  require(fits.ok, "make_decode_launch", fits.reason);
  launch.kernels.push_back(std::move(decode));

  if (combines) {
    KernelLaunch combine = combine_kernel(q_dtype);
    combine.buffers = {
        {Operand::Workspace},
        {Operand::Workspace, false, lse_offset},
        {Operand::Out, true}};
    combine.constants = to_bytes(PagedCombineParams{
        .num_splits = plan.num_splits, .num_columns = params.head_dim / 4});
    combine.num_threadgroups = {params.num_q_heads, params.num_seqs, 1};
    combine.num_threads[0] = params.head_dim / 4;
    const Support combine_fits = fits_device(combine, limits);
    require(combine_fits.ok, "make_decode_launch", combine_fits.reason);
    launch.kernels.push_back(std::move(combine));
  }
  return launch;
}

KernelLaunch make_kv_append_launch(
    int num_tokens,
    std::int64_t num_slots,
    int token_elems,
    DType dtype,
    DType kv_dtype) {
  require(
      num_tokens > 0 && token_elems > 0,
      "make_kv_append_launch",
      "num_tokens and token_elems must be positive; got ",
      num_tokens,
      " and ",
      token_elems,
      ".");
  const int piece = append_piece(token_elems);
  KernelLaunch launch = append_kernel(dtype, kv_dtype, piece);
  launch.buffers = {
      {Operand::K},
      {Operand::V},
      {Operand::SlotMapping},
      {Operand::KCache, true},
      {Operand::VCache, true}};
  launch.constants = to_bytes(KvAppendParams{
      .num_slots = num_slots, .num_pieces = token_elems / piece});
  set_pieces(launch, token_elems / piece, num_tokens);
  return launch;
}

KernelLaunch make_copy_blocks_launch(
    int num_copies,
    int num_blocks,
    std::int64_t block_bytes) {
  require(
      num_copies > 0 && block_bytes > 0 && block_bytes % 16 == 0,
      "make_copy_blocks_launch",
      "num_copies must be positive and block_bytes a positive multiple of 16; "
      "got ",
      num_copies,
      " and ",
      block_bytes,
      ".");
  KernelLaunch launch = copy_kernel();
  launch.buffers = {
      {Operand::BlockCopies}, {Operand::KCache, true}, {Operand::VCache, true}};
  const int num_pieces = static_cast<int>(block_bytes / 16);
  launch.constants = to_bytes(CopyBlocksParams{
      .num_copies = num_copies,
      .num_blocks = num_blocks,
      .num_pieces = num_pieces});
  set_pieces(launch, num_pieces, 1);
  return launch;
}

std::vector<KernelLaunch> all_kernels() {
  constexpr DType kDTypes[] = {DType::Float32, DType::Float16, DType::BFloat16};
  std::vector<KernelLaunch> kernels = {copy_kernel()};
  for (const DType q : kDTypes) {
    kernels.push_back(combine_kernel(q));
    for (const DType kv : kDTypes) {
      for (const int piece : {1, 8}) {
        kernels.push_back(append_kernel(q, kv, piece));
      }
      for (const int head_dim : kHeadDims) {
        std::vector<DecodeVariant> seen;
        for (const int group_size : kPaddedGroupSizes) {
          const auto variant = default_variant(q, kv, head_dim, group_size);
          // Two side by side serve a group of 8 with the kernel of 4.
          if (std::find(seen.begin(), seen.end(), variant) == seen.end()) {
            kernels.push_back(decode_kernel(q, kv, head_dim, variant));
            seen.push_back(variant);
          }
        }
      }
    }
  }
  return kernels;
}

std::vector<KernelLaunch>
variant_kernels(DType q_dtype, DType kv_dtype, int head_dim) {
  std::vector<KernelLaunch> kernels;
  for (const int group_size : kPaddedGroupSizes) {
    for (const DecodeVariant& variant :
         decode_variants(q_dtype, kv_dtype, head_dim, group_size)) {
      auto kernel = decode_kernel(q_dtype, kv_dtype, head_dim, variant);
      if (std::find(kernels.begin(), kernels.end(), kernel) == kernels.end()) {
        kernels.push_back(std::move(kernel));
      }
    }
  }
  return kernels;
}

}  // namespace quire::metal
