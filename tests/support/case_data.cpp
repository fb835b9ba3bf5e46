#include "support/case_data.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <numeric>
#include <random>

#include "support/element.h"

namespace quire::testing {
namespace {

constexpr std::uint8_t kCanary = 0xa5;
constexpr std::int64_t kSparsePoolElems = (std::int64_t{1} << 31) + (1 << 23);

// Random elements, drawn from a table of values that are converted once: a
// case with millions of elements is made in milliseconds.
class Elements {
 public:
  Elements(DType dtype, std::mt19937_64& random)
      : dtype_(dtype), values_(kNumValues * dtype_bytes(dtype)) {
    std::normal_distribution<float> normal;
    for (int i = 0; i < kNumValues; ++i) {
      const float x = normal(random) * (i % 64 == 0 ? 8.0f : 1.0f);
      store_element(values_.data(), i, dtype, x);
    }
  }

  void fill(void* data, std::int64_t n, std::mt19937_64& random) const {
    const std::size_t bytes = dtype_bytes(dtype_);
    auto* to = static_cast<std::uint8_t*>(data);
    std::uint64_t bits = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      bits = i % 5 == 0 ? random() : bits >> 12;
      std::memcpy(
          to + static_cast<std::size_t>(i) * bytes,
          values_.data() + (bits % kNumValues) * bytes,
          bytes);
    }
  }

 private:
  static constexpr int kNumValues = 4096;
  DType dtype_;
  std::vector<std::uint8_t> values_;
};

float poison_value(Poison kind) {
  switch (kind) {
    case Poison::NaN:
      return std::numeric_limits<float>::quiet_NaN();
    case Poison::Infinity:
      return std::numeric_limits<float>::infinity();
    case Poison::Zero:
      return 0.0f;
    case Poison::Large:
      return 1e4f;
  }
  return 0.0f;
}

}  // namespace

void FreePool::operator()(void* memory) const {
  if (mapped_bytes > 0) {
    munmap(memory, mapped_bytes);
  } else {
    std::free(memory);
  }
}

CaseData::Memory CaseData::allocate(std::size_t bytes, bool sparse) {
  if (!sparse) {
    // From the heap, where the address sanitizer sees an overrun.
    void* memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (memory == nullptr) {
      throw std::bad_alloc();
    }
    return Memory(memory, FreePool{});
  }
  void* memory = mmap(
      nullptr,
      bytes,
      PROT_READ | PROT_WRITE,
      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
      -1,
      0);
  if (memory == MAP_FAILED) {
    throw std::bad_alloc();
  }
  return Memory(memory, FreePool{bytes});
}

CaseData::CaseData(const DecodeCase& c, std::uint64_t seed)
    : seq_lens_(c.seq_lens.begin(), c.seq_lens.end()) {
  std::mt19937_64 random(std::hash<std::string>()(c.name) + seed);
  const bool sparse = c.cost == Cost::Sparse;
  const auto num_seqs = static_cast<int>(c.seq_lens.size());
  const std::int64_t block_elems =
      std::int64_t{c.block_size} * c.num_kv_heads * c.head_dim;
  const auto blocks_of = [&](int seq_len) {
    return (seq_len + c.block_size - 1) / c.block_size;
  };

  int num_used = 0;
  int width = 0;
  for (const int seq_len : c.seq_lens) {
    num_used += blocks_of(seq_len);
    width = std::max(width, blocks_of(seq_len));
  }
  width += 2;
  const int num_blocks = sparse
                             ? static_cast<int>(kSparsePoolElems / block_elems)
                             : num_used + num_used / 8 + 4;

  // The ids that sequences get, in random order: of all but block 0, or the
  // last ones of a sparse pool.
  const int num_candidates = sparse ? num_used : num_blocks - 1;
  std::vector<BlockId> ids(static_cast<std::size_t>(num_candidates));
  std::iota(ids.begin(), ids.end(), num_blocks - num_candidates);
  std::shuffle(ids.begin(), ids.end(), random);

  std::vector<int> valid_len(ids.size());
  table_.assign(
      static_cast<std::size_t>(num_seqs) * static_cast<std::size_t>(width),
      kUnusedTableEntry);
  std::size_t next = 0;
  for (int seq = 0; seq < num_seqs; ++seq) {
    const int seq_len = c.seq_lens[static_cast<std::size_t>(seq)];
    std::int32_t* row =
        table_.data() + std::ptrdiff_t{seq} * std::ptrdiff_t{width};
    const int shared_len =
        c.share_blocks ? std::min(seq_len, c.seq_lens.front()) : 0;
    for (int b = 0; b < blocks_of(seq_len); ++b) {
      if (seq > 0 && (b + 1) * c.block_size <= shared_len) {
        row[b] = table_[static_cast<std::size_t>(b)];
        continue;
      }
      row[b] = ids[next];
      valid_len[next++] = std::min(c.block_size, seq_len - b * c.block_size);
    }
  }
  for (std::size_t i = 0; i < ids.size(); ++i) {
    blocks_.push_back({ids[i], valid_len[i]});
  }
  blocks_.push_back({0, 0});

  const std::size_t pool_bytes = static_cast<std::size_t>(num_blocks) *
                                 static_cast<std::size_t>(block_elems) *
                                 dtype_bytes(c.kv_dtype);
  k_cache_ = allocate(pool_bytes, sparse);
  v_cache_ = allocate(pool_bytes, sparse);
  const Elements elements(c.kv_dtype, random);
  for (const TouchedBlock& block : blocks_) {
    const std::size_t begin = static_cast<std::size_t>(block.id) *
                              static_cast<std::size_t>(block_elems) *
                              dtype_bytes(c.kv_dtype);
    const std::int64_t n =
        std::int64_t{block.valid_len} * c.num_kv_heads * c.head_dim;
    for (void* cache : {k_cache_.get(), v_cache_.get()}) {
      elements.fill(static_cast<std::uint8_t*>(cache) + begin, n, random);
    }
  }

  const std::int64_t num_q =
      std::int64_t{num_seqs} * c.num_q_heads * c.head_dim;
  const std::size_t q_bytes =
      static_cast<std::size_t>(num_q) * dtype_bytes(c.q_dtype);
  const std::size_t row_bytes =
      static_cast<std::size_t>(c.head_dim) * dtype_bytes(c.q_dtype);
  q_.resize(q_bytes);
  if (c.logits != Logits::Equal) {
    Elements(c.q_dtype, random).fill(q_.data(), num_q, random);
  }
  out_.assign(q_bytes + 2 * row_bytes, kCanary);

  float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  if (c.logits == Logits::Huge) {
    scale *= 1e4f;
  }
  args_ = {
      .params =
          {.num_seqs = num_seqs,
           .num_q_heads = c.num_q_heads,
           .num_kv_heads = c.num_kv_heads,
           .head_dim = c.head_dim,
           .num_blocks = num_blocks,
           .block_size = c.block_size,
           .max_blocks_per_seq = width,
           .num_splits = c.num_splits,
           .scale = scale},
      .q_dtype = c.q_dtype,
      .kv_dtype = c.kv_dtype,
      .q = q_.data(),
      .k_cache = k_cache_.get(),
      .v_cache = v_cache_.get(),
      .block_table = table_.data(),
      .seq_lens = seq_lens_.data(),
      .out = out_.data() + row_bytes};

  if (c.logits == Logits::Dominant) {
    // The key in the middle of each sequence is 4 q of its group's first head.
    const int group_size = c.num_q_heads / c.num_kv_heads;
    for (int seq = 0; seq < num_seqs; ++seq) {
      const int token = c.seq_lens[static_cast<std::size_t>(seq)] / 2;
      if (c.seq_lens[static_cast<std::size_t>(seq)] == 0) {
        continue;
      }
      const std::int32_t* row =
          table_.data() + std::ptrdiff_t{seq} * std::ptrdiff_t{width};
      const std::int64_t block = row[token / c.block_size];
      for (int head = 0; head < c.num_kv_heads; ++head) {
        const std::int64_t to =
            ((block * c.block_size + token % c.block_size) * c.num_kv_heads +
             head) *
            c.head_dim;
        const std::int64_t from = (std::int64_t{seq} * c.num_q_heads +
                                   std::int64_t{head} * group_size) *
                                  c.head_dim;
        for (int d = 0; d < c.head_dim; ++d) {
          const double x = load_element(q_.data(), from + d, c.q_dtype);
          store_element(
              k_cache_.get(), to + d, c.kv_dtype, static_cast<float>(4 * x));
        }
      }
    }
  }
  poison(Poison::NaN);
  clear_out();
}

DecodeArgs CaseData::args() const {
  return args_;
}

void CaseData::poison(Poison kind) {
  const DecodeParams& p = args_.params;
  const std::int64_t token_elems = std::int64_t{p.num_kv_heads} * p.head_dim;
  for (const TouchedBlock& block : blocks_) {
    const std::int64_t begin =
        (std::int64_t{block.id} * p.block_size + block.valid_len) * token_elems;
    const std::int64_t end =
        (std::int64_t{block.id} + 1) * p.block_size * token_elems;
    for (void* cache : {k_cache_.get(), v_cache_.get()}) {
      for (std::int64_t i = begin; i < end; ++i) {
        store_element(cache, i, args_.kv_dtype, poison_value(kind));
      }
    }
  }
}

void CaseData::clear_out() {
  for (std::int64_t i = 0; i < num_out(); ++i) {
    store_element(
        args_.out, i, args_.q_dtype, std::numeric_limits<float>::quiet_NaN());
  }
}

bool CaseData::canaries_intact() const {
  const std::size_t row_bytes =
      static_cast<std::size_t>(args_.params.head_dim) *
      dtype_bytes(args_.q_dtype);
  const auto is_canary = [](std::uint8_t byte) { return byte == kCanary; };
  const auto row = static_cast<std::ptrdiff_t>(row_bytes);
  return std::all_of(out_.begin(), out_.begin() + row, is_canary) &&
         std::all_of(out_.end() - row, out_.end(), is_canary);
}

std::vector<std::uint8_t> CaseData::out_bytes() const {
  const auto* begin = static_cast<const std::uint8_t*>(args_.out);
  return {
      begin,
      begin +
          num_out() * static_cast<std::int64_t>(dtype_bytes(args_.q_dtype))};
}

std::int64_t CaseData::num_out() const {
  const DecodeParams& p = args_.params;
  return std::int64_t{p.num_seqs} * p.num_q_heads * p.head_dim;
}

}  // namespace quire::testing
