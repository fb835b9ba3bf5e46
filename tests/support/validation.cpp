#include "support/validation.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <map>
#include <random>
#include <stdexcept>
#include <utility>

#include "quire/ops.h"
#include "quire/runtime.h"

namespace mx = mlx::core;

namespace quire::testing {
namespace {

mx::Dtype to_mlx(DType dtype) {
  switch (dtype) {
    case DType::Float32:
      return mx::float32;
    case DType::Float16:
      return mx::float16;
    case DType::BFloat16:
      return mx::bfloat16;
  }
  return mx::float32;
}

class OpPath final : public FusedPath {
 public:
  void append(
      KvCache& cache,
      const CacheStep& step,
      const mx::array& k,
      const mx::array& v) override {
    cache.append(0, step, k, v);
  }

  mx::array attend(
      const KvCache& cache,
      const CacheStep& step,
      const mx::array& q,
      float scale,
      int num_splits) override {
    mx::array out = paged_attention(
        q,
        cache.k_cache(0),
        cache.v_cache(0),
        step.block_table,
        step.seq_lens,
        scale,
        {.use_native_paged_kernel = NativeKernel::On,
         .max_seq_len = step.max_seq_len,
         .num_splits = num_splits});
    out.eval();
    return out;
  }
};

// Random arrays of a validation: N(0, 1), one element in 64 times 8.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  mx::array normal(const mx::Shape& shape, mx::Dtype dtype) {
    const mx::array x = mx::random::normal(shape, mx::float32, 0, 1, key());
    const mx::array outlier =
        mx::random::bernoulli(mx::array(1.0f / 64), shape, key());
    return mx::astype(
        mx::where(outlier, mx::multiply(x, mx::array(8.0f)), x), dtype);
  }

  /** A whole number in [0, n). */
  int below(int n) {
    return static_cast<int>(engine_() % static_cast<std::uint64_t>(n));
  }

 private:
  mx::array key() {
    return mx::random::key(engine_());
  }

  std::mt19937_64 engine_;
};

// What the cache should hold, kept apart from it: every token's rows in host
// memory, and for each sequence the tokens it consists of. An append, a fork or
// a block copy that goes wrong on the device shows against this.
class TokenLog {
 public:
  TokenLog(std::size_t num_seqs, std::size_t row_bytes)
      : row_bytes_(row_bytes), tokens_(num_seqs) {}

  /** Adds rows [num_tokens, ...], num_new_tokens[i] of them to sequence i. */
  void
  append(const void* k, const void* v, const std::vector<int>& num_new_tokens) {
    std::size_t num_tokens = 0;
    for (std::size_t seq = 0; seq < tokens_.size(); ++seq) {
      for (int i = 0; i < num_new_tokens[seq]; ++i, ++num_tokens) {
        tokens_[seq].push_back(k_rows_.size() / row_bytes_ + num_tokens);
      }
    }
    const auto add = [&](std::vector<std::uint8_t>& rows, const void* from) {
      const auto* bytes = static_cast<const std::uint8_t*>(from);
      rows.insert(rows.end(), bytes, bytes + num_tokens * row_bytes_);
    };
    add(k_rows_, k);
    add(v_rows_, v);
  }

  void fork(std::size_t target, std::size_t source) {
    tokens_[target] = tokens_[source];
  }

  void truncate(std::size_t seq, int seq_len) {
    tokens_[seq].resize(static_cast<std::size_t>(seq_len));
  }

  /** The sequences as a cache of their own, blocks one after another. */
  struct Pool {
    std::vector<std::uint8_t> k, v;
    std::vector<std::int32_t> table, seq_lens;
    int num_blocks = 0;
    int width = 1;
  };
  Pool pool(int block_size) const {
    Pool pool;
    const auto size = static_cast<std::size_t>(block_size);
    std::size_t width = 1;
    for (const auto& tokens : tokens_) {
      width = std::max(width, (tokens.size() + size - 1) / size);
    }
    pool.width = static_cast<int>(width);
    pool.k.resize(tokens_.size() * width * size * row_bytes_);
    pool.v.resize(pool.k.size());
    for (const auto& tokens : tokens_) {
      std::size_t slot = pool.table.size() * size;
      for (std::size_t b = 0; b < width; ++b) {
        pool.table.push_back(static_cast<std::int32_t>(pool.table.size()));
      }
      for (const std::size_t token : tokens) {
        const std::size_t to = slot++ * row_bytes_;
        const std::size_t from = token * row_bytes_;
        std::memcpy(&pool.k[to], &k_rows_[from], row_bytes_);
        std::memcpy(&pool.v[to], &v_rows_[from], row_bytes_);
      }
      pool.seq_lens.push_back(static_cast<std::int32_t>(tokens.size()));
    }
    pool.num_blocks = static_cast<int>(pool.table.size());
    return pool;
  }

 private:
  std::size_t row_bytes_;
  std::vector<std::vector<std::size_t>> tokens_;  // [num_seqs], rows' indices
  std::vector<std::uint8_t> k_rows_, v_rows_;
};

// The sequences of a case and the cache they live in.
class Session {
 public:
  Session(const DecodeCase& c, const ValidationOptions& options)
      : case_(c),
        options_(options),
        random_(std::hash<std::string>()(c.name) + options.seed),
        cache_(cache_options(c, options.steps)),
        log_(
            c.seq_lens.size(),
            static_cast<std::size_t>(c.num_kv_heads * c.head_dim) *
                dtype_bytes(c.kv_dtype)) {
    poison_all_slots();
    for (std::size_t i = 0; i < c.seq_lens.size(); ++i) {
      sequences_.push_back(cache_.make_sequence());
    }
  }

  ValidationResult run(FusedPath& fused) {
    ValidationResult result{.name = case_.name};
    append(fused, case_.seq_lens);
    for (int step = 0; step < options_.steps && result.reason.empty(); ++step) {
      if (options_.stop && options_.stop(step)) {
        result.reason = "stopped before step " + std::to_string(step);
        break;
      }
      change_sequences(step);
      decode(fused, step, result);
      ++result.steps;
    }
    judge(result);
    return result;
  }

 private:
  static KvCacheOptions cache_options(const DecodeCase& c, int steps) {
    int num_blocks = 1;
    for (const int seq_len : c.seq_lens) {
      num_blocks += (seq_len + steps) / c.block_size + 2;
    }
    // A fork may stand where a shorter sequence was.
    const int longest =
        *std::max_element(c.seq_lens.begin(), c.seq_lens.end()) + steps;
    num_blocks = std::max(
        num_blocks,
        static_cast<int>(c.seq_lens.size()) * (longest / c.block_size + 2));
    return {
        .num_layers = 1,
        .num_kv_heads = c.num_kv_heads,
        .head_dim = c.head_dim,
        .num_blocks = num_blocks,
        .block_size = c.block_size,
        .dtype = to_mlx(c.kv_dtype)};
  }

  // Every slot is written once with NaN, through the op that writes tokens.
  void poison_all_slots() {
    const int num_slots = cache_.options().num_blocks * case_.block_size;
    const mx::array nan = mx::full(
        {num_slots, case_.num_kv_heads, case_.head_dim},
        mx::array(NAN, to_mlx(case_.kv_dtype)));
    CacheStep step{
        .id = 0,
        .block_table = mx::zeros({1, 1}, mx::int32),
        .seq_lens = mx::zeros({1}, mx::int32),
        .slot_mapping = mx::arange(num_slots, mx::int64),
        .block_copies = mx::zeros({0, 2}, mx::int32),
        .max_seq_len = 0};
    cache_.append(0, step, nan, nan);
    mx::eval(cache_.k_cache(0), cache_.v_cache(0));
  }

  CacheStep append(FusedPath& fused, const std::vector<int>& num_new_tokens) {
    std::vector<SequenceCache*> pointers;
    int num_tokens = 0;
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      pointers.push_back(&sequences_[i]);
      num_tokens += num_new_tokens[i];
    }
    std::optional<CacheStep> step = cache_.begin_step(pointers, num_new_tokens);
    if (!step) {
      throw std::runtime_error("the validation's own pool is too small");
    }
    const mx::Shape shape{num_tokens, case_.num_kv_heads, case_.head_dim};
    const mx::array k = random_.normal(shape, to_mlx(case_.q_dtype));
    const mx::array v = random_.normal(shape, to_mlx(case_.q_dtype));
    fused.append(cache_, *step, k, v);
    mx::eval(cache_.k_cache(0), cache_.v_cache(0));
    const mx::array k_rows = on_host(mx::astype(k, to_mlx(case_.kv_dtype)));
    const mx::array v_rows = on_host(mx::astype(v, to_mlx(case_.kv_dtype)));
    log_.append(k_rows.data<void>(), v_rows.data<void>(), num_new_tokens);
    cache_.complete_step(*step);
    return *std::move(step);
  }

  // As an engine does between steps: now and then a fork, a truncation, a
  // restart from nothing. Periods that share no factor with a block size, so
  // that they meet every offset within a block.
  void change_sequences(int step) {
    const auto n = static_cast<int>(sequences_.size());
    const int idx = random_.below(n);
    // Another sequence than the target, if there is one.
    const int other = n > 1 ? (idx + 1 + random_.below(n - 1)) % n : idx;
    const auto target = static_cast<std::size_t>(idx);
    const auto source = static_cast<std::size_t>(other);
    SequenceCache& sequence = sequences_[target];
    if (step % 13 == 7 && n > 1) {
      sequence.release();
      sequence = sequences_[source].fork();
      log_.fork(target, source);
    } else if (step % 11 == 10 && sequence.seq_len() > 0) {
      const int most = std::min(sequence.seq_len(), 2 * case_.block_size);
      const int seq_len = sequence.seq_len() - 1 - random_.below(most);
      sequence.truncate(seq_len);
      log_.truncate(target, seq_len);
    } else if (step % 67 == 35) {
      sequence.release();
      log_.truncate(target, 0);
    }
  }

  void decode(FusedPath& fused, int step, ValidationResult& result) {
    const CacheStep cache_step =
        append(fused, std::vector<int>(sequences_.size(), 1));
    const mx::array q = random_.normal(
        {static_cast<int>(sequences_.size()),
         case_.num_q_heads,
         case_.head_dim},
        to_mlx(case_.q_dtype));
    const float scale = 1.0f / std::sqrt(static_cast<float>(case_.head_dim));

    const PathCounts before = path_counts();
    mx::array out =
        fused.attend(cache_, cache_step, q, scale, case_.num_splits);
    count_paths(before, path_counts());
    const mx::array reference = paged_attention(
        mx::astype(q, mx::float32),
        cache_.k_cache(0),
        cache_.v_cache(0),
        cache_step.block_table,
        cache_step.seq_lens,
        scale,
        {.use_native_paged_kernel = NativeKernel::Off});
    const std::vector<double> expected = to_doubles(reference);
    note(compare_values(out, expected, {}), "gather-then-SDPA", step, result);

    const bool sample =
        step % options_.steps_per_sample == options_.steps_per_sample - 1 ||
        step == options_.steps - 1;
    if (sample && result.reason.empty()) {
      check_against_double(q, scale, out, reference, step, result);
    }
  }

  void check_against_double(
      const mx::array& q,
      float scale,
      const mx::array& out,
      const mx::array& gathered,
      int step_idx,
      ValidationResult& result) {
    const TokenLog::Pool pool = log_.pool(case_.block_size);
    const mx::array host_q = on_host(q);
    DecodeArgs args{
        .params =
            {.num_seqs = static_cast<int>(sequences_.size()),
             .num_q_heads = case_.num_q_heads,
             .num_kv_heads = case_.num_kv_heads,
             .head_dim = case_.head_dim,
             .num_blocks = pool.num_blocks,
             .block_size = case_.block_size,
             .max_blocks_per_seq = pool.width,
             .num_splits = 0,
             .scale = scale},
        .q_dtype = case_.q_dtype,
        .kv_dtype = case_.kv_dtype,
        .q = host_q.data<void>(),
        .k_cache = pool.k.data(),
        .v_cache = pool.v.data(),
        .block_table = pool.table.data(),
        .seq_lens = pool.seq_lens.data()};
    const Expected fused_expected = expect(args, options_.rounding);
    const ErrorStats fused_stats =
        compare_values(out, fused_expected.out, fused_expected.bound);
    note(fused_stats, "the reference in double", step_idx, result);
    if (fused_stats.max_over_bound > nearest_to_bound_) {
      nearest_to_bound_ = fused_stats.max_over_bound;
      result.bound = fused_stats.bound;
    }
    // The graph reference is judged too: in float32, on the same rounded q.
    const ErrorStats gather_stats =
        compare_values(gathered, fused_expected.out, fused_expected.bound);
    if (const std::string wrong =
            verdict(gather_stats, {options_.threshold, options_.threshold});
        !wrong.empty() && result.reason.empty()) {
      result.reason =
          "step " + std::to_string(step_idx) +
          ": gather-then-SDPA against the reference in double: " + wrong;
    }
  }

  static mx::array on_host(const mx::array& x) {
    mx::array copy = mx::contiguous(x, false, mx::Device::cpu);
    copy.eval();
    return copy;
  }

  static std::vector<double> to_doubles(const mx::array& x) {
    const mx::array host = on_host(mx::astype(x, mx::float32));
    const auto* data = host.data<float>();
    return {data, data + host.size()};
  }

  static ErrorStats compare_values(
      const mx::array& out,
      const std::vector<double>& expected,
      std::vector<double> bound) {
    if (bound.empty()) {
      bound.assign(expected.size(), INFINITY);
    }
    const mx::array host = on_host(mx::astype(out, mx::float32));
    return compare(host.data<float>(), DType::Float32, expected, bound);
  }

  void note(
      const ErrorStats& stats,
      const char* against,
      int step,
      ValidationResult& result) const {
    result.max_rms = std::max(result.max_rms, stats.rms);
    result.max_relative_rms =
        std::max(result.max_relative_rms, stats.relative_rms);
    result.max_abs = std::max(result.max_abs, stats.max_abs);
    const std::string wrong =
        verdict(stats, {options_.threshold, options_.threshold});
    if (!wrong.empty() && result.reason.empty()) {
      result.reason = "step " + std::to_string(step) + ", against " + against +
                      ": " + wrong;
    }
  }

  void count_paths(const PathCounts& before, const PathCounts& after) {
    const auto add = [this](const char* name, auto n) {
      if (n > 0) {
        paths_[name] += static_cast<std::int64_t>(n);
      }
    };
    add("fused_cpu", after.fused_cpu - before.fused_cpu);
    add("fused_metal", after.fused_metal - before.fused_metal);
    add("fused_cuda", after.fused_cuda - before.fused_cuda);
    add("fused_metal_host", after.fused_metal_host - before.fused_metal_host);
    add("gather", after.gather - before.gather);
    for (const auto& [reason, count] : after.fallbacks) {
      const auto seen = before.fallbacks.find(reason);
      if (seen == before.fallbacks.end() || seen->second < count) {
        fallback_ = reason;
      }
    }
  }

  void judge(ValidationResult& result) const {
    for (const auto& [name, count] : paths_) {
      result.path += (result.path.empty() ? "" : "+") + name;
    }
    if (result.path.empty()) {
      result.path = "none";
    }
    const bool only_fused = paths_.size() == 1 &&
                            paths_.begin()->first.starts_with("fused") &&
                            paths_.begin()->second == result.steps;
    if (!only_fused) {
      result.reason = "the fused path did not run: " + result.path + " ran" +
                      (fallback_.empty() ? "" : " (" + fallback_ + ")") +
                      (result.reason.empty() ? "" : "; " + result.reason);
    }
    result.passed = result.reason.empty();
  }

  const DecodeCase& case_;
  const ValidationOptions& options_;
  Random random_;
  KvCache cache_;
  std::vector<SequenceCache> sequences_;
  TokenLog log_;
  std::map<std::string, std::int64_t> paths_;
  std::string fallback_;  // why gather ran instead, in the library's words
  double nearest_to_bound_ = 0;
};

}  // namespace

std::unique_ptr<FusedPath> make_op_path() {
  return std::make_unique<OpPath>();
}

ValidationResult validate_case(
    const DecodeCase& c,
    FusedPath& fused,
    const ValidationOptions& options) {
  try {
    return Session(c, options).run(fused);
  } catch (const std::exception& error) {
    ValidationResult result{.name = c.name, .path = "none"};
    result.reason = error.what();
    return result;
  }
}

}  // namespace quire::testing
