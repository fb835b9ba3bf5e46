#include "tools/llama/dense_store.h"

#include <cmath>

#include "tools/llama/prefill_attention.h"

namespace quire::tools {
namespace {

constexpr int kCapacityStep = 256;  // tokens

}  // namespace

DenseStore::DenseStore(
    int num_layers,
    int num_kv_heads,
    int head_dim,
    mx::Dtype dtype)
    : num_layers_(num_layers),
      num_kv_heads_(num_kv_heads),
      head_dim_(head_dim),
      dtype_(dtype) {}

int DenseStore::add_sequence() {
  const auto empty = mx::zeros({1, num_kv_heads_, 0, head_dim_}, dtype_);
  sequences_.push_back(
      {0,
       std::vector<Layer>(
           static_cast<std::size_t>(num_layers_), Layer{empty, empty})});
  return static_cast<int>(sequences_.size()) - 1;
}

int DenseStore::seq_len(int sequence) const {
  return sequences_[static_cast<std::size_t>(sequence)].seq_len;
}

bool DenseStore::begin_step(std::span<const int> sequences, int num_tokens) {
  step_sequences_.assign(sequences.begin(), sequences.end());
  for (const int sequence : sequences) {
    sequences_[static_cast<std::size_t>(sequence)].seq_len += num_tokens;
  }
  return true;
}

mx::array DenseStore::attend(
    int layer,
    const mx::array& q,
    const mx::array& k,
    const mx::array& v) {
  std::vector<mx::array> outputs;
  for (std::size_t i = 0; i < step_sequences_.size(); ++i) {
    const auto row = [&](const mx::array& x) {
      const int idx = static_cast<int>(i);
      return mx::slice(
          x, {idx, 0, 0, 0}, {idx + 1, x.shape(1), x.shape(2), x.shape(3)});
    };
    outputs.push_back(attend_one(
        sequences_[static_cast<std::size_t>(step_sequences_[i])],
        layer,
        row(q),
        row(k),
        row(v)));
  }
  return outputs.size() == 1 ? outputs[0] : mx::concatenate(outputs, 0);
}

mx::array DenseStore::attend_one(
    Sequence& sequence,
    int layer,
    const mx::array& q,
    const mx::array& k,
    const mx::array& v) const {
  const int num_tokens = q.shape(1);
  const int seq_len = sequence.seq_len;
  Layer& cache = sequence.layers[static_cast<std::size_t>(layer)];
  const auto store = [&](mx::array& cached, const mx::array& rows) {
    if (const int capacity = cached.shape(2); seq_len > capacity) {
      const int more = (seq_len - capacity + kCapacityStep - 1) /
                       kCapacityStep * kCapacityStep;
      cached = mx::concatenate(
          {cached, mx::zeros({1, num_kv_heads_, more, head_dim_}, dtype_)}, 2);
    }
    cached = mx::slice_update(
        cached,
        mx::astype(mx::swapaxes(rows, 1, 2), dtype_),
        mx::Shape{0, 0, seq_len - num_tokens, 0},
        mx::Shape{1, num_kv_heads_, seq_len, head_dim_});
    return mx::slice(
        cached, {0, 0, 0, 0}, {1, num_kv_heads_, seq_len, head_dim_});
  };
  const auto keys = store(cache.k, k);
  const auto values = store(cache.v, v);
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim_));
  if (num_tokens > 1) {
    return mx::expand_dims(
        prefill_attention(
            mx::squeeze(q, 0),
            mx::squeeze(keys, 0),
            mx::squeeze(values, 0),
            scale),
        0);
  }
  const auto out = mx::fast::scaled_dot_product_attention(
      mx::swapaxes(q, 1, 2), keys, values, scale);
  return mx::astype(
      mx::reshape(out, {1, 1, q.shape(2) * head_dim_}), q.dtype());
}

CacheReport DenseStore::report() const {
  CacheReport report{.kind = "dense", .kv_dtype = dtype_};
  for (const Sequence& sequence : sequences_) {
    for (const Layer& layer : sequence.layers) {
      report.bytes +=
          static_cast<std::int64_t>(layer.k.nbytes() + layer.v.nbytes());
    }
  }
  return report;
}

}  // namespace quire::tools
