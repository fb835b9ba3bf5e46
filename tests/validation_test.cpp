// The validation must pass what is right and refuse every kind of lie.
#include <functional>
#include <memory>
#include <stdexcept>
#include <utility>

#include <doctest/doctest.h>
#include <mlx/mlx.h>

#include "quire/ops.h"
#include "support/validation.h"

namespace mx = mlx::core;
using namespace quire;
using namespace quire::testing;

namespace {

DecodeCase small_case() {
  return make_case(
      {.q_dtype = DType::Float32,
       .kv_dtype = DType::Float16,
       .head_dim = 64,
       .num_q_heads = 4,
       .num_kv_heads = 2,
       .block_size = 8,
       .seq_lens = {40, 0, 11}});
}

ValidationResult validate(FusedPath& path, double threshold = kRmsThreshold) {
  return validate_case(
      small_case(),
      path,
      {.steps = 40, .threshold = threshold, .steps_per_sample = 10});
}

bool mentions(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// The op, with its arguments and its result changed on the way.
struct Lies {
  std::function<void(CacheStep&)> append_step = [](CacheStep&) {};
  std::function<void(CacheStep&)> attend_step = [](CacheStep&) {};
  std::function<float(float)> scale = [](float x) { return x; };
  std::function<mx::array(const mx::array&)> result = [](const mx::array& out) {
    return out;
  };
};

class Liar : public FusedPath {
 public:
  explicit Liar(Lies lies = {}) : lies_(std::move(lies)) {}

  void append(
      KvCache& cache,
      const CacheStep& step,
      const mx::array& k,
      const mx::array& v) override {
    CacheStep told = step;
    lies_.append_step(told);
    honest_->append(cache, told, k, v);
  }
  mx::array attend(
      const KvCache& cache,
      const CacheStep& step,
      const mx::array& q,
      float scale,
      int num_splits) override {
    CacheStep told = step;
    lies_.attend_step(told);
    return lies_.result(
        honest_->attend(cache, told, q, lies_.scale(scale), num_splits));
  }

 private:
  Lies lies_;
  std::unique_ptr<FusedPath> honest_ = make_op_path();
};

bool is_found_out(Lies lies) {
  Liar path(std::move(lies));
  return !validate(path).passed;
}

}  // namespace

TEST_CASE("the fused path passes, and is what ran") {
  const auto path = make_op_path();
  const ValidationResult result = validate(*path);
  CHECK(result.reason == "");
  CHECK(result.passed);
  CHECK(result.path == "fused_cpu");
  CHECK(result.steps == 40);
  CHECK(result.max_rms > 0);
  CHECK(result.bound > 0);
}

TEST_CASE("a threshold that rounding alone exceeds is not passed") {
  const auto path = make_op_path();
  const ValidationResult result = validate(*path, 1e-9);
  CHECK(!result.passed);
  CHECK(mentions(result.reason, "RMS"));
}

TEST_CASE("gather in place of the fused path is found out") {
  class Gather final : public Liar {
    mx::array attend(
        const KvCache& cache,
        const CacheStep& step,
        const mx::array& q,
        float scale,
        int) override {
      mx::array out = paged_attention(
          q,
          cache.k_cache(0),
          cache.v_cache(0),
          step.block_table,
          step.seq_lens,
          scale,
          {.use_native_paged_kernel = NativeKernel::Off});
      out.eval();
      return out;
    }
  } path;
  const ValidationResult result = validate(path);
  CHECK(!result.passed);
  CHECK(result.path == "gather");
  CHECK(mentions(result.reason, "the fused path did not run"));
}

TEST_CASE("an output of zeros is found out") {
  CHECK(is_found_out(
      {.result = [](const mx::array& out) { return mx::zeros_like(out); }}));
}

TEST_CASE("an output that is half a percent off is found out") {
  CHECK(is_found_out({.result = [](const mx::array& out) {
    return mx::multiply(out, mx::array(1.006f));
  }}));
}

TEST_CASE("a scale applied twice is found out") {
  CHECK(is_found_out({.scale = [](float x) { return x * x; }}));
}

TEST_CASE("the last step's lengths are found out") {
  CHECK(is_found_out({.attend_step = [](CacheStep& step) {
    step.seq_lens =
        mx::maximum(mx::subtract(step.seq_lens, mx::array(1)), mx::array(0));
  }}));
}

TEST_CASE("tokens that are not written are found out") {
  CHECK(is_found_out({.append_step = [](CacheStep& step) {
    step.slot_mapping = mx::full_like(step.slot_mapping, mx::array(-1));
  }}));
}

TEST_CASE("block copies that are not carried out are found out") {
  CHECK(is_found_out({.append_step = [](CacheStep& step) {
    step.block_copies = mx::zeros({0, 2}, mx::int32);
  }}));
}

TEST_CASE("a path that throws fails with its message") {
  class Throws final : public Liar {
    mx::array attend(
        const KvCache&,
        const CacheStep&,
        const mx::array&,
        float,
        int) override {
      throw std::runtime_error("no such kernel");
    }
  } path;
  const ValidationResult result = validate(path);
  CHECK(!result.passed);
  CHECK(result.path == "none");
  CHECK(result.reason == "no such kernel");
}

TEST_CASE("the validation's cases cover what the project promises") {
  std::size_t with_long = 0;
  for (const DecodeCase& c : validation_cases(true)) {
    with_long += c.seq_lens.front() >= 4096 ? 1 : 0;
  }
  CHECK(with_long == 4);
  for (const DecodeCase& c : validation_cases(false)) {
    for (const int seq_len : c.seq_lens) {
      CHECK(seq_len + 200 <= 600);
    }
  }
  CHECK(validation_cases(false).size() >= 45);
}
