// The walk: how a decode step becomes tiles, which thread takes which, and how
// the parts of a sequence that several threads worked on are merged.
//
// In the cache's layout the KV heads of a token lie side by side. So a tile is
// 16 to 64 tokens over all KV heads, each stage of its step goes through all of
// them, and meanwhile the next tile is asked for in address order: memory is
// read as one stream, whatever the block table says.
#include "kernels/cpu/decode_engine.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "common/error.h"
#include "kernels/attention_state.h"
#include "kernels/cpu/paged_decode.h"
#include "kernels/cpu/step_kernel.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace quire::cpu {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr int kLineBytes = 64;
constexpr std::int64_t kLineFloats = 16;
/** Split boundaries are multiples of this, so that row groups stay whole. */
constexpr std::int64_t kSplitTokens = 16;
/** About what a step, its state and the tile to come may take in L1 and L2. */
constexpr std::int64_t kTileBytes = 64 << 10;
constexpr int kMinTileTokens = 16;
/**
 * With fewer tiles a thread, threads divide the heads instead: merging states
 * that another core wrote, 18 KB for 32 heads of 128, takes longer than it
 * saves.
 */
constexpr std::int64_t kMinSharedTiles = 8;
/** A merge of fewer floats is not worth waking anybody. */
constexpr std::int64_t kParallelMergeFloats = 1 << 16;

StepKernel find_step(Isa isa, DType q_dtype, DType kv_dtype, int head_dim) {
  switch (isa) {
    case Isa::Portable:
      return find_step_portable(q_dtype, kv_dtype, head_dim);
#if defined(QUIRE_CPU_X86)
    case Isa::Avx2:
      return find_step_avx2(q_dtype, kv_dtype, head_dim);
    case Isa::Avx512:
      return find_step_avx512(q_dtype, kv_dtype, head_dim);
    case Isa::Avx512Bf16:
      return find_step_avx512_bf16(q_dtype, kv_dtype, head_dim);
#elif defined(QUIRE_CPU_NEON)
    case Isa::Neon:
      return find_step_neon(q_dtype, kv_dtype, head_dim);
#endif
    default:
      return {};
  }
}

/** Every length and every id that will be followed, before any is. */
void check_table(const DecodeArgs& args) {
  const DecodeParams& p = args.params;
  const std::int64_t capacity =
      std::int64_t{p.max_blocks_per_seq} * p.block_size;
  for (int seq = 0; seq < p.num_seqs; ++seq) {
    const std::int64_t seq_len = args.seq_lens[seq];
    if (seq_len < 0 || seq_len > capacity) {
      throw std::runtime_error(
          "[paged_attention] seq_lens must be from 0 to the block table's " +
          std::to_string(capacity) + " tokens; got " + std::to_string(seq_len) +
          " for sequence " + std::to_string(seq) + ".");
    }
    const std::int32_t* table =
        args.block_table + std::int64_t{seq} * p.max_blocks_per_seq;
    const std::int64_t num_blocks = (seq_len + p.block_size - 1) / p.block_size;
    // Without a branch an id, so that it vectorises; negative ids are huge.
    const auto limit = static_cast<std::uint32_t>(p.num_blocks);
    bool ok = true;
    for (std::int64_t i = 0; i < num_blocks; ++i) {
      ok &= static_cast<std::uint32_t>(table[i]) < limit;
    }
    if (ok) {
      continue;
    }
    for (std::int64_t i = 0; i < num_blocks; ++i) {
      if (static_cast<std::uint32_t>(table[i]) >= limit) {
        throw std::runtime_error(
            "[paged_attention] Block ids must be from 0 to " +
            std::to_string(p.num_blocks - 1) + "; got " +
            std::to_string(table[i]) + " in entry " + std::to_string(i) +
            " of sequence " + std::to_string(seq) + ".");
      }
    }
  }
}

/** An attention state of one sequence, all query heads, in the workspace. */
struct State {
  float* acc = nullptr;       // [num_q_heads, head_dim] load order
  float* max_log2 = nullptr;  // [num_q_heads]
  float* sum = nullptr;       // [num_q_heads, kSumLanes]
};

/** Tokens of one sequence and KV heads that one thread goes through. */
struct Range {
  int seq = 0;
  int begin_token = 0;
  int end_token = 0;
  int begin_head = 0;  // KV heads
  int end_head = 0;
  bool whole = false;  // all tokens: the result can be written at once
  State state;
};

struct Tile {
  Range range;
  int begin_token = 0;
  int num_tokens = 0;                       // 0: no tile
  std::int64_t row_offset[kMaxTileTokens];  // bytes, of KV head 0
};

/** One call; lives on the caller's stack. */
class DecodeRun {
 public:
  DecodeRun(
      const DecodeArgs& args,
      const StepKernel& kernel,
      int num_threads,
      std::vector<std::int64_t>& first_item,
      AlignedBuffer& workspace);

  /** A thread's part of the walk. */
  void walk(int thread_idx) const;
  /** Merges the parts of query heads [begin, end) and writes the results. */
  void merge(int begin_head, int end_head) const;
  void zero_empty_sequences() const;

  int num_threads() const {
    return num_threads_;
  }
  bool merge_in_parallel() const {
    return num_merge_floats_ >= kParallelMergeFloats;
  }

 private:
  bool fixed_splits() const {
    return splits_ > 0;
  }
  std::int64_t num_items() const {
    return first_item_[static_cast<std::size_t>(p_.num_seqs)];
  }
  std::int64_t first_item(int seq) const {
    return first_item_[static_cast<std::size_t>(seq)];
  }
  std::int64_t share_begin(int thread_idx) const {
    return num_items() * thread_idx / num_threads_;
  }
  int group_size() const {
    return p_.num_q_heads / p_.num_kv_heads;
  }
  std::int64_t split_tokens(int seq_len) const;
  State state_at(std::int64_t idx) const;
  std::byte* out_row(int seq, int head) const;

  class Cursor;
  struct Worker;
  struct Lines;
  void begin_range(const Worker& worker, const Range& range) const;
  void end_range(const Range& range) const;
  void run_tile(
      const Worker& worker,
      const Tile& now,
      const Lines& lines,
      const Lines& next_lines) const;
  void find_lines(const Tile& tile, Lines& lines) const;
  static void load_rest(const PrefetchStream& stream);
  template <typename Visit>
  void visit_parts(int seq, int& thread_idx, const Visit& visit) const;

  const DecodeArgs& args_;
  const DecodeParams& p_;
  const StepKernel& kernel_;
  const std::vector<std::int64_t>& first_item_;
  int num_threads_ = 1;
  std::int64_t splits_ = 0;  // of a sequence; 0: shares of tiles
  std::int64_t num_head_ranges_ = 1;
  int tile_tokens_ = 0;
  std::int64_t row_bytes_ = 0;    // of one KV head
  std::int64_t token_bytes_ = 0;  // of all KV heads
  std::int64_t state_floats_ = 0;
  std::int64_t worker_floats_ = 0;
  std::int64_t num_merge_floats_ = 0;
  float* workers_ = nullptr;  // [num_threads, worker_floats_]
  float* states_ = nullptr;
  mutable std::atomic<std::int64_t> next_item_{0};
};

/** A stream over segments that end with an empty one. */
PrefetchStream start(const PrefetchSegment* segments) {
  const PrefetchSegment& first = segments[0];
  return {first.begin, first.end, segments + (first.begin != first.end)};
}

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/**
 * The forced number of splits without those that would be empty for the
 * longest sequence: memory follows the lengths, not the request. Two stay two:
 * whether a row is merged must not depend on the rest of the batch.
 */
std::int64_t useful_splits(const DecodeArgs& args) {
  const std::int32_t* seq_lens = args.seq_lens;
  const int longest =
      args.params.num_seqs == 0
          ? 0
          : *std::max_element(seq_lens, seq_lens + args.params.num_seqs);
  return std::min<std::int64_t>(
      args.params.num_splits,
      std::max<std::int64_t>(2, (longest + kSplitTokens - 1) / kSplitTokens));
}

DecodeRun::DecodeRun(
    const DecodeArgs& args,
    const StepKernel& kernel,
    int num_threads,
    std::vector<std::int64_t>& first_item,
    AlignedBuffer& workspace)
    : args_(args), p_(args.params), kernel_(kernel), first_item_(first_item) {
  row_bytes_ =
      p_.head_dim * static_cast<std::int64_t>(dtype_bytes(args.kv_dtype));
  token_bytes_ = row_bytes_ * p_.num_kv_heads;
  tile_tokens_ = kMaxTileTokens;
  while (tile_tokens_ > kMinTileTokens &&
         2 * token_bytes_ * tile_tokens_ > kTileBytes) {
    tile_tokens_ /= 2;
  }

  // An item is a tile, of which each thread takes an equal contiguous share;
  // or a (split, range of heads), which threads take one by one. The latter
  // must not depend on the batch or on the threads, except for which thread
  // does what.
  const auto set_items = [&](const auto& items_of) {
    first_item.assign(1, 0);
    for (int seq = 0; seq < p_.num_seqs; ++seq) {
      first_item.push_back(first_item.back() + items_of(args.seq_lens[seq]));
    }
  };
  splits_ = useful_splits(args);
  const std::int64_t heads_for_all =
      std::min<std::int64_t>(p_.num_kv_heads, num_threads);
  if (fixed_splits()) {
    // Heads are cut only where there are fewer splits than threads.
    const std::int64_t num_units =
        std::max<std::int64_t>(1, splits_ * p_.num_seqs);
    num_head_ranges_ =
        std::min(heads_for_all, (num_threads + num_units - 1) / num_units);
  } else {
    set_items([&](std::int64_t seq_len) {
      return (seq_len + tile_tokens_ - 1) / tile_tokens_;
    });
    if (num_items() < kMinSharedTiles * num_threads &&
        p_.num_kv_heads >= num_threads) {
      splits_ = 1;
      num_head_ranges_ = heads_for_all;
    }
  }
  if (fixed_splits()) {
    set_items([&](std::int64_t) { return splits_ * num_head_ranges_; });
  }
  num_threads_ =
      static_cast<int>(std::clamp<std::int64_t>(num_items(), 1, num_threads));

  const std::int64_t heads = p_.num_q_heads;
  worker_floats_ =
      round_up(heads * (p_.head_dim + kMaxTileTokens + 1), kLineFloats);
  state_floats_ = round_up(heads * (p_.head_dim + kSumLanes + 1), kLineFloats);
  // Shares: a thread's scratch and the two sequences its share may cut.
  // Splits: a thread's scratch, or a state for each split.
  const std::int64_t num_states =
      splits_ > 1 ? splits_ * p_.num_seqs : std::int64_t{3} * num_threads_;
  num_merge_floats_ = splits_ == 1 ? 0 : num_states * heads * p_.head_dim;
  workers_ = workspace.reserve(static_cast<std::size_t>(
      num_threads_ * worker_floats_ + num_states * state_floats_));
  states_ = workers_ + num_threads_ * worker_floats_;
}

/** Tokens of each of a sequence's splits but the last ones. */
std::int64_t DecodeRun::split_tokens(int seq_len) const {
  return round_up(
      (std::int64_t{seq_len} + splits_ - 1) / splits_, kSplitTokens);
}

State DecodeRun::state_at(std::int64_t idx) const {
  float* acc = states_ + idx * state_floats_;
  float* sum = acc + std::int64_t{p_.num_q_heads} * p_.head_dim;
  return {acc, sum + std::int64_t{p_.num_q_heads} * kSumLanes, sum};
}

std::byte* DecodeRun::out_row(int seq, int head) const {
  return static_cast<std::byte*>(args_.out) +
         (std::int64_t{seq} * p_.num_q_heads + head) * p_.head_dim *
             static_cast<std::int64_t>(dtype_bytes(args_.q_dtype));
}

/** Hands a thread its tiles, one after the other. */
class DecodeRun::Cursor {
 public:
  Cursor(const DecodeRun& run, int thread_idx)
      : run_(run),
        thread_idx_(thread_idx),
        item_(run.share_begin(thread_idx)),
        end_item_(run.share_begin(thread_idx + 1)) {}

  /** The next tile; one of no tokens after the last. */
  void next(Tile& tile) {
    while (token_ == range_.end_token) {
      const bool more =
          run_.fixed_splits() ? next_split() : next_share_of_sequence();
      if (!more) {
        tile.num_tokens = 0;
        return;
      }
      token_ = range_.begin_token;
    }
    tile.range = range_;
    tile.begin_token = token_;
    tile.num_tokens = std::min(run_.tile_tokens_, range_.end_token - token_);
    locate(tile);
    token_ += tile.num_tokens;
  }

 private:
  /** The tiles of this thread's share that belong to one sequence. */
  bool next_share_of_sequence() {
    if (item_ == end_item_) {
      return false;
    }
    while (item_ >= run_.first_item(seq_ + 1)) {
      ++seq_;
    }
    const std::int64_t first = run_.first_item(seq_);
    const std::int64_t end = std::min(end_item_, run_.first_item(seq_ + 1));
    const bool from_start = item_ == first;
    range_.seq = seq_;
    range_.begin_token = static_cast<int>((item_ - first) * run_.tile_tokens_);
    range_.end_token = static_cast<int>(std::min<std::int64_t>(
        (end - first) * run_.tile_tokens_, run_.args_.seq_lens[seq_]));
    range_.begin_head = 0;
    range_.end_head = run_.p_.num_kv_heads;
    range_.whole = from_start && end == run_.first_item(seq_ + 1);
    range_.state = run_.state_at(
        3 * std::int64_t{thread_idx_} + (range_.whole ? 0
                                         : from_start ? 1
                                                      : 2));
    item_ = end;
    return true;
  }

  /** The next split that nobody has taken. */
  bool next_split() {
    const std::int64_t item =
        run_.next_item_.fetch_add(1, std::memory_order_relaxed);
    if (item >= run_.num_items()) {
      return false;
    }
    const std::int64_t num_ranges = run_.num_head_ranges_;
    const std::int64_t splits = run_.splits_;
    const std::int64_t split = item / num_ranges % splits;
    const std::int64_t head_range = item % num_ranges;
    range_.seq = static_cast<int>(item / num_ranges / splits);
    const std::int64_t seq_len = run_.args_.seq_lens[range_.seq];
    const std::int64_t tokens = run_.split_tokens(static_cast<int>(seq_len));
    range_.begin_token = static_cast<int>(std::min(seq_len, split * tokens));
    range_.end_token =
        static_cast<int>(std::min(seq_len, (split + 1) * tokens));
    const std::int64_t heads = run_.p_.num_kv_heads;
    range_.begin_head = static_cast<int>(heads * head_range / num_ranges);
    range_.end_head = static_cast<int>(heads * (head_range + 1) / num_ranges);
    range_.whole = splits == 1;
    range_.state =
        run_.state_at(range_.whole ? thread_idx_ : range_.seq * splits + split);
    return true;
  }

  void locate(Tile& tile) const {
    const DecodeParams& p = run_.p_;
    const std::int32_t* table =
        run_.args_.block_table +
        std::int64_t{tile.range.seq} * p.max_blocks_per_seq;
    for (int i = 0; i < tile.num_tokens;) {
      const int token = tile.begin_token + i;
      const int slot = token % p.block_size;
      const int end = std::min(tile.num_tokens, i + p.block_size - slot);
      std::int64_t offset =
          (std::int64_t{table[token / p.block_size]} * p.block_size + slot) *
          run_.token_bytes_;
      for (; i < end; ++i, offset += run_.token_bytes_) {
        tile.row_offset[i] = offset;
      }
    }
  }

  const DecodeRun& run_;
  const int thread_idx_;
  std::int64_t item_;
  const std::int64_t end_item_;
  int seq_ = 0;
  int token_ = 0;
  Range range_;
};

/** A thread's scratch: q and what the step leaves from stage to stage. */
struct DecodeRun::Worker {
  float* scores;  // [num_q_heads, kMaxTileTokens]
  float* q;       // [num_q_heads, head_dim] prepared
  float* alpha;   // [num_q_heads]
};

/** The lines of a tile in address order. */
struct DecodeRun::Lines {
  PrefetchSegment k[kMaxTileTokens + 1];
  PrefetchSegment v[kMaxTileTokens + 1];
};

void DecodeRun::walk(int thread_idx) const {
  if (thread_idx >= num_threads_) {
    return;
  }
  const std::int64_t heads = p_.num_q_heads;
  float* scores = workers_ + thread_idx * worker_floats_;
  float* q = scores + heads * kMaxTileTokens;
  const Worker worker{scores, q, q + heads * p_.head_dim};
  Cursor cursor(*this, thread_idx);
  Tile tiles[2];
  Lines lines[2];
  cursor.next(tiles[0]);
  find_lines(tiles[0], lines[0]);
  load_rest(start(lines[0].k));
  load_rest(start(lines[0].v));
  for (int i = 0; tiles[i].num_tokens > 0; i ^= 1) {
    const Tile& now = tiles[i];
    cursor.next(tiles[i ^ 1]);
    find_lines(tiles[i ^ 1], lines[i ^ 1]);
    if (now.begin_token == now.range.begin_token) {
      begin_range(worker, now.range);
    }
    run_tile(worker, now, lines[i], lines[i ^ 1]);
    if (now.begin_token + now.num_tokens == now.range.end_token) {
      end_range(now.range);
    }
  }
}

void DecodeRun::begin_range(const Worker& worker, const Range& range) const {
  const int begin = range.begin_head * group_size();
  const int end = range.end_head * group_size();
  const std::int64_t dim = p_.head_dim;
  const State& state = range.state;
  std::fill(state.acc + begin * dim, state.acc + end * dim, 0.0f);
  std::fill(
      state.max_log2 + begin,
      state.max_log2 + end,
      -std::numeric_limits<float>::infinity());
  constexpr std::int64_t kLanes = kSumLanes;
  std::fill(state.sum + begin * kLanes, state.sum + end * kLanes, 0.0f);
  const auto q_bytes = static_cast<std::int64_t>(dtype_bytes(args_.q_dtype));
  const std::byte* q =
      static_cast<const std::byte*>(args_.q) +
      (std::int64_t{range.seq} * p_.num_q_heads + begin) * dim * q_bytes;
  kernel_.prepare_q(q, end - begin, worker.q + begin * dim);
}

void DecodeRun::end_range(const Range& range) const {
  if (!range.whole) {
    return;
  }
  const State& state = range.state;
  for (int head = range.begin_head * group_size();
       head < range.end_head * group_size();
       ++head) {
    kernel_.finish(
        state.acc + std::int64_t{head} * p_.head_dim,
        inverse_denominator(
            kernel_.total(state.sum + std::int64_t{head} * kSumLanes)),
        out_row(range.seq, head));
  }
}

void DecodeRun::find_lines(const Tile& tile, Lines& lines) const {
  const std::int64_t begin = tile.range.begin_head * row_bytes_;
  const std::int64_t bytes = tile.range.end_head * row_bytes_ - begin;
  const auto find = [&](const void* cache, PrefetchSegment* segments) {
    const std::byte* base = static_cast<const std::byte*>(cache) + begin;
    int num = 0;
    for (int i = 0; i < tile.num_tokens; ++i) {
      const std::byte* row = base + tile.row_offset[i];
      if (num > 0 && segments[num - 1].end == row) {
        segments[num - 1].end = row + bytes;
      } else {
        segments[num++] = {row, row + bytes};
      }
    }
    // Where a stream stays at its end: any address that is cheap to ask for.
    const auto* here = reinterpret_cast<const std::byte*>(segments);
    segments[num] = {here, here};
  };
  find(args_.k_cache, lines.k);
  find(args_.v_cache, lines.v);
}

/**
 * Plain loads of what no step has asked for: before the first tile, and where
 * a tile is shorter than the next. Unlike a burst of prefetches they are never
 * dropped.
 */
void DecodeRun::load_rest(const PrefetchStream& stream) {
  const PrefetchSegment* next = stream.next;
  const std::byte* at = stream.at;
  const std::byte* end = stream.end;
  while (at != end) {
    for (; at < end; at += kLineBytes) {
      static_cast<void>(*static_cast<const volatile std::byte*>(at));
    }
    at = next->begin;
    end = next->end;
    ++next;
  }
}

void DecodeRun::run_tile(
    const Worker& worker,
    const Tile& now,
    const Lines& lines,
    const Lines& next_lines) const {
  const Range& range = now.range;
  const std::int64_t q_head = std::int64_t{range.begin_head} * group_size();
  const std::int64_t row = range.begin_head * row_bytes_;
  Lookahead in_scores{start(next_lines.k), start(lines.v)};
  Lookahead in_sum{start(next_lines.v), start(next_lines.k)};
  kernel_.step({
      .k = static_cast<const std::byte*>(args_.k_cache) + row,
      .v = static_cast<const std::byte*>(args_.v_cache) + row,
      .row_offset = now.row_offset,
      .num_tokens = now.num_tokens,
      .num_kv_heads = range.end_head - range.begin_head,
      .group_size = group_size(),
      .in_scores = &in_scores,
      .in_sum = &in_sum,
      .q = worker.q + q_head * p_.head_dim,
      .scale_log2 = p_.scale * kLog2E,
      .scores = worker.scores,
      .alpha = worker.alpha,
      .acc = range.state.acc + q_head * p_.head_dim,
      .max_log2 = range.state.max_log2 + q_head,
      .sum = range.state.sum + q_head * kSumLanes,
  });
  load_rest(in_scores.first);
  load_rest(in_sum.first);
}

/**
 * visit(state idx) for each part of a sequence in token order, unless one
 * thread did all of it. `thread_idx` is kept from one sequence to the next.
 */
template <typename Visit>
void DecodeRun::visit_parts(int seq, int& thread_idx, const Visit& visit)
    const {
  if (fixed_splits()) {
    const std::int64_t splits = splits_;
    const std::int64_t tokens = split_tokens(args_.seq_lens[seq]);
    for (std::int64_t split = 0;
         splits > 1 && split < splits && split * tokens < args_.seq_lens[seq];
         ++split) {
      visit(seq * splits + split);
    }
    return;
  }
  const std::int64_t begin = first_item(seq);
  const std::int64_t end = first_item(seq + 1);
  if (begin == end) {
    return;
  }
  while (share_begin(thread_idx + 1) <= begin) {
    ++thread_idx;
  }
  if (share_begin(thread_idx + 1) >= end) {
    return;
  }
  for (int t = thread_idx; t < num_threads_ && share_begin(t) < end; ++t) {
    visit(3 * std::int64_t{t} + (share_begin(t) <= begin ? 1 : 2));
  }
}

void DecodeRun::merge(int begin_head, int end_head) const {
  const std::int64_t dim = p_.head_dim;
  int thread_idx = 0;
  for (int seq = 0; seq < p_.num_seqs; ++seq) {
    std::int64_t first_part = -1;
    visit_parts(seq, thread_idx, [&](std::int64_t part) {
      const State from = state_at(part);
      if (first_part < 0) {
        first_part = part;
        for (int head = begin_head; head < end_head; ++head) {
          float* sum = from.sum + std::int64_t{head} * kSumLanes;
          sum[0] = kernel_.total(sum);
        }
        return;
      }
      const State into = state_at(first_part);
      for (int head = begin_head; head < end_head; ++head) {
        const MergeFactors f =
            merge_factors(into.max_log2[head], from.max_log2[head]);
        kernel_.combine(
            into.acc + head * dim, f.first, from.acc + head * dim, f.second);
        const std::int64_t lanes = std::int64_t{head} * kSumLanes;
        into.sum[lanes] = into.sum[lanes] * f.first +
                          kernel_.total(from.sum + lanes) * f.second;
        into.max_log2[head] = f.max_log2;
      }
    });
    if (first_part < 0) {
      continue;
    }
    const State state = state_at(first_part);
    for (int head = begin_head; head < end_head; ++head) {
      kernel_.finish(
          state.acc + head * dim,
          inverse_denominator(state.sum[std::int64_t{head} * kSumLanes]),
          out_row(seq, head));
    }
  }
}

void DecodeRun::zero_empty_sequences() const {
  for (int seq = 0; seq < p_.num_seqs; ++seq) {
    if (args_.seq_lens[seq] == 0) {
      std::memset(
          out_row(seq, 0),
          0,
          static_cast<std::size_t>(out_row(seq + 1, 0) - out_row(seq, 0)));
    }
  }
}

}  // namespace

DecodeEngine::DecodeEngine(int num_threads, std::chrono::microseconds spin)
    : pool_(num_threads, spin) {}

void DecodeEngine::paged_decode(const DecodeArgs& args, Isa isa) {
  const DecodeParams& p = args.params;
  const Support support = supports_paged_decode(p, args.q_dtype, args.kv_dtype);
  require(support.ok, "paged_attention", support.reason);
  check_table(args);
  const StepKernel kernel =
      find_step(isa, args.q_dtype, args.kv_dtype, p.head_dim);

  const std::lock_guard lock(mutex_);
  const DecodeRun run(args, kernel, pool_.size(), first_item_, workspace_);
  run.zero_empty_sequences();
  const auto walk = [&](int thread_idx) noexcept { run.walk(thread_idx); };
  const auto merge = [&](int thread_idx) noexcept {
    run.merge(
        p.num_q_heads * thread_idx / pool_.size(),
        p.num_q_heads * (thread_idx + 1) / pool_.size());
  };
  if (run.num_threads() == 1) {
    walk(0);
  } else {
    pool_.run(walk);
  }
  if (run.merge_in_parallel() && pool_.size() > 1) {
    pool_.run(merge);
  } else {
    run.merge(0, p.num_q_heads);
  }
}

namespace {

std::atomic<DecodeEngine*> engine{nullptr};

void watch_forks() {
#if defined(__unix__) || defined(__APPLE__)
  static const int status = pthread_atfork(nullptr, nullptr, [] {
    engine.store(nullptr, std::memory_order_relaxed);
  });
  static_cast<void>(status);
#endif
}

}  // namespace

DecodeEngine& default_engine() {
  DecodeEngine* current = engine.load(std::memory_order_acquire);
  if (current != nullptr) {
    return *current;
  }
  watch_forks();
  auto made = std::make_unique<DecodeEngine>(default_num_threads());
  if (engine.compare_exchange_strong(
          current, made.get(), std::memory_order_acq_rel)) {
    return *made.release();
  }
  return *current;  // another thread was first
}

}  // namespace quire::cpu
