#include "support/compare.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "kernels/reference/paged_decode_reference.h"
#include "support/element.h"

namespace quire::testing {
namespace {

constexpr double kFloat32Roundoff = 0x1p-24;
// Probabilistic rounding analysis (Higham and Mary, 2019): n roundings grow
// like lambda sqrt(n) u; with lambda = 8 a sound kernel never exceeds it.
constexpr double kLambda = 8;

double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::Float32:
      return kFloat32Roundoff;
    case DType::Float16:
      return 0x1p-11;
    case DType::BFloat16:
      return 0x1p-8;
  }
  return 0;
}

double smallest_step(DType dtype) {
  return dtype == DType::Float16 ? 0x1p-24 : 0x1p-126;
}

double norm(const void* data, std::int64_t begin, int n, DType dtype) {
  double sum = 0;
  for (int i = 0; i < n; ++i) {
    const double x = load_element(data, begin + i, dtype);
    sum += x * x;
  }
  return std::sqrt(sum);
}

// The largest norm of a sequence's keys of one KV head.
double max_key_norm(const DecodeArgs& args, int seq, int kv_head) {
  const DecodeParams& p = args.params;
  double largest = 0;
  for (int token = 0; token < args.seq_lens[seq]; ++token) {
    const std::int64_t block =
        args.block_table
            [std::int64_t{seq} * p.max_blocks_per_seq + token / p.block_size];
    const std::int64_t row =
        ((block * p.block_size + token % p.block_size) * p.num_kv_heads +
         kv_head) *
        p.head_dim;
    largest =
        std::max(largest, norm(args.k_cache, row, p.head_dim, args.kv_dtype));
  }
  return largest;
}

// The same step over |V|, read in place through a copy of the blocks it uses.
std::vector<double> reference_of_magnitudes(const DecodeArgs& args) {
  const DecodeParams& p = args.params;
  const std::int64_t block_elems =
      std::int64_t{p.block_size} * p.num_kv_heads * p.head_dim;
  DecodeArgs magnitudes = args;
  std::vector<std::int32_t> table;
  std::vector<std::uint8_t> k, v;
  const auto block_bytes =
      static_cast<std::size_t>(block_elems) * dtype_bytes(args.kv_dtype);
  std::int32_t next = 0;
  for (int seq = 0; seq < p.num_seqs; ++seq) {
    const std::int32_t* row =
        args.block_table + std::int64_t{seq} * p.max_blocks_per_seq;
    const int num_blocks =
        (args.seq_lens[seq] + p.block_size - 1) / p.block_size;
    for (int b = 0; b < p.max_blocks_per_seq; ++b) {
      table.push_back(b < num_blocks ? next++ : 0);
      if (b < num_blocks) {
        const std::size_t at = static_cast<std::size_t>(row[b]) * block_bytes;
        const auto* k_from = static_cast<const std::uint8_t*>(args.k_cache);
        const auto* v_from = static_cast<const std::uint8_t*>(args.v_cache);
        k.insert(k.end(), k_from + at, k_from + at + block_bytes);
        v.insert(v.end(), v_from + at, v_from + at + block_bytes);
      }
    }
  }
  // The sign is the highest bit of every one of the three types.
  const std::size_t elem = dtype_bytes(args.kv_dtype);
  for (std::size_t i = elem - 1; i < v.size(); i += elem) {
    v[i] &= 0x7f;
  }
  magnitudes.params.num_blocks = std::max(next, 1);
  magnitudes.k_cache = k.data();
  magnitudes.v_cache = v.data();
  magnitudes.block_table = table.data();
  std::vector<double> out(
      static_cast<std::size_t>(p.num_seqs) *
      static_cast<std::size_t>(p.num_q_heads * p.head_dim));
  reference::paged_decode(magnitudes, out.data());
  return out;
}

}  // namespace

Expected expect(const DecodeArgs& args, const Rounding& rounding) {
  const DecodeParams& p = args.params;
  Expected expected;
  expected.out.resize(
      static_cast<std::size_t>(p.num_seqs) *
      static_cast<std::size_t>(p.num_q_heads * p.head_dim));
  reference::paged_decode(args, expected.out.data());
  const std::vector<double> magnitude = reference_of_magnitudes(args);

  expected.bound.resize(expected.out.size());
  const double u = kFloat32Roundoff;
  const int group_size = p.num_q_heads / p.num_kv_heads;
  for (int seq = 0; seq < p.num_seqs; ++seq) {
    double key_norm = 0;
    for (int head = 0; head < p.num_q_heads; ++head) {
      if (head % group_size == 0) {
        key_norm = max_key_norm(args, seq, head / group_size);
      }
      const std::int64_t row =
          (std::int64_t{seq} * p.num_q_heads + head) * p.head_dim;
      const double q_norm = norm(args.q, row, p.head_dim, args.q_dtype);
      // Error of a logit, natural units.
      const double logit_error =
          std::fabs(p.scale) * q_norm * key_norm *
          (kLambda * std::sqrt(p.head_dim) * u +
           (rounding.q_to_kv_dtype ? unit_roundoff(args.kv_dtype) : 0));
      const double weight_error =
          std::expm1(2 * logit_error) + 16 * u +
          (rounding.weights_to_kv_dtype ? 2 * unit_roundoff(args.kv_dtype) : 0);
      const double sum_error =
          2 * kLambda * std::sqrt(std::max(args.seq_lens[seq], 1)) * u;
      const double relative = std::min(weight_error + sum_error, 2.0);
      for (int d = 0; d < p.head_dim; ++d) {
        const auto i = static_cast<std::size_t>(row + d);
        const double before_store = magnitude[i] * relative;
        expected.bound[i] = before_store +
                            unit_roundoff(args.q_dtype) *
                                (std::fabs(expected.out[i]) + before_store) +
                            smallest_step(args.q_dtype);
      }
    }
  }
  return expected;
}

ErrorStats compare(
    const void* out,
    DType dtype,
    const std::vector<double>& expected,
    const std::vector<double>& bound) {
  ErrorStats stats;
  double error_sum = 0;
  double reference_sum = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double x = load_element(out, static_cast<std::int64_t>(i), dtype);
    if (!std::isfinite(x)) {
      stats.finite = false;
      stats.worst = static_cast<std::int64_t>(i);
      continue;
    }
    const double error = std::fabs(x - expected[i]);
    error_sum += error * error;
    reference_sum += expected[i] * expected[i];
    stats.max_abs = std::max(stats.max_abs, error);
    if (stats.finite &&
        (stats.worst < 0 || error > stats.max_over_bound * bound[i])) {
      stats.max_over_bound = error / bound[i];
      stats.bound = bound[i];
      stats.worst = static_cast<std::int64_t>(i);
    }
  }
  const auto n = static_cast<double>(std::max<std::size_t>(expected.size(), 1));
  stats.rms = std::sqrt(error_sum / n);
  stats.reference_rms = std::sqrt(reference_sum / n);
  stats.relative_rms = error_sum == 0 ? 0
                       : reference_sum == 0
                           ? INFINITY
                           : std::sqrt(error_sum / reference_sum);
  return stats;
}

Limits limits_of(const ErrorStats& stats) {
  return {.rms = kRmsThreshold * std::max(1.0, stats.reference_rms)};
}

std::string verdict(const ErrorStats& stats, const Limits& limits) {
  std::ostringstream text;
  if (!stats.finite) {
    text << "element " << stats.worst << " is not finite";
  } else if (!(stats.rms < limits.rms)) {
    text << "RMS " << stats.rms << " is not below " << limits.rms;
  } else if (!(stats.relative_rms < limits.relative_rms)) {
    text << "relative RMS " << stats.relative_rms << " is not below "
         << limits.relative_rms;
  } else if (stats.max_over_bound > 1) {
    text << "element " << stats.worst << " is "
         << stats.max_over_bound * stats.bound << " off; its bound is "
         << stats.bound;
  }
  return text.str();
}

}  // namespace quire::testing
