// The model against a naive forward pass in double, on the tiny model, whose
// head dimension is not its width over its heads.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tools/llama/dense_store.h"
#include "tools/llama/dequantize.h"
#include "tools/llama/runner.h"
#include "tools/llama/test_gguf.h"

namespace quire::tools {
namespace {

using Vector = std::vector<double>;

/** As the papers say it: one token, one head and one number after another. */
class NaiveModel {
 public:
  explicit NaiveModel(const GgufFile& file)
      : file_(file),
        config_(read_model_config(file)),
        layers_(static_cast<std::size_t>(config_.num_layers)) {}

  /** Logits after the next token of the one sequence. */
  Vector next(int token) {
    const Vector embedding = weights("token_embd.weight");
    const auto hidden = static_cast<std::size_t>(config_.hidden_size);
    const auto row =
        embedding.begin() + static_cast<std::ptrdiff_t>(hidden) * token;
    Vector x(row, row + static_cast<std::ptrdiff_t>(hidden));
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const std::string prefix = "blk." + std::to_string(i) + ".";
      add(x, attention(prefix, layers_[i], x));
      add(x, feed_forward(prefix, x));
    }
    ++num_tokens_;
    return times(embedding, norm(x, "output_norm.weight"));
  }

 private:
  // K and V of all tokens so far, [token][kv_head * head_dim].
  struct Layer {
    std::vector<Vector> k;
    std::vector<Vector> v;
  };

  Vector weights(const std::string& name) const {
    const GgufTensor& tensor = file_.tensors().at(name);
    std::vector<float> floats(static_cast<std::size_t>(std::accumulate(
        tensor.shape.begin(),
        tensor.shape.end(),
        std::int64_t{1},
        std::multiplies<>())));
    dequantize(tensor, floats.data(), 1);
    return {floats.begin(), floats.end()};
  }

  static void add(Vector& to, const Vector& x) {
    std::transform(to.begin(), to.end(), x.begin(), to.begin(), std::plus<>());
  }

  // matrix [rows, x.size()] times x
  static Vector times(const Vector& matrix, const Vector& x) {
    Vector y(matrix.size() / x.size());
    for (std::size_t i = 0; i < y.size(); ++i) {
      for (std::size_t j = 0; j < x.size(); ++j) {
        y[i] += matrix[i * x.size() + j] * x[j];
      }
    }
    return y;
  }

  Vector norm(const Vector& x, const std::string& name) const {
    double squares = 0;
    for (const double value : x) {
      squares += value * value;
    }
    const double scale = 1 / std::sqrt(
                                 squares / static_cast<double>(x.size()) +
                                 static_cast<double>(config_.rms_epsilon));
    Vector y = weights(name);
    for (std::size_t i = 0; i < y.size(); ++i) {
      y[i] *= x[i] * scale;
    }
    return y;
  }

  // Neighbours are a pair, turned by position * base^(-2i / head_dim).
  void rotate(Vector& x) const {
    const auto head_dim = static_cast<std::size_t>(config_.head_dim);
    for (std::size_t i = 0; i < x.size(); i += 2) {
      const double angle =
          num_tokens_ * std::pow(
                            config_.rope_base,
                            -static_cast<double>(i % head_dim) /
                                static_cast<double>(head_dim));
      const double a = x[i];
      const double b = x[i + 1];
      x[i] = a * std::cos(angle) - b * std::sin(angle);
      x[i + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
  }

  Vector attention(const std::string& prefix, Layer& layer, const Vector& x) {
    const Vector normed = norm(x, prefix + "attn_norm.weight");
    Vector q = times(weights(prefix + "attn_q.weight"), normed);
    rotate(q);
    layer.k.push_back(times(weights(prefix + "attn_k.weight"), normed));
    rotate(layer.k.back());
    layer.v.push_back(times(weights(prefix + "attn_v.weight"), normed));

    const auto head_dim = static_cast<std::size_t>(config_.head_dim);
    const auto group = q.size() / layer.k.back().size();
    Vector out(q.size());
    for (std::size_t at = 0; at < q.size(); at += head_dim) {
      const std::size_t kv_at = at / head_dim / group * head_dim;
      Vector exponentials;
      for (const Vector& k : layer.k) {
        double score = 0;
        for (std::size_t i = 0; i < head_dim; ++i) {
          score += q[at + i] * k[kv_at + i];
        }
        exponentials.push_back(
            std::exp(score / std::sqrt(static_cast<double>(head_dim))));
      }
      const double sum =
          std::accumulate(exponentials.begin(), exponentials.end(), 0.0);
      for (std::size_t t = 0; t < exponentials.size(); ++t) {
        for (std::size_t i = 0; i < head_dim; ++i) {
          out[at + i] += exponentials[t] / sum * layer.v[t][kv_at + i];
        }
      }
    }
    return times(weights(prefix + "attn_output.weight"), out);
  }

  Vector feed_forward(const std::string& prefix, const Vector& x) const {
    const Vector normed = norm(x, prefix + "ffn_norm.weight");
    Vector gated = times(weights(prefix + "ffn_gate.weight"), normed);
    const Vector up = times(weights(prefix + "ffn_up.weight"), normed);
    for (std::size_t i = 0; i < gated.size(); ++i) {
      gated[i] *= up[i] / (1 + std::exp(-gated[i]));
    }
    return times(weights(prefix + "ffn_down.weight"), gated);
  }

  const GgufFile& file_;
  ModelConfig config_;
  std::vector<Layer> layers_;
  int num_tokens_ = 0;
};

}  // namespace

TEST_CASE("model: logits are those of a naive forward pass in double") {
  const test::TemporaryFile path(test::tiny_model().bytes());
  const GgufFile file(path.path());
  const Model model(file, mx::float32, [](double) {});
  REQUIRE(
      model.config().head_dim * model.config().num_q_heads !=
      model.config().hidden_size);
  NaiveModel naive(file);
  DenseStore store(
      test::kTinyLayers, test::kTinyKvHeads, test::kTinyHeadDim, mx::float32);
  const int sequence = store.add_sequence();
  Runner runner(model, store, [] {});
  for (int i = 0; i < 12; ++i) {
    CAPTURE(i);
    const int token = i * 71 % test::kTinyTokens;
    const Vector expected = naive.next(token);
    auto logits = mx::contiguous(*runner.decode({&sequence, 1}, {&token, 1}));
    mx::eval(logits);
    REQUIRE(logits.size() == expected.size());
    double worst = 0;
    for (std::size_t j = 0; j < expected.size(); ++j) {
      worst = std::max(
          worst,
          std::fabs(
              static_cast<double>(logits.data<float>()[j]) - expected[j]));
    }
    CHECK(worst < 1e-5);
  }
}

}  // namespace quire::tools
