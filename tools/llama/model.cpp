#include "tools/llama/model.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "common/error.h"
#include "tools/llama/dequantize.h"
#include "tools/llama/prefill_attention.h"

namespace quire::tools {
namespace {

// Above any model's, and low enough that products of two stay in an int.
constexpr int kMaxSize = 1 << 20;
constexpr int kMaxHeads = 1 << 10;

int read_size(const GgufFile& file, const char* key, int max) {
  return static_cast<int>(file.integer(key, 1, max));
}

std::string layer_prefix(int layer) {
  return "blk." + std::to_string(layer) + ".";
}

using Shape = std::vector<std::int64_t>;

/** Every tensor of a model that GGUF names, with the shape that its keys give;
 * "output.weight" only where the file has one. */
std::map<std::string, Shape, std::less<>> model_tensors(
    const ModelConfig& config,
    const GgufFile& file) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t ffn = config.ffn_size;
  const std::int64_t q_size =
      std::int64_t{config.num_q_heads} * config.head_dim;
  const std::int64_t kv_size =
      std::int64_t{config.num_kv_heads} * config.head_dim;
  std::map<std::string, Shape, std::less<>> shapes{
      {"token_embd.weight", {config.vocab_size, hidden}},
      {"output_norm.weight", {hidden}}};
  if (file.tensors().count("output.weight") > 0) {
    shapes["output.weight"] = {config.vocab_size, hidden};
  }
  // No file has more layers than tensors: a false number ends here.
  const auto num_tensors = static_cast<int>(file.tensors().size());
  for (int i = 0; i < std::min(config.num_layers, num_tensors + 1); ++i) {
    const std::string prefix = layer_prefix(i);
    shapes[prefix + "attn_norm.weight"] = {hidden};
    shapes[prefix + "attn_q.weight"] = {q_size, hidden};
    shapes[prefix + "attn_k.weight"] = {kv_size, hidden};
    shapes[prefix + "attn_v.weight"] = {kv_size, hidden};
    shapes[prefix + "attn_output.weight"] = {hidden, q_size};
    shapes[prefix + "ffn_norm.weight"] = {hidden};
    shapes[prefix + "ffn_gate.weight"] = {ffn, hidden};
    shapes[prefix + "ffn_up.weight"] = {ffn, hidden};
    shapes[prefix + "ffn_down.weight"] = {hidden, ffn};
  }
  return shapes;
}

/** Reads tensors to MLX arrays. */
class WeightReader {
 public:
  /** Checks first that the file has every tensor of the model, and no other. */
  WeightReader(
      const ModelConfig& config,
      const GgufFile& file,
      mx::Dtype dtype,
      const std::function<void(double)>& progress)
      : file_(file), dtype_(dtype), progress_(progress) {
    const auto shapes = model_tensors(config, file);
    for (const auto& [name, shape] : shapes) {
      total_ += file.tensor(name, shape).data.size();
    }
    for (const auto& [name, tensor] : file.tensors()) {
      require(
          shapes.count(name) > 0,
          file.path(),
          "Every tensor must belong to a Llama model of ",
          config.num_layers,
          " layers; got \"",
          name,
          "\".");
    }
  }

  /** Tensors of the same row length, one below the other. */
  mx::array read(const std::vector<std::string>& names) {
    std::vector<const GgufTensor*> tensors;
    std::int64_t num_rows = 0;
    for (const std::string& name : names) {
      tensors.push_back(&file_.tensors().at(name));
      num_rows += tensors.back()->shape[0];
    }
    mx::Shape shape{static_cast<int>(num_rows)};
    std::int64_t row_size = 1;
    if (tensors[0]->shape.size() > 1) {
      row_size = tensors[0]->shape[1];
      shape.push_back(static_cast<int>(row_size));
    }
    auto data = std::make_unique_for_overwrite<float[]>(
        static_cast<std::size_t>(num_rows * row_size));
    float* at = data.get();
    for (const GgufTensor* tensor : tensors) {
      dequantize(*tensor, at, num_threads_);
      at += tensor->shape[0] * row_size;
      done_ += tensor->data.size();
    }
    // The array takes the buffer as its own.
    const auto floats = mx::array(
        static_cast<void*>(data.release()), shape, mx::float32, [](void* p) {
          delete[] static_cast<float*>(p);
        });
    auto result = mx::astype(floats, dtype_);
    mx::eval(result);
    progress_(static_cast<double>(done_) / static_cast<double>(total_));
    return result;
  }

 private:
  const GgufFile& file_;
  mx::Dtype dtype_;
  const std::function<void(double)>& progress_;
  std::size_t total_ = 0;
  std::size_t done_ = 0;
  int num_threads_ =
      std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
};

// y = x @ Q turns each pair (x0, x1) into (-x1, x0).
mx::array make_quarter_turn(int head_dim, mx::Dtype dtype) {
  const auto size = static_cast<std::size_t>(head_dim);
  std::vector<float> matrix(size * size);
  for (std::size_t i = 0; i < size; i += 2) {
    matrix[(i + 1) * size + i] = -1.0f;
    matrix[i * size + i + 1] = 1.0f;
  }
  return mx::astype(mx::array(matrix.data(), {head_dim, head_dim}), dtype);
}

}  // namespace

ModelConfig read_model_config(const GgufFile& file) {
  const std::string_view architecture = file.string("general.architecture");
  require(
      architecture == "llama",
      file.path(),
      "Key \"general.architecture\" must be \"llama\"; got \"",
      architecture.substr(0, 80),
      "\".");
  const auto scaling = file.find_string("llama.rope.scaling.type");
  require(
      !scaling || *scaling == "none",
      file.path(),
      "Key \"llama.rope.scaling.type\" must be \"none\" or absent; got \"",
      scaling.value_or("").substr(0, 80),
      "\".");

  ModelConfig config{};
  config.num_layers = read_size(file, "llama.block_count", kMaxSize);
  config.hidden_size = read_size(file, "llama.embedding_length", kMaxSize);
  config.ffn_size = read_size(file, "llama.feed_forward_length", kMaxSize);
  config.context_length = read_size(file, "llama.context_length", 1 << 30);
  config.num_q_heads = read_size(file, "llama.attention.head_count", kMaxHeads);
  config.num_kv_heads = static_cast<int>(
      file.find_integer("llama.attention.head_count_kv", 1, kMaxHeads)
          .value_or(config.num_q_heads));
  require(
      config.num_q_heads % config.num_kv_heads == 0,
      file.path(),
      "Key \"llama.attention.head_count\" must be a multiple of "
      "\"llama.attention.head_count_kv\"; got ",
      config.num_q_heads,
      " and ",
      config.num_kv_heads,
      ".");
  const auto key_length =
      file.find_integer("llama.attention.key_length", 1, 1024);
  const auto value_length =
      file.find_integer("llama.attention.value_length", 1, 1024);
  require(
      key_length || config.hidden_size % config.num_q_heads == 0,
      file.path(),
      "Key \"llama.embedding_length\" must be a multiple of "
      "\"llama.attention.head_count\" without "
      "\"llama.attention.key_length\"; got ",
      config.hidden_size,
      " and ",
      config.num_q_heads,
      ".");
  const std::int64_t head_dim =
      key_length.value_or(config.hidden_size / config.num_q_heads);
  config.head_dim = static_cast<int>(head_dim);
  for (const auto& [key, value] :
       {std::pair("llama.attention.value_length", value_length),
        std::pair(
            "llama.rope.dimension_count",
            file.find_integer("llama.rope.dimension_count", 1, 1024))}) {
    require(
        value.value_or(head_dim) == head_dim,
        file.path(),
        "Key \"",
        key,
        "\" must be the head dimension, ",
        head_dim,
        "; got ",
        value.value_or(head_dim),
        ".");
  }
  require(
      head_dim % 2 == 0 && head_dim <= 1024,
      file.path(),
      "The head dimension must be even and at most 1024; got ",
      head_dim,
      ".");

  const double epsilon = file.real("llama.attention.layer_norm_rms_epsilon");
  require(
      epsilon > 0 && epsilon < 1,
      file.path(),
      "Key \"llama.attention.layer_norm_rms_epsilon\" must lie between 0 and "
      "1; got ",
      epsilon,
      ".");
  config.rms_epsilon = static_cast<float>(epsilon);
  config.rope_base = file.has("llama.rope.freq_base")
                         ? file.real("llama.rope.freq_base")
                         : 10000.0;
  require(
      config.rope_base > 1,
      file.path(),
      "Key \"llama.rope.freq_base\" must be above 1; got ",
      config.rope_base,
      ".");

  const auto embedding = file.tensors().find("token_embd.weight");
  require(
      embedding != file.tensors().end(),
      file.path(),
      "Tensor \"token_embd.weight\" must be present.");
  const std::int64_t rows = embedding->second.shape[0];
  require(
      rows <= (1 << 24),
      file.path(),
      "Tensor \"token_embd.weight\" must have at most ",
      1 << 24,
      " rows; got ",
      rows,
      ".");
  config.vocab_size = static_cast<int>(rows);
  return config;
}

Model::Model(
    const GgufFile& file,
    mx::Dtype dtype,
    const std::function<void(double)>& progress)
    : config_(read_model_config(file)),
      dtype_(dtype),
      embedding_(0.0f),
      output_norm_(0.0f),
      output_(0.0f),
      quarter_turn_(make_quarter_turn(config_.head_dim, dtype)) {
  WeightReader reader(config_, file, dtype, progress);
  embedding_ = reader.read({"token_embd.weight"});
  output_norm_ = reader.read({"output_norm.weight"});
  output_ = mx::transpose(
      file.tensors().count("output.weight") > 0 ? reader.read({"output.weight"})
                                                : embedding_);
  for (int i = 0; i < config_.num_layers; ++i) {
    const std::string prefix = layer_prefix(i);
    const auto matrix = [&](std::vector<std::string> names) {
      for (std::string& name : names) {
        name.insert(0, prefix).append(".weight");
      }
      return mx::transpose(reader.read(names));
    };
    layers_.push_back(
        {.attention_norm = reader.read({prefix + "attn_norm.weight"}),
         .qkv = matrix({"attn_q", "attn_k", "attn_v"}),
         .attention_out = matrix({"attn_output"}),
         .ffn_norm = reader.read({prefix + "ffn_norm.weight"}),
         .gate_up = matrix({"ffn_gate", "ffn_up"}),
         .down = matrix({"ffn_down"})});
  }
}

mx::array Model::forward(
    std::span<const int> sequences,
    std::span<const int> tokens,
    KvStore& store,
    const std::function<void(const mx::array&)>& after_layer) const {
  const int num_seqs = static_cast<int>(sequences.size());
  const int num_tokens = static_cast<int>(tokens.size()) / num_seqs;

  // Angles in double, so that the last of 8,192 positions is as exact as the
  // first.
  const auto half = static_cast<std::size_t>(config_.head_dim / 2);
  std::vector<float> cos;
  std::vector<float> sin;
  cos.reserve(tokens.size() * half * 2);
  sin.reserve(tokens.size() * half * 2);
  for (const int sequence : sequences) {
    const int begin = store.seq_len(sequence) - num_tokens;
    for (int t = 0; t < num_tokens; ++t) {
      for (std::size_t i = 0; i < half; ++i) {
        const double angle = (begin + t) * std::pow(
                                               config_.rope_base,
                                               -static_cast<double>(i) /
                                                   static_cast<double>(half));
        cos.insert(cos.end(), 2, static_cast<float>(std::cos(angle)));
        sin.insert(sin.end(), 2, static_cast<float>(std::sin(angle)));
      }
    }
  }
  const mx::Shape angles{num_seqs, num_tokens, 1, config_.head_dim};
  const auto cosines = mx::astype(mx::array(cos.data(), angles), dtype_);
  const auto sines = mx::astype(mx::array(sin.data(), angles), dtype_);

  auto x = mx::take(
      embedding_,
      mx::array(tokens.data(), {num_seqs, num_tokens}, mx::int32),
      0);
  for (int i = 0; i < config_.num_layers; ++i) {
    x = x + attention(i, x, cosines, sines, store);
    x = x + feed_forward(layers_[static_cast<std::size_t>(i)], x);
    after_layer(x);
  }
  const auto last = mx::reshape(
      mx::slice(
          x,
          {0, num_tokens - 1, 0},
          {num_seqs, num_tokens, config_.hidden_size}),
      {num_seqs, config_.hidden_size});
  return mx::matmul(
      mx::fast::rms_norm(last, output_norm_, config_.rms_epsilon), output_);
}

mx::array Model::attention(
    int layer_idx,
    const mx::array& x,
    const mx::array& cos,
    const mx::array& sin,
    KvStore& store) const {
  const Layer& layer = layers_[static_cast<std::size_t>(layer_idx)];
  const int num_seqs = x.shape(0);
  const int num_tokens = x.shape(1);
  const int q_end = config_.num_q_heads;
  const int k_end = q_end + config_.num_kv_heads;
  const int v_end = k_end + config_.num_kv_heads;
  const auto normed =
      mx::fast::rms_norm(x, layer.attention_norm, config_.rms_epsilon);
  const auto heads = mx::reshape(
      mx::matmul(normed, layer.qkv),
      {num_seqs, num_tokens, v_end, config_.head_dim});
  const auto take_heads = [&](const mx::array& from, int begin, int end) {
    return mx::slice(
        from, {0, 0, begin, 0}, {num_seqs, num_tokens, end, config_.head_dim});
  };
  const auto rotated = rotate(take_heads(heads, 0, k_end), cos, sin);
  const auto attended = store.attend(
      layer_idx,
      take_heads(rotated, 0, q_end),
      take_heads(rotated, q_end, k_end),
      take_heads(heads, k_end, v_end));
  return mx::matmul(attended, layer.attention_out);
}

// GGUF stores q and k so that the elements of a rotated pair are neighbours.
// Two products and a sum instead of fast::rope, whose fallback on a CPU costs
// twice as much in small operations and rounds the angle to float32.
mx::array Model::rotate(
    const mx::array& x,
    const mx::array& cos,
    const mx::array& sin) const {
  return x * cos + mx::matmul(x, quarter_turn_) * sin;
}

mx::array Model::feed_forward(const Layer& layer, const mx::array& x) const {
  const auto normed =
      mx::fast::rms_norm(x, layer.ffn_norm, config_.rms_epsilon);
  const auto gate_up = mx::split(mx::matmul(normed, layer.gate_up), 2, -1);
  const mx::array& gate = gate_up[0];
  // silu(gate) = gate / (1 + e^-gate)
  const auto exponential = exp2(gate * mx::array(-kLog2E, gate.dtype()));
  const auto silu = gate / (exponential + mx::array(1.0f, gate.dtype()));
  return mx::matmul(silu * gate_up[1], layer.down);
}

}  // namespace quire::tools
