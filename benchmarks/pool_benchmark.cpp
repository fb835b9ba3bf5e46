// Time of the pool's and the sequences' calls against the size of the pool.
//
//   allocate_in_place    a sequence grows by a block, then all is given back
//   allocate_fragmented  a block of a half full pool of scattered holes is
//                        released and another one allocated, at random places
//   release_in_flight    as allocate_in_place, with every block going through
//                        the queue of a step
//   append_token         64 sequences grow in turns, a token at a time
//   append_all_256       one decode step of 256 sequences
//   fork_128             a sequence of 128 blocks is forked and the fork
//   dropped
//
// Items are blocks, tokens or forks; times are for one item.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <random>
#include <vector>

#include "quire/sequence_cache.h"

namespace quire {
namespace {

constexpr int kBlockSize = kDefaultBlockSize;

void allocate_all(BlockPool& pool, int num_blocks) {
  std::optional<BlockId> last;
  for (int i = 0; i < num_blocks; ++i) {
    last = pool.allocate(last);
  }
}

std::vector<SequenceCache> make_sequences(BlockPool& pool, int num_seqs) {
  std::vector<SequenceCache> sequences;
  sequences.reserve(static_cast<std::size_t>(num_seqs));
  for (int i = 0; i < num_seqs; ++i) {
    sequences.emplace_back(pool, kBlockSize);
  }
  return sequences;
}

void allocate_in_place(benchmark::State& state) {
  BlockPool pool(static_cast<int>(state.range(0)));
  for (auto _ : state) {
    allocate_all(pool, pool.num_blocks());
    for (BlockId block = 0; block < pool.num_blocks(); ++block) {
      pool.release(block);
    }
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}

void release_in_flight(benchmark::State& state) {
  BlockPool pool(static_cast<int>(state.range(0)));
  for (auto _ : state) {
    allocate_all(pool, pool.num_blocks());
    const std::int64_t step = pool.begin_step();
    for (BlockId block = 0; block < pool.num_blocks(); ++block) {
      pool.release(block);
    }
    pool.complete_step(step);
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}

void allocate_fragmented(benchmark::State& state) {
  BlockPool pool(static_cast<int>(state.range(0)));
  allocate_all(pool, pool.num_blocks());
  std::vector<BlockId> blocks(static_cast<std::size_t>(pool.num_blocks()));
  std::iota(blocks.begin(), blocks.end(), 0);
  std::mt19937 random(1);
  std::shuffle(blocks.begin(), blocks.end(), random);
  while (pool.num_used() > pool.num_blocks() / 2) {
    pool.release(blocks.back());
    blocks.pop_back();
  }
  std::size_t idx = 0;
  for (auto _ : state) {
    pool.release(blocks[idx]);
    blocks[idx] = *pool.allocate();
    idx = idx + 1 == blocks.size() ? 0 : idx + 1;
  }
  state.SetItemsProcessed(state.iterations());
}

void append_token(benchmark::State& state) {
  BlockPool pool(static_cast<int>(state.range(0)));
  std::vector<SequenceCache> sequences = make_sequences(pool, 64);
  std::size_t idx = 0;
  for (auto _ : state) {
    SequenceCache& sequence = sequences[idx];
    if (!sequence.append(1)) {
      sequence.release();
    }
    idx = (idx + 1) % sequences.size();
  }
  state.SetItemsProcessed(state.iterations());
}

void append_all_256(benchmark::State& state) {
  BlockPool pool(static_cast<int>(state.range(0)));
  std::vector<SequenceCache> sequences = make_sequences(pool, 256);
  std::vector<SequenceCache*> batch;
  batch.reserve(sequences.size());
  for (SequenceCache& sequence : sequences) {
    batch.push_back(&sequence);
  }
  const std::vector<int> num_tokens(batch.size(), 1);
  for (auto _ : state) {
    if (!append_all(batch, num_tokens)) {
      for (SequenceCache& sequence : sequences) {
        sequence.release();
      }
    }
  }
  state.SetItemsProcessed(
      state.iterations() * static_cast<std::int64_t>(batch.size()));
}

void fork_128(benchmark::State& state) {
  BlockPool pool(static_cast<int>(state.range(0)));
  SequenceCache sequence(pool, kBlockSize);
  if (!sequence.append(128 * kBlockSize - 1)) {
    state.SkipWithError("the pool is too small");
  }
  for (auto _ : state) {
    benchmark::DoNotOptimize(sequence.fork());
  }
  state.SetItemsProcessed(state.iterations());
}

#define POOL_BENCHMARK(name) \
  BENCHMARK(name)->RangeMultiplier(32)->Range(1 << 10, 1 << 20)

POOL_BENCHMARK(allocate_in_place);
POOL_BENCHMARK(release_in_flight);
POOL_BENCHMARK(allocate_fragmented);
POOL_BENCHMARK(append_token);
POOL_BENCHMARK(append_all_256);
POOL_BENCHMARK(fork_128);

}  // namespace
}  // namespace quire
