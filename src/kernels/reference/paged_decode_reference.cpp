#include "kernels/reference/paged_decode_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/float_bits.h"

namespace quire::reference {
namespace {

double element(const void* data, std::int64_t idx, DType dtype) {
  if (dtype == DType::Float32) {
    return static_cast<const float*>(data)[idx];
  }
  const std::uint16_t bits = static_cast<const std::uint16_t*>(data)[idx];
  return dtype == DType::Float16 ? f32_from_f16(bits) : f32_from_bf16(bits);
}

}  // namespace

void paged_decode(const DecodeArgs& args, double* out) {
  const DecodeParams& p = args.params;
  const int group_size = p.num_q_heads / p.num_kv_heads;
  std::vector<double> weights;
  for (int seq = 0; seq < p.num_seqs; ++seq) {
    const std::int32_t* table =
        args.block_table + std::int64_t{seq} * p.max_blocks_per_seq;
    const int seq_len = args.seq_lens[seq];
    for (int head = 0; head < p.num_q_heads; ++head) {
      // First element of a token's row, in both caches.
      const auto kv_row = [&](int token) {
        const std::int64_t slot =
            std::int64_t{table[token / p.block_size]} * p.block_size +
            token % p.block_size;
        return (slot * p.num_kv_heads + head / group_size) * p.head_dim;
      };
      const std::int64_t q_row =
          (std::int64_t{seq} * p.num_q_heads + head) * p.head_dim;

      weights.assign(static_cast<std::size_t>(seq_len), 0.0);
      double max = -std::numeric_limits<double>::infinity();
      for (int token = 0; token < seq_len; ++token) {
        double dot = 0.0;
        for (int d = 0; d < p.head_dim; ++d) {
          dot += element(args.q, q_row + d, args.q_dtype) *
                 element(args.k_cache, kv_row(token) + d, args.kv_dtype);
        }
        double& logit = weights[static_cast<std::size_t>(token)];
        logit = dot * static_cast<double>(p.scale);
        max = std::max(max, logit);
      }
      double sum = 0.0;
      for (double& weight : weights) {
        weight = std::exp(weight - max);
        sum += weight;
      }
      std::fill(out + q_row, out + q_row + p.head_dim, 0.0);
      for (int token = 0; token < seq_len; ++token) {
        const double weight = weights[static_cast<std::size_t>(token)] / sum;
        for (int d = 0; d < p.head_dim; ++d) {
          out[q_row + d] +=
              weight * element(args.v_cache, kv_row(token) + d, args.kv_dtype);
        }
      }
    }
  }
}

}  // namespace quire::reference
