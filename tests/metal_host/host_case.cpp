#include "host_case.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/float_bits.h"
#include "kernels/reference/paged_decode_reference.h"
#include "lockstep.h"

// Defined by MSan's runtime where the program has it.
extern "C" __attribute__((weak)) void __msan_poison(
    const volatile void* data,
    std::size_t num_bytes);
extern "C" __attribute__((weak)) void __msan_unpoison(
    const volatile void* data,
    std::size_t num_bytes);
extern "C" __attribute__((weak)) void __msan_check_mem_is_initialized(
    const volatile void* data,
    std::size_t num_bytes);

namespace quire::metal_host {
namespace {

constexpr std::size_t kCanaryBytes = 64;
constexpr unsigned char kCanary = 0xa5;
constexpr std::int32_t kUnusedBlock = 2147480000;
constexpr int kFreeBlocks = 3;

// 0xff in every byte is NaN in all three types.
std::vector<unsigned char> guarded(std::size_t num_bytes) {
  std::vector<unsigned char> bytes(num_bytes + 2 * kCanaryBytes, kCanary);
  std::fill_n(bytes.begin() + kCanaryBytes, num_bytes, 0xff);
  if (__msan_poison) {
    __msan_poison(bytes.data() + kCanaryBytes, num_bytes);
  }
  return bytes;
}

bool canaries_whole(const std::vector<unsigned char>& bytes) {
  const auto whole = [](auto begin) {
    return std::all_of(begin, begin + kCanaryBytes, [](unsigned char c) {
      return c == kCanary;
    });
  };
  return whole(bytes.begin()) && whole(bytes.end() - kCanaryBytes);
}

void store(unsigned char* at, DType dtype, float value) {
  const auto put = [&](auto bits) {
    std::copy_n(reinterpret_cast<const unsigned char*>(&bits), sizeof bits, at);
  };
  if (dtype == DType::Float32) {
    put(value);
  } else {
    put(dtype == DType::Float16 ? f16_from_f32(value) : bf16_from_f32(value));
  }
}

float load(const unsigned char* at, DType dtype) {
  if (dtype == DType::Float32) {
    float value;
    std::copy_n(at, sizeof value, reinterpret_cast<unsigned char*>(&value));
    return value;
  }
  std::uint16_t bits;
  std::copy_n(at, sizeof bits, reinterpret_cast<unsigned char*>(&bits));
  return dtype == DType::Float16 ? f32_from_f16(bits) : f32_from_bf16(bits);
}

}  // namespace

std::ostream& operator<<(std::ostream& stream, const HostCase& c) {
  stream << "q " << dtype_name(c.q_dtype) << " cache " << dtype_name(c.kv_dtype)
         << " head_dim " << c.head_dim << " group " << c.group_size
         << " kv_heads " << c.num_kv_heads << " block " << c.block_size
         << " splits " << c.num_splits << " q_scale " << c.q_scale << " seed "
         << c.seed << " lens";
  for (const int seq_len : c.seq_lens) {
    stream << ' ' << seq_len;
  }
  return stream;
}

HostProblem::HostProblem(const HostCase& c)
    : case_(c), lens_(c.seq_lens.begin(), c.seq_lens.end()) {
  const auto blocks_of = [&](int seq_len) {
    return (seq_len + c.block_size - 1) / c.block_size;
  };
  int num_used = 0;
  int width = 1;
  for (const int seq_len : lens_) {
    num_used += blocks_of(seq_len);
    width = std::max(width, blocks_of(seq_len));
  }
  params_ = {
      .num_seqs = static_cast<int>(lens_.size()),
      .num_q_heads = c.group_size * c.num_kv_heads,
      .num_kv_heads = c.num_kv_heads,
      .head_dim = c.head_dim,
      .num_blocks = num_used + kFreeBlocks,
      .block_size = c.block_size,
      .max_blocks_per_seq = width,
      .num_splits = c.num_splits,
      .scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim))};

  std::mt19937 random(c.seed);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(params_.num_blocks));
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), random);
  table_.assign(lens_.size() * static_cast<std::size_t>(width), kUnusedBlock);
  auto next_id = ids.begin();
  for (std::size_t seq = 0; seq < lens_.size(); ++seq) {
    std::copy_n(
        next_id,
        blocks_of(lens_[seq]),
        table_.begin() + static_cast<std::ptrdiff_t>(seq) * width);
    next_id += blocks_of(lens_[seq]);
  }

  std::normal_distribution<float> normal;
  const std::size_t kv_bytes = dtype_bytes(c.kv_dtype);
  const std::size_t q_bytes = dtype_bytes(c.q_dtype);
  const std::size_t token_elems =
      static_cast<std::size_t>(c.num_kv_heads * c.head_dim);
  const std::size_t q_elems = lens_.size() *
                              static_cast<std::size_t>(params_.num_q_heads) *
                              static_cast<std::size_t>(c.head_dim);
  q_.resize(q_elems * q_bytes);
  for (std::size_t i = 0; i < q_elems; ++i) {
    store(q_.data() + i * q_bytes, c.q_dtype, normal(random) * c.q_scale);
  }
  const std::size_t pool_bytes = static_cast<std::size_t>(params_.num_blocks) *
                                 static_cast<std::size_t>(c.block_size) *
                                 token_elems * kv_bytes;
  k_.assign(pool_bytes, 0xff);
  v_.assign(pool_bytes, 0xff);
  if (__msan_poison) {
    __msan_poison(k_.data(), pool_bytes);
    __msan_poison(v_.data(), pool_bytes);
  }
  for (std::size_t seq = 0; seq < lens_.size(); ++seq) {
    for (int token = 0; token < lens_[seq]; ++token) {
      const auto block = static_cast<std::size_t>(
          table_
              [seq * static_cast<std::size_t>(width) +
               static_cast<std::size_t>(token / c.block_size)]);
      const std::size_t row = (block * static_cast<std::size_t>(c.block_size) +
                               static_cast<std::size_t>(token % c.block_size)) *
                              token_elems * kv_bytes;
      for (auto* cache : {&k_, &v_}) {
        unsigned char* at = cache->data() + row;
        if (__msan_unpoison) {
          __msan_unpoison(at, token_elems * kv_bytes);
        }
        for (std::size_t i = 0; i < token_elems; ++i) {
          store(at + i * kv_bytes, c.kv_dtype, normal(random));
        }
      }
    }
  }
  out_ = guarded(q_elems * q_bytes);
}

HostProblem::~HostProblem() {
  lockstep::forget_buffers();
}

DecodeArgs HostProblem::args() {
  return {
      .params = params_,
      .q_dtype = case_.q_dtype,
      .kv_dtype = case_.kv_dtype,
      .q = q_.data(),
      .k_cache = k_.data(),
      .v_cache = v_.data(),
      .block_table = table_.data(),
      .seq_lens = lens_.data(),
      .out = out_.data() + kCanaryBytes};
}

void HostProblem::run(const metal::DecodeLaunch& launch, unsigned schedule) {
  if (workspace_.size() !=
      static_cast<std::size_t>(launch.workspace_bytes) + 2 * kCanaryBytes) {
    workspace_ = guarded(static_cast<std::size_t>(launch.workspace_bytes));
  }
  metal_host::run(launch, args(), workspace_.data() + kCanaryBytes, schedule);
  if (__msan_check_mem_is_initialized) {
    __msan_check_mem_is_initialized(
        out_.data() + kCanaryBytes, out_.size() - 2 * kCanaryBytes);
  }
}

void HostProblem::watch(const metal::DecodeLaunch& launch) {
  workspace_ = guarded(static_cast<std::size_t>(launch.workspace_bytes));
  lockstep::forget_buffers();
  const auto show = [](const char* name, const auto& v, bool writable) {
    const std::size_t margin = writable ? kCanaryBytes : 0;
    lockstep::watch_buffer(
        name, v.data() + margin, v.size() * sizeof v[0] - 2 * margin, writable);
  };
  show("q", q_, false);
  show("k", k_, false);
  show("v", v_, false);
  show("table", table_, false);
  show("lens", lens_, false);
  show("workspace", workspace_, true);
  show("out", out_, true);
}

void HostProblem::permute_blocks() {
  const auto num_blocks = static_cast<std::size_t>(params_.num_blocks);
  const std::size_t block_bytes = k_.size() / num_blocks;
  for (auto* cache : {&k_, &v_}) {
    std::rotate(
        cache->begin(),
        cache->end() - static_cast<std::ptrdiff_t>(block_bytes),
        cache->end());
  }
  for (std::int32_t& block : table_) {
    if (block != kUnusedBlock) {
      block = (block + 1) % params_.num_blocks;
    }
  }
  if (__msan_unpoison) {
    __msan_unpoison(k_.data(), k_.size());
    __msan_unpoison(v_.data(), v_.size());
  }
}

void HostProblem::fill_head_with_nan(int kv_head) {
  const std::size_t row =
      static_cast<std::size_t>(case_.head_dim) * dtype_bytes(case_.kv_dtype);
  const std::size_t stride = row * static_cast<std::size_t>(case_.num_kv_heads);
  for (auto* cache : {&k_, &v_}) {
    for (std::size_t at = row * static_cast<std::size_t>(kv_head);
         at < cache->size();
         at += stride) {
      std::fill_n(cache->data() + at, row, 0xff);
    }
  }
}

double HostProblem::max_error() const {
  constexpr double kWrong = std::numeric_limits<double>::infinity();
  if (!canaries_whole(out_) ||
      (!workspace_.empty() && !canaries_whole(workspace_))) {
    return kWrong;
  }
  const std::size_t bytes = dtype_bytes(case_.q_dtype);
  const std::size_t num_elems = (out_.size() - 2 * kCanaryBytes) / bytes;
  const auto head_dim = static_cast<std::size_t>(case_.head_dim);
  std::vector<double> expected(num_elems);
  reference::paged_decode(
      const_cast<HostProblem*>(this)->args(), expected.data());
  double worst = 0.0;
  for (std::size_t row = 0; row < num_elems; row += head_dim) {
    double error = 0.0;
    double norm = 0.0;
    for (std::size_t i = row; i < row + head_dim; ++i) {
      const double actual =
          load(out_.data() + kCanaryBytes + i * bytes, case_.q_dtype);
      error += (actual - expected[i]) * (actual - expected[i]);
      norm += expected[i] * expected[i];
    }
    const double relative = norm > 0.0     ? std::sqrt(error / norm)
                            : error == 0.0 ? 0.0
                                           : kWrong;
    worst = relative <= worst  ? worst
            : relative > worst ? relative
                               : kWrong;  // NaN
  }
  return worst;
}

std::vector<unsigned char> HostProblem::result() const {
  return {out_.begin() + kCanaryBytes, out_.end() - kCanaryBytes};
}

std::int64_t HostProblem::num_tokens() const {
  return std::accumulate(lens_.begin(), lens_.end(), std::int64_t{0});
}

double error_bound(const HostCase& c) {
  switch (c.q_dtype) {
    case DType::Float16:
      return 6e-4;
    case DType::BFloat16:
      return 5e-3;
    case DType::Float32:
      break;
  }
  // Logits of size q_scale carry an absolute error that exp makes relative.
  return (c.kv_dtype == DType::Float32 ? 2e-6 : 3e-6) * (1.0 + c.q_scale);
}

}  // namespace quire::metal_host
