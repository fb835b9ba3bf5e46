#include "support/decode_case.h"

#include <algorithm>
#include <cassert>
#include <set>

namespace quire::testing {
namespace {

constexpr DType kDTypes[] = {DType::Float32, DType::Float16, DType::BFloat16};
constexpr int kHeadDims[] = {64, 80, 96, 128, 256};
constexpr int kGroupSizes[] = {1, 2, 3, 4, 7, 8, 16};
constexpr int kBlockSizes[] = {8, 16, 32, 64, 128, 256};
constexpr int kSplits[] = {0, 1, 2, 7, 64};

const char* logits_name(Logits logits) {
  switch (logits) {
    case Logits::Normal:
      return "";
    case Logits::Huge:
      return "_huge";
    case Logits::Dominant:
      return "_dominant";
    case Logits::Equal:
      return "_equal";
  }
  return "";
}

// Lengths at which a kernel's loop over blocks and tiles can go wrong.
std::vector<int> border_lengths(int block_size) {
  return {0, 1, block_size - 1, block_size, block_size + 1, 3 * block_size + 5};
}

// A fixed, uneven spread of lengths from 0 to `longest`.
std::vector<int> ragged(int num_seqs, int longest) {
  std::vector<int> lengths;
  lengths.reserve(static_cast<std::size_t>(num_seqs));
  for (int i = 0; i < num_seqs; ++i) {
    lengths.push_back(i % 9 == 4 ? 0 : 1 + (i * 7919 + 13) % longest);
  }
  lengths.back() = longest;
  return lengths;
}

class Table {
 public:
  void add(DecodeCase c) {
    c = make_case(std::move(c));
    if (names_.insert(c.name).second) {
      cases_.push_back(std::move(c));
    }
  }
  std::vector<DecodeCase> take() {
    return std::move(cases_);
  }

 private:
  std::vector<DecodeCase> cases_;
  std::set<std::string> names_;
};

// Every type pair with every head dim and group size; block size and number of
// splits take turns, so that each value meets each of the others.
void add_product(Table& table) {
  std::size_t turn = 0;
  for (const int head_dim : kHeadDims) {
    for (const DType q_dtype : kDTypes) {
      for (const DType kv_dtype : kDTypes) {
        for (const int group_size : kGroupSizes) {
          const int block_size = kBlockSizes[turn % std::size(kBlockSizes)];
          const int num_splits = kSplits[turn / 2 % std::size(kSplits)];
          ++turn;
          table.add(
              {.q_dtype = q_dtype,
               .kv_dtype = kv_dtype,
               .head_dim = head_dim,
               .num_q_heads = 2 * group_size,
               .block_size = block_size,
               .seq_lens = border_lengths(block_size),
               .num_splits = num_splits});
        }
      }
    }
  }
}

void add_block_sizes_and_splits(Table& table) {
  for (const int block_size : kBlockSizes) {
    for (const int num_splits : kSplits) {
      table.add(
          {.kv_dtype = DType::Float16,
           .block_size = block_size,
           .seq_lens = border_lengths(block_size),
           .num_splits = num_splits});
    }
  }
}

void add_geometries(Table& table) {
  struct Heads {
    int q, kv;
  };
  // Real models' heads: groups of 5, 7, 12, 20, 24 and 71 among them.
  constexpr Heads kHeads[] = {
      {48, 2},
      {40, 2},
      {80, 4},
      {28, 4},
      {25, 5},
      {12, 2},
      {14, 2},
      {16, 1},
      {9, 3},
      {71, 1},
      {8, 8},
      {32, 8},
      {64, 8},
      {1, 1}};
  for (const Heads heads : kHeads) {
    table.add(
        {.q_dtype = DType::Float16,
         .kv_dtype = DType::Float16,
         .head_dim = 64,
         .num_q_heads = heads.q,
         .num_kv_heads = heads.kv,
         .seq_lens = {17, 0, 150}});
  }
}

void add_batches(Table& table) {
  for (const int num_seqs : {1, 2, 3, 5, 8, 17, 33, 64}) {
    for (const DType kv_dtype : kDTypes) {
      table.add(
          {.q_dtype = kv_dtype,
           .kv_dtype = kv_dtype,
           .seq_lens = ragged(num_seqs, 333)});
    }
  }
  // Nothing to do at all, and one busy row among empty ones.
  for (const auto& seq_lens :
       {std::vector<int>{0}, std::vector<int>{0, 0, 0}, {0, 0, 70, 0}}) {
    table.add(
        {.kv_dtype = DType::Float16,
         .head_dim = 64,
         .num_q_heads = 4,
         .seq_lens = seq_lens});
  }
}

void add_logits(Table& table) {
  for (const Logits logits : {Logits::Huge, Logits::Dominant, Logits::Equal}) {
    for (const DType q_dtype : kDTypes) {
      for (const DType kv_dtype : kDTypes) {
        for (const int num_splits : {0, 3}) {
          table.add(
              {.q_dtype = q_dtype,
               .kv_dtype = kv_dtype,
               .block_size = 32,
               .seq_lens = {300, 1, 33},
               .num_splits = num_splits,
               .logits = logits});
        }
      }
    }
  }
}

void add_shared_blocks(Table& table) {
  for (const DType kv_dtype : kDTypes) {
    table.add(
        {.q_dtype = kv_dtype,
         .kv_dtype = kv_dtype,
         .seq_lens = {100, 100, 33, 16, 0, 200},
         .share_blocks = true});
  }
}

void add_long(Table& table) {
  for (const int context : {4096, 16384, 16383, 16385}) {
    table.add(
        {.kv_dtype = DType::Float16,
         .block_size = 32,
         .seq_lens = {context},
         .cost = Cost::Long});
  }
  for (const DType kv_dtype : kDTypes) {
    table.add(
        {.q_dtype = kv_dtype,
         .kv_dtype = kv_dtype,
         .head_dim = 64,
         .num_q_heads = 6,
         .seq_lens = {4096, 8201, 100, 16384},
         .num_splits = 5,
         .cost = Cost::Long});
  }
  table.add(
      {.kv_dtype = DType::Float16,
       .head_dim = 64,
       .num_q_heads = 4,
       .num_kv_heads = 1,
       .block_size = 128,
       .seq_lens = {100000},
       .cost = Cost::Long});
}

// Blocks at the end of a pool of more than 2^31 elements a cache.
void add_sparse(Table& table) {
  for (const int num_splits : {0, 2}) {
    table.add(
        {.q_dtype = DType::Float16,
         .kv_dtype = DType::Float16,
         .num_q_heads = 16,
         .num_kv_heads = 8,
         .block_size = 32,
         .seq_lens = {70, 33},
         .num_splits = num_splits,
         .cost = Cost::Sparse});
  }
}

}  // namespace

std::vector<DecodeCase> validation_cases(bool long_context) {
  Table table;
  // Every type pair with every head dim; groups and blocks take turns.
  std::size_t turn = 0;
  for (const int head_dim : kHeadDims) {
    for (const DType q_dtype : kDTypes) {
      for (const DType kv_dtype : kDTypes) {
        table.add(
            {.q_dtype = q_dtype,
             .kv_dtype = kv_dtype,
             .head_dim = head_dim,
             .num_q_heads = kGroupSizes[turn % std::size(kGroupSizes)],
             .num_kv_heads = 1,
             .block_size = kBlockSizes[turn % 5],
             .seq_lens = {150, 0, 31},
             .num_splits = kSplits[turn / 3 % std::size(kSplits)]});
        ++turn;
      }
    }
  }
  // The shapes of common models, and a batch.
  struct Heads {
    int q, kv, dim;
  };
  for (const Heads heads :
       {Heads{9, 3, 64}, Heads{14, 2, 64}, Heads{32, 8, 128}}) {
    table.add(
        {.kv_dtype = DType::Float16,
         .head_dim = heads.dim,
         .num_q_heads = heads.q,
         .num_kv_heads = heads.kv,
         .block_size = 32,
         .seq_lens = {350}});
  }
  table.add(
      {.kv_dtype = DType::Float16,
       .head_dim = 64,
       .num_q_heads = 4,
       .num_kv_heads = 2,
       .block_size = 16,
       .seq_lens = ragged(16, 100)});
  if (long_context) {
    for (const DType dtype : {DType::Float16, DType::BFloat16}) {
      for (const int context : {4096, 16384}) {
        table.add(
            {.q_dtype = dtype,
             .kv_dtype = dtype,
             .num_q_heads = 32,
             .num_kv_heads = 8,
             .block_size = 32,
             .seq_lens = {context, context / 3}});
      }
    }
  }
  return table.take();
}

DecodeCase make_case(DecodeCase c) {
  assert(c.num_kv_heads > 0 && c.num_q_heads % c.num_kv_heads == 0);
  int longest = 0;
  for (const int seq_len : c.seq_lens) {
    longest = std::max(longest, seq_len);
  }
  c.name = "q_" + std::string(dtype_name(c.q_dtype)) + "_kv_" +
           dtype_name(c.kv_dtype) + "_d" + std::to_string(c.head_dim) + "_h" +
           std::to_string(c.num_q_heads) + "x" +
           std::to_string(c.num_kv_heads) + "_block" +
           std::to_string(c.block_size) + "_batch" +
           std::to_string(c.seq_lens.size()) + "_len" +
           std::to_string(longest) + "_splits" + std::to_string(c.num_splits) +
           logits_name(c.logits) + (c.share_blocks ? "_shared" : "") +
           (c.cost == Cost::Sparse ? "_sparse" : "");
  return c;
}

const std::vector<DecodeCase>& decode_cases() {
  static const std::vector<DecodeCase> cases = [] {
    Table table;
    add_product(table);
    add_block_sizes_and_splits(table);
    add_geometries(table);
    add_batches(table);
    add_logits(table);
    add_shared_blocks(table);
    add_long(table);
    add_sparse(table);
    return table.take();
  }();
  return cases;
}

}  // namespace quire::testing
