#include "support/paged_case.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <sstream>

#include "kernels/reference/paged_decode_reference.h"
#include "support/element.h"

namespace quire::test {

std::string PagedCaseSpec::name() const {
  std::ostringstream text;
  text << num_q_heads << '/' << num_kv_heads << " heads, head_dim " << head_dim
       << ", block_size " << block_size << ", q " << dtype_name(q_dtype)
       << ", cache " << dtype_name(kv_dtype) << ", seed " << seed
       << ", seq_lens";
  for (const int seq_len : seq_lens) {
    text << ' ' << seq_len;
  }
  return text.str();
}

PagedCase make_paged_case(const PagedCaseSpec& spec) {
  std::mt19937 rng(spec.seed);
  std::normal_distribution<float> normal;
  const auto blocks_of = [&](int seq_len) {
    return (seq_len + spec.block_size - 1) / spec.block_size;
  };
  int num_used = 0;
  int width = 0;
  for (const int seq_len : spec.seq_lens) {
    num_used += blocks_of(seq_len);
    width = std::max(width, blocks_of(seq_len));
  }
  width += spec.num_unused_entries;

  PagedCase c;
  c.q_dtype = spec.q_dtype;
  c.kv_dtype = spec.kv_dtype;
  c.params = {
      .num_seqs = static_cast<std::int32_t>(spec.seq_lens.size()),
      .num_q_heads = spec.num_q_heads,
      .num_kv_heads = spec.num_kv_heads,
      .head_dim = spec.head_dim,
      .num_blocks = num_used + spec.num_spare_blocks,
      .block_size = spec.block_size,
      .max_blocks_per_seq = width,
      .num_splits = 0,
      .scale = 1.0f / std::sqrt(static_cast<float>(spec.head_dim)),
  };
  c.seq_lens.assign(spec.seq_lens.begin(), spec.seq_lens.end());

  std::vector<std::int32_t> ids(static_cast<std::size_t>(c.params.num_blocks));
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), rng);

  const auto token_elems = static_cast<std::size_t>(spec.num_kv_heads) *
                           static_cast<std::size_t>(spec.head_dim);
  const std::size_t block_elems =
      token_elems * static_cast<std::size_t>(spec.block_size);
  std::vector<float> k(block_elems * ids.size(), spec.poison);
  std::vector<float> v = k;
  auto next_id = ids.begin();
  for (const int seq_len : spec.seq_lens) {
    for (int j = 0; j < width; ++j) {
      const bool used = j < blocks_of(seq_len);
      c.block_table.push_back(used ? *next_id++ : spec.unused_id);
      if (!used) {
        continue;
      }
      const int tokens =
          std::min(spec.block_size, seq_len - j * spec.block_size);
      const std::size_t begin =
          static_cast<std::size_t>(c.block_table.back()) * block_elems;
      const std::size_t end =
          begin + static_cast<std::size_t>(tokens) * token_elems;
      for (std::size_t i = begin; i < end; ++i) {
        k[i] = normal(rng);
        v[i] = normal(rng);
      }
    }
  }
  std::vector<float> q(
      spec.seq_lens.size() * static_cast<std::size_t>(spec.num_q_heads) *
      static_cast<std::size_t>(spec.head_dim));
  std::generate(q.begin(), q.end(), [&] { return normal(rng); });
  c.q = to_elements(q, spec.q_dtype);
  c.k_cache = to_elements(k, spec.kv_dtype);
  c.v_cache = to_elements(v, spec.kv_dtype);
  return c;
}

DecodeArgs PagedCase::args() const {
  return {
      .params = params,
      .q_dtype = q_dtype,
      .kv_dtype = kv_dtype,
      .q = q.data(),
      .k_cache = k_cache.data(),
      .v_cache = v_cache.data(),
      .block_table = block_table.data(),
      .seq_lens = seq_lens.data(),
  };
}

std::vector<double> PagedCase::expected() const {
  std::vector<double> out(q.size() / dtype_bytes(q_dtype));
  reference::paged_decode(args(), out.data());
  return out;
}

std::vector<std::byte> to_elements(
    const std::vector<float>& values,
    DType dtype) {
  std::vector<std::byte> out(values.size() * dtype_bytes(dtype));
  for (std::size_t i = 0; i < values.size(); ++i) {
    testing::store_element(
        out.data(), static_cast<std::int64_t>(i), dtype, values[i]);
  }
  return out;
}

std::vector<float>
from_elements(const void* data, std::size_t size, DType dtype) {
  std::vector<float> out(size);
  for (std::size_t i = 0; i < size; ++i) {
    out[i] = static_cast<float>(
        testing::load_element(data, static_cast<std::int64_t>(i), dtype));
  }
  return out;
}

std::string compare(
    const std::vector<float>& actual,
    const std::vector<double>& expected,
    DType dtype) {
  const double half_ulp = dtype == DType::Float32   ? 0x1p-24
                          : dtype == DType::Float16 ? 0x1p-11
                                                    : 0x1p-8;
  std::ostringstream text;
  if (actual.size() != expected.size()) {
    text << "got " << actual.size() << " values for " << expected.size();
    return text.str();
  }
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double bound = 1e-5 + half_ulp * std::fabs(expected[i]);
    // Negated, so that NaN fails.
    if (!(std::fabs(static_cast<double>(actual[i]) - expected[i]) <= bound)) {
      text << "element " << i << " is " << actual[i] << ", expected "
           << expected[i];
      return text.str();
    }
  }
  return "";
}

}  // namespace quire::test
