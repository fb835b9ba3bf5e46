// Random operations on a pool and its sequences, judged by a naive model: token
// vectors, and a device memory that is written as early and read as late as the
// steps allow, so that a slot written while a step that reads it is in flight
// shows as a wrong token.
#include <doctest/doctest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <deque>
#include <map>
#include <ostream>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "cache/invariant.h"
#include "quire/sequence_cache.h"

// Works within and outside of RapidCheck, which shrinks what throws.
#define EXPECT(ok) ensure((ok), "model", "line ", __LINE__, ": " #ok)

namespace quire {
namespace {

using Token = int;

enum class OpKind {
  New,
  Append,
  AppendAll,
  Fork,
  Truncate,
  Release,
  Destroy,
  Move,
  BeginStep,
  CompleteStep
};

// `which` and `amount` are reduced to what the state allows, so that every list
// of operations is valid and shrinks by leaving out any of them.
struct Op {
  OpKind kind;
  int which;
  int amount;
};

std::ostream& operator<<(std::ostream& os, const Op& op) {
  constexpr const char* kNames[] = {
      "new",
      "append",
      "append_all",
      "fork",
      "truncate",
      "release",
      "destroy",
      "move",
      "begin_step",
      "complete_step"};
  return os << kNames[static_cast<int>(op.kind)] << '(' << op.which << ", "
            << op.amount << ')';
}

struct Limits {
  int num_blocks;
  int block_size;
  int max_seqs;
  int max_append;  // tokens
};

// What a run met, so that a test can tell that it tested something.
struct Counts {
  int num_ops = 0;
  int num_failed = 0;            // appends to a full pool
  int num_copied = 0;            // copies on write
  int num_copied_in_flight = 0;  // of blocks with one owner
  int num_created = 0;           // sequences

  Counts& operator+=(const Counts& other) {
    num_ops += other.num_ops;
    num_failed += other.num_failed;
    num_copied += other.num_copied;
    num_copied_in_flight += other.num_copied_in_flight;
    num_created += other.num_created;
    return *this;
  }
};

class Model {
 public:
  explicit Model(const Limits& limits)
      : limits_(limits),
        pool_(limits.num_blocks),
        memory_(
            static_cast<std::size_t>(limits.num_blocks * limits.block_size)) {}

  void apply(const Op& op) {
    if (op.kind == OpKind::New || sequences_.empty()) {
      add(SequenceCache(pool_, limits_.block_size), {});
    } else {
      const int idx = op.which % static_cast<int>(sequences_.size());
      apply_to(op, sequences_[static_cast<std::size_t>(idx)], idx);
    }
    ++counts_.num_ops;
    check();
  }

  // Everything is given back: no step in flight, no sequence, nothing used.
  void finish() {
    complete(steps_.size());
    sequences_.clear();
    pool_.check_invariants();
    EXPECT(pool_.num_free() == pool_.num_blocks());
  }

  const Counts& counts() const {
    return counts_;
  }

 private:
  struct Sequence {
    SequenceCache cache;
    std::vector<Token> tokens;
    int num_written;  // of the tokens; the next step writes the others
  };
  struct Read {
    std::vector<BlockId> block_ids;
    std::vector<Token> tokens;
  };
  struct Step {
    std::int64_t id;
    std::vector<Read> reads;
  };

  void apply_to(const Op& op, Sequence& sequence, int idx) {
    const int seq_len = static_cast<int>(sequence.tokens.size());
    switch (op.kind) {
      case OpKind::New:
        break;
      case OpKind::Append:
        append(sequence, op.amount % (limits_.max_append + 1));
        break;
      case OpKind::AppendAll:
        append_all_from(idx, op.amount);
        break;
      case OpKind::Fork:
        begin_step();  // a fork shares what is written
        add(sequence.cache.fork(), sequence.tokens);
        break;
      case OpKind::Truncate:
        truncate(sequence, op.amount % (seq_len + 1));
        break;
      case OpKind::Release:
        sequence.cache.release();
        sequence.tokens.clear();
        sequence.num_written = 0;
        break;
      case OpKind::Destroy:
        sequences_.erase(sequences_.begin() + idx);
        break;
      case OpKind::Move: {
        Sequence& other =
            sequences_[static_cast<std::size_t>(op.amount) % sequences_.size()];
        if (&other != &sequence) {
          other = std::exchange(
              sequence, {SequenceCache(pool_, limits_.block_size), {}, 0});
        }
        break;
      }
      case OpKind::BeginStep:
        begin_step();
        break;
      case OpKind::CompleteStep:
        if (!steps_.empty()) {
          complete(1 + static_cast<std::size_t>(op.amount) % steps_.size());
        }
        break;
    }
  }

  int num_seqs() const {
    return static_cast<int>(sequences_.size());
  }

  void add(SequenceCache cache, std::vector<Token> tokens) {
    if (num_seqs() == limits_.max_seqs) {
      return;  // the fork is dropped: its references go back
    }
    ++counts_.num_created;
    const int num_written = static_cast<int>(tokens.size());
    sequences_.push_back({std::move(cache), std::move(tokens), num_written});
  }

  int ref_count(BlockId block) const {
    int count = 0;
    for (const Sequence& sequence : sequences_) {
      const auto ids = sequence.cache.block_ids();
      count += static_cast<int>(std::count(ids.begin(), ids.end(), block));
    }
    return count;
  }

  // Whether a step in flight reads the block at or after the offset.
  bool is_read(BlockId block, int offset) const {
    const auto size = static_cast<std::size_t>(limits_.block_size);
    for (const Step& step : steps_) {
      for (const Read& read : step.reads) {
        for (std::size_t idx = 0; idx < read.block_ids.size(); ++idx) {
          if (read.block_ids[idx] == block &&
              read.tokens.size() >
                  idx * size + static_cast<std::size_t>(offset)) {
            return true;
          }
        }
      }
    }
    return false;
  }

  void append(Sequence& sequence, int num_tokens) {
    const auto before = snapshot(sequence);
    const int num_free = pool_.num_free();
    const int seq_len = static_cast<int>(sequence.tokens.size());
    const int num_blocks = static_cast<int>(before.block_ids.size());
    const int tail_len = seq_len % limits_.block_size;
    const bool writes_tail = num_tokens > 0 && tail_len > 0;
    const BlockId tail = num_blocks > 0 ? before.block_ids.back() : 0;
    const bool shared = writes_tail && ref_count(tail) > 1;
    const bool must_copy = shared || (writes_tail && is_read(tail, tail_len));
    const bool may_copy = shared || (writes_tail && !steps_.empty());
    const int num_new =
        (seq_len + num_tokens + limits_.block_size - 1) / limits_.block_size -
        num_blocks;

    const auto result = sequence.cache.append(num_tokens);
    if (!result) {
      ++counts_.num_failed;
      EXPECT(num_new + (may_copy ? 1 : 0) > num_free);
      EXPECT(snapshot(sequence) == before);
      EXPECT(pool_.num_free() == num_free);
      return;
    }
    EXPECT(result->begin_token == seq_len);
    EXPECT(result->copy.has_value() || !must_copy);
    EXPECT(!result->copy.has_value() || may_copy);
    EXPECT(num_free - pool_.num_free() == num_new + (result->copy ? 1 : 0));
    if (result->copy) {
      EXPECT(result->copy->source == tail);
      EXPECT(
          result->copy->destination ==
          sequence.cache.block_ids()[static_cast<std::size_t>(num_blocks - 1)]);
      counts_.num_copied_in_flight += shared ? 0 : 1;
    }
    accept(sequence, num_tokens, *result);
  }

  // Every second sequence from idx on, or all of them.
  void append_all_from(int idx, int amount) {
    std::vector<SequenceCache*> caches;
    std::vector<Sequence*> chosen;
    std::vector<int> num_tokens;
    std::vector<Snapshot> before;
    const int stride = 1 + amount % 2;
    for (int i = idx; i < num_seqs(); i += stride) {
      Sequence& sequence = sequences_[static_cast<std::size_t>(i)];
      caches.push_back(&sequence.cache);
      chosen.push_back(&sequence);
      num_tokens.push_back((amount + i) % (limits_.block_size + 2));
      before.push_back(snapshot(sequence));
    }
    const int num_free = pool_.num_free();
    const auto results = append_all(caches, num_tokens);
    if (results) {
      for (std::size_t i = 0; i < chosen.size(); ++i) {
        accept(*chosen[i], num_tokens[i], results->at(i));
      }
      return;
    }
    EXPECT(pool_.num_free() == num_free);
    const int num_failed = counts_.num_failed;
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      EXPECT(snapshot(*chosen[i]) == before[i]);
    }
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      append(*chosen[i], num_tokens[i]);
    }
    EXPECT(
        counts_.num_failed > num_failed);  // one by one they do not fit, either
  }

  void accept(Sequence& sequence, int num_tokens, const AppendResult& result) {
    for (int i = 0; i < num_tokens; ++i) {
      sequence.tokens.push_back(++last_token_);
    }
    if (result.copy) {
      copies_.push_back(*result.copy);
      ++counts_.num_copied;
    }
  }

  void truncate(Sequence& sequence, int seq_len) {
    sequence.cache.truncate(seq_len);
    sequence.tokens.resize(static_cast<std::size_t>(seq_len));
    sequence.num_written = std::min(sequence.num_written, seq_len);
  }

  // The earliest that the device may copy and write.
  void begin_step() {
    constexpr std::size_t kMaxStepsInFlight = 3;
    if (steps_.size() == kMaxStepsInFlight) {
      complete(1);
    }
    Step step{pool_.begin_step(), {}};
    const auto size = static_cast<std::ptrdiff_t>(limits_.block_size);
    for (const BlockCopy& copy : copies_) {
      std::copy_n(
          memory_.begin() + copy.source * size,
          size,
          memory_.begin() + copy.destination * size);
    }
    copies_.clear();
    for (Sequence& sequence : sequences_) {
      const int seq_len = static_cast<int>(sequence.tokens.size());
      for (int i = sequence.num_written; i < seq_len; ++i) {
        memory_.at(static_cast<std::size_t>(sequence.cache.slot(i))) =
            sequence.tokens[static_cast<std::size_t>(i)];
      }
      sequence.num_written = seq_len;
      const auto ids = sequence.cache.block_ids();
      step.reads.push_back({{ids.begin(), ids.end()}, sequence.tokens});
    }
    steps_.push_back(std::move(step));
  }

  // The latest that the device may read.
  void complete(std::size_t num_steps) {
    std::int64_t last = 0;
    for (std::size_t i = 0; i < num_steps; ++i) {
      for (const Read& read : steps_.front().reads) {
        for (std::size_t token = 0; token < read.tokens.size(); ++token) {
          const auto size = static_cast<std::size_t>(limits_.block_size);
          const auto block =
              static_cast<std::size_t>(read.block_ids[token / size]);
          EXPECT(memory_[block * size + token % size] == read.tokens[token]);
        }
      }
      last = steps_.front().id;
      steps_.pop_front();
    }
    if (num_steps > 0) {
      pool_.complete_step(last);
    }
  }

  struct Snapshot {
    std::vector<BlockId> block_ids;
    int seq_len;
    std::uint64_t version;
    bool operator==(const Snapshot&) const = default;
  };

  static Snapshot snapshot(const Sequence& sequence) {
    const auto ids = sequence.cache.block_ids();
    return {
        {ids.begin(), ids.end()},
        sequence.cache.seq_len(),
        sequence.cache.table_version()};
  }

  void check() {
    pool_.check_invariants();
    std::map<BlockId, int> refs;
    for (const Sequence& sequence : sequences_) {
      sequence.cache.check_invariants();
      EXPECT(
          sequence.cache.seq_len() == static_cast<int>(sequence.tokens.size()));
      for (const BlockId block : sequence.cache.block_ids()) {
        ++refs[block];
      }
      check_row(sequence.cache);
    }
    EXPECT(pool_.num_used() == static_cast<int>(refs.size()));
    for (const auto& [block, count] : refs) {
      EXPECT(pool_.ref_count(block) == count);
    }
    EXPECT(!steps_.empty() || pool_.num_pending() == 0);
  }

  // A reader that reads only the entries it has not seen of this version.
  void check_row(const SequenceCache& cache) {
    const auto ids = cache.block_ids();
    std::vector<BlockId>& row = rows_[cache.table_version()];
    EXPECT(row.size() <= ids.size());
    row.insert(
        row.end(),
        ids.begin() + static_cast<std::ptrdiff_t>(row.size()),
        ids.end());
    EXPECT(std::equal(row.begin(), row.end(), ids.begin(), ids.end()));
  }

  Limits limits_;
  BlockPool pool_;
  std::vector<Sequence> sequences_;
  std::vector<Token> memory_;
  std::vector<BlockCopy> copies_;  // of appends since the last step began
  std::deque<Step> steps_;         // in flight
  std::map<std::uint64_t, std::vector<BlockId>> rows_;
  Token last_token_ = 0;
  Counts counts_;
};

rc::Gen<Op> any_op() {
  return rc::gen::construct<Op>(
      rc::gen::weightedElement<OpKind>({
          {2, OpKind::New},
          {8, OpKind::Append},
          {3, OpKind::AppendAll},
          {4, OpKind::Fork},
          {4, OpKind::Truncate},
          {1, OpKind::Release},
          {4, OpKind::Destroy},
          {1, OpKind::Move},
          {4, OpKind::BeginStep},
          {4, OpKind::CompleteStep},
      }),
      rc::gen::inRange(0, 1 << 10),
      rc::gen::inRange(0, 1 << 10));
}

TEST_CASE("sequences: random operations agree with the model") {
  Counts counts;
  // 100 lists of 500 operations on average.
  const bool agree = rc::check("random operations agree with the model", [&] {
    const Limits limits{
        .num_blocks = *rc::gen::inRange(1, 64),
        .block_size = *rc::gen::element(8, 16, 32),
        .max_seqs = 8,
        .max_append = *rc::gen::element(1, 8, 40)};
    const auto ops =
        *rc::gen::resize(1000, rc::gen::container<std::vector<Op>>(any_op()));
    Model model(limits);
    for (const Op& op : ops) {
      model.apply(op);
    }
    model.finish();
    counts += model.counts();
  });
  CHECK(agree);
  MESSAGE(
      counts.num_ops,
      " operations, ",
      counts.num_failed,
      " failed appends, ",
      counts.num_copied,
      " copies, ",
      counts.num_copied_in_flight,
      " for steps in flight");
  CHECK(counts.num_ops >= 10000);
  CHECK(counts.num_failed >= 1000);
  CHECK(counts.num_copied >= 500);
  CHECK(counts.num_copied_in_flight >= 100);
}

TEST_CASE("sequences: 5,000 of them come and go, and no block stays behind") {
  Model model(
      {.num_blocks = 100, .block_size = 16, .max_seqs = 24, .max_append = 200});
  std::mt19937 random(5);
  const auto below = [&](int n) {
    return std::uniform_int_distribution<int>(0, n - 1)(random);
  };
  constexpr OpKind kKinds[] = {
      OpKind::New,
      OpKind::New,
      OpKind::Append,
      OpKind::Append,
      OpKind::Fork,
      OpKind::Truncate,
      OpKind::Destroy,
      OpKind::Destroy,
      OpKind::Destroy,
      OpKind::Move,
      OpKind::BeginStep,
      OpKind::CompleteStep};
  while (model.counts().num_created < 5000) {
    model.apply({kKinds[below(std::size(kKinds))], below(1 << 20), below(201)});
  }
  CHECK(model.counts().num_failed >= 100);
  CHECK(model.counts().num_copied >= 100);
  model.finish();
}

}  // namespace
}  // namespace quire
