// Inputs of one decode step made to catch the lie: permuted tables, poison in
// every slot that must not be read, huge ids where none may be followed,
// canaries round the output.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/decode_params.h"
#include "kernels/float_bits.h"

namespace quire::test {

struct DecodeCase {
  DType q_dtype = DType::Float32;
  DType kv_dtype = DType::Float32;
  int num_q_heads = 4;
  int num_kv_heads = 2;
  int head_dim = 64;
  int block_size = 16;
  std::vector<int> seq_lens = {17};
  int extra_width = 2;  // entries of the table that no sequence needs
  std::uint32_t seed = 1;
};

inline void
put(std::vector<std::byte>& data, std::int64_t idx, float x, DType dtype) {
  if (dtype == DType::Float32) {
    std::memcpy(data.data() + 4 * idx, &x, 4);
    return;
  }
  const std::uint16_t bits =
      dtype == DType::Float16 ? f16_from_f32(x) : bf16_from_f32(x);
  std::memcpy(data.data() + 2 * idx, &bits, 2);
}

inline float
get(const std::vector<std::byte>& data, std::int64_t idx, DType dtype) {
  if (dtype == DType::Float32) {
    float x;
    std::memcpy(&x, data.data() + 4 * idx, 4);
    return x;
  }
  std::uint16_t bits;
  std::memcpy(&bits, data.data() + 2 * idx, 2);
  return dtype == DType::Float16 ? f32_from_f16(bits) : f32_from_bf16(bits);
}

/** Normal deviates from a table: cheap enough for millions. */
class Normal {
 public:
  explicit Normal(std::uint32_t seed) : state_(seed * 2654435761u + 1) {}
  float operator()() {
    static const std::vector<float> table = [] {
      std::mt19937 rng(7);
      std::normal_distribution<float> normal;
      std::vector<float> values(1 << 14);
      std::generate(values.begin(), values.end(), [&] { return normal(rng); });
      return values;
    }();
    state_ = state_ * 1664525u + 1013904223u;
    return table[state_ >> 18];
  }

 private:
  std::uint32_t state_;
};

class DecodeInputs {
 public:
  static constexpr std::int32_t kUnusedId = 2147480000;
  static constexpr int kCanaries = 64;

  DecodeInputs(const DecodeCase& c, float poison)
      : c_(c), seq_lens_(c.seq_lens.begin(), c.seq_lens.end()) {
    const int num_seqs = static_cast<int>(c.seq_lens.size());
    const int longest =
        num_seqs == 0 ? 0
                      : *std::max_element(c.seq_lens.begin(), c.seq_lens.end());
    width_ = (longest + c.block_size - 1) / c.block_size + c.extra_width;
    int used = 0;
    for (const int len : c.seq_lens) {
      used += (len + c.block_size - 1) / c.block_size;
    }
    num_blocks_ = used + 3;  // the others stay poison
    std::vector<std::int32_t> ids(static_cast<std::size_t>(num_blocks_));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(c.seed));

    const std::int64_t row = std::int64_t{c.num_kv_heads} * c.head_dim;
    const std::int64_t cache_size = num_blocks_ * c.block_size * row;
    const std::size_t kv_bytes = dtype_bytes(c.kv_dtype);
    k.resize(static_cast<std::size_t>(cache_size) * kv_bytes);
    v.resize(k.size());
    put(k, 0, poison, c.kv_dtype);
    for (std::size_t at = kv_bytes; at < k.size(); at += kv_bytes) {
      std::memcpy(k.data() + at, k.data(), kv_bytes);
    }
    v = k;
    table.assign(
        static_cast<std::size_t>(num_seqs) * static_cast<std::size_t>(width_),
        kUnusedId);
    Normal normal(c.seed);
    std::size_t next_id = 0;
    for (int seq = 0; seq < num_seqs; ++seq) {
      for (int token = 0; token < c.seq_lens[static_cast<std::size_t>(seq)];
           ++token) {
        std::int32_t& id = table[static_cast<std::size_t>(
            seq * width_ + token / c.block_size)];
        if (token % c.block_size == 0) {
          id = ids[next_id++];
        }
        const std::int64_t at =
            (std::int64_t{id} * c.block_size + token % c.block_size) * row;
        for (std::int64_t i = 0; i < row; ++i) {
          put(k, at + i, normal(), c.kv_dtype);
          put(v, at + i, normal(), c.kv_dtype);
        }
      }
    }
    out_size_ = std::int64_t{num_seqs} * c.num_q_heads * c.head_dim;
    q.resize(static_cast<std::size_t>(out_size_) * dtype_bytes(c.q_dtype));
    for (std::int64_t i = 0; i < out_size_; ++i) {
      put(q, i, normal(), c.q_dtype);
    }
  }

  /** Arguments with a fresh output: garbage inside, canaries round it. */
  DecodeArgs args(int num_splits = 0) {
    const std::size_t bytes = q.size();
    out_.assign(bytes + 2 * kCanaries, std::byte{0xa5});
    DecodeArgs a;
    a.params = {
        .num_seqs = static_cast<int>(c_.seq_lens.size()),
        .num_q_heads = c_.num_q_heads,
        .num_kv_heads = c_.num_kv_heads,
        .head_dim = c_.head_dim,
        .num_blocks = num_blocks_,
        .block_size = c_.block_size,
        .max_blocks_per_seq = width_,
        .num_splits = num_splits,
        .scale = 1.0f / std::sqrt(static_cast<float>(c_.head_dim))};
    a.q_dtype = c_.q_dtype;
    a.kv_dtype = c_.kv_dtype;
    a.q = q.data();
    a.k_cache = k.data();
    a.v_cache = v.data();
    a.block_table = table.data();
    a.seq_lens = seq_lens_.data();
    a.out = out_.data() + kCanaries;
    return a;
  }

  /** The bytes of the output. */
  std::vector<std::byte> out() const {
    return {out_.begin() + kCanaries, out_.end() - kCanaries};
  }
  bool canaries_alive() const {
    const auto alive = [](std::byte b) { return b == std::byte{0xa5}; };
    return std::all_of(out_.begin(), out_.begin() + kCanaries, alive) &&
           std::all_of(out_.end() - kCanaries, out_.end(), alive);
  }
  std::int64_t out_size() const {
    return out_size_;
  }
  int width() const {
    return width_;
  }

  std::vector<std::byte> q;
  std::vector<std::byte> k;
  std::vector<std::byte> v;
  std::vector<std::int32_t> table;

 private:
  DecodeCase c_;
  std::vector<std::int32_t> seq_lens_;
  std::vector<std::byte> out_;
  int width_ = 0;
  int num_blocks_ = 0;
  std::int64_t out_size_ = 0;
};

/**
 * How far a result may be from the double reference, for inputs of N(0, 1).
 *
 * A logit is a sum of head_dim products of size 1, so its rounding errors add
 * up like a random walk to sqrt(head_dim) * 2^-24 of its terms' size, times
 * scale = 1 / sqrt(head_dim), times the largest of them that a test meets
 * (below 8 sigma). A weight errs by as much relatively, and an output by twice
 * that times |v| < 4.5: 8 * 2 * 4.5 * 2^-24 = 72 * 2^-24. exp2's own error
 * (8e-8, 1.3 * 2^-24) and the sum's are within the rounding up to 128. On top
 * comes half a unit in the last place of the result's dtype.
 */
inline double tolerance(DType out_dtype, double reference, double logit = 1.0) {
  constexpr double kUnit = 0x1p-24;
  const double rounding = out_dtype == DType::Float32   ? 0x1p-24
                          : out_dtype == DType::Float16 ? 0x1p-11
                                                        : 0x1p-8;
  return 128 * kUnit * std::max(1.0, logit) + rounding * std::abs(reference) +
         0x1p-25;
}

/** The largest |out - reference| in units of the tolerance; NaN is infinite. */
inline double worst_error(
    const std::vector<std::byte>& out,
    const std::vector<double>& reference,
    DType dtype,
    double logit = 1.0) {
  double worst = 0.0;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    const double x = get(out, static_cast<std::int64_t>(i), dtype);
    const double error =
        std::abs(x - reference[i]) / tolerance(dtype, reference[i], logit);
    worst = error <= worst      ? worst
            : std::isnan(error) ? std::numeric_limits<double>::infinity()
                                : error;
  }
  return worst;
}

}  // namespace quire::test
