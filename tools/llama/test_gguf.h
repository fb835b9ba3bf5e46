// GGUF files made by tests: any header, true or false, and a whole tiny model.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tools/llama/gguf.h"

namespace quire::tools::test {

/** Bytes, and little-endian numbers at their end. */
class Bytes {
 public:
  template <typename T>
  Bytes& put(T value) {
    const auto* p = reinterpret_cast<const char*>(&value);
    text_.append(p, sizeof(T));
    return *this;
  }
  Bytes& raw(std::string_view text) {
    text_ += text;
    return *this;
  }
  Bytes& string(std::string_view text) {
    return put(std::uint64_t{text.size()}).raw(text);
  }
  const std::string& text() const {
    return text_;
  }

 private:
  std::string text_;
};

/** A metadata value: its type number and its bytes. */
struct TestValue {
  std::uint32_t type;
  std::string bytes;
};

inline TestValue u32(std::uint32_t value) {
  return {4, Bytes().put(value).text()};
}
inline TestValue f32(float value) {
  return {6, Bytes().put(value).text()};
}
inline TestValue boolean(bool value) {
  return {7, Bytes().put(static_cast<std::uint8_t>(value)).text()};
}
inline TestValue text(std::string_view value) {
  return {8, Bytes().string(value).text()};
}
inline TestValue texts(const std::vector<std::string>& values) {
  Bytes bytes;
  bytes.put(std::uint32_t{8}).put(std::uint64_t{values.size()});
  for (const std::string& value : values) {
    bytes.string(value);
  }
  return {9, bytes.text()};
}
inline TestValue i32s(const std::vector<std::int32_t>& values) {
  Bytes bytes;
  bytes.put(std::uint32_t{5}).put(std::uint64_t{values.size()});
  for (const std::int32_t value : values) {
    bytes.put(value);
  }
  return {9, bytes.text()};
}

struct TestTensor {
  std::string name;
  std::uint32_t type = 0;
  std::vector<std::uint64_t> dims;  // the file's order: fastest first
  std::string data;
};

/** A file's content as a test may change it before it is written. */
struct TestFile {
  std::vector<std::pair<std::string, TestValue>> keys;
  std::vector<TestTensor> tensors;
  std::uint64_t alignment = 32;

  void set(const std::string& key, TestValue value) {
    erase(key);
    keys.emplace_back(key, std::move(value));
  }
  void erase(const std::string& key) {
    std::erase_if(keys, [&](const auto& entry) { return entry.first == key; });
  }
  TestTensor& tensor(const std::string& name) {
    for (TestTensor& t : tensors) {
      if (t.name == name) {
        return t;
      }
    }
    throw std::out_of_range(name);
  }

  std::string bytes() const {
    Bytes out;
    out.raw("GGUF").put(std::uint32_t{3}).put(std::uint64_t{tensors.size()});
    out.put(std::uint64_t{keys.size()});
    for (const auto& [key, value] : keys) {
      out.string(key).put(value.type).raw(value.bytes);
    }
    const auto pad = [&](std::uint64_t size) {
      return std::string((alignment - size % alignment) % alignment, '\0');
    };
    std::string data;
    for (const TestTensor& t : tensors) {
      out.string(t.name).put(static_cast<std::uint32_t>(t.dims.size()));
      for (const std::uint64_t dim : t.dims) {
        out.put(dim);
      }
      out.put(t.type).put(std::uint64_t{data.size()});
      data += t.data;
      data += pad(data.size());
    }
    return out.text() + pad(out.text().size()) + data;
  }
};

/** A file in the temporary folder, removed at the end. */
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& content) {
    static int number = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("quire_test_" + std::to_string(std::random_device{}()) + "_" +
             std::to_string(++number) + ".gguf");
    std::ofstream(path_, std::ios::binary) << content;
  }
  ~TemporaryFile() {
    std::filesystem::remove(path_);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  std::string path() const {
    return path_.string();
  }

 private:
  std::filesystem::path path_;
};

// Sizes of the tiny model: head_dim is not hidden_size / num_q_heads, and the
// embedding has more rows than there are tokens.
inline constexpr int kTinyLayers = 3;
inline constexpr int kTinyHidden = 96;
inline constexpr int kTinyFfn = 160;
inline constexpr int kTinyQHeads = 4;
inline constexpr int kTinyKvHeads = 2;
inline constexpr int kTinyHeadDim = 64;
inline constexpr int kTinyTokens = 260;
inline constexpr int kTinyRows = 264;
inline constexpr int kTinyContext = 640;

/** A tensor of random values of the type F32, F16 or Q8_0. */
inline TestTensor random_tensor(
    std::mt19937& random,
    const std::string& name,
    const std::vector<std::uint64_t>& dims,
    GgufType type,
    float scale) {
  TestTensor tensor{name, static_cast<std::uint32_t>(type), dims, {}};
  std::uint64_t size = 1;
  for (const std::uint64_t dim : dims) {
    size *= dim;
  }
  std::normal_distribution<float> normal(0.0f, scale);
  Bytes out;
  for (std::uint64_t i = 0; i < size; ++i) {
    if (type == GgufType::F32) {
      out.put(dims.size() == 1 ? 1.0f + normal(random) : normal(random));
    } else if (type == GgufType::Q8_0) {
      if (i % 32 == 0) {
        out.put(std::uint16_t{0x1400});  // 2^-10
      }
      const float q = std::clamp(normal(random) * 1024.0f, -127.0f, 127.0f);
      out.put(static_cast<std::int8_t>(q));
    }
  }
  tensor.data = out.text();
  return tensor;
}

/**
 * A whole tiny Llama model with random weights and a byte-level vocabulary: the
 * 256 bytes (id = byte), two merged tokens "he" (256) and "hel" (257), and the
 * control tokens "<s>" (258) and "</s>" (259).
 */
inline TestFile tiny_model() {
  TestFile file;
  file.set("general.architecture", text("llama"));
  file.set("llama.block_count", u32(kTinyLayers));
  file.set("llama.context_length", u32(kTinyContext));
  file.set("llama.embedding_length", u32(kTinyHidden));
  file.set("llama.feed_forward_length", u32(kTinyFfn));
  file.set("llama.attention.head_count", u32(kTinyQHeads));
  file.set("llama.attention.head_count_kv", u32(kTinyKvHeads));
  file.set("llama.attention.key_length", u32(kTinyHeadDim));
  file.set("llama.attention.value_length", u32(kTinyHeadDim));
  file.set("llama.attention.layer_norm_rms_epsilon", f32(1e-5f));
  file.set("llama.rope.freq_base", f32(10000.0f));

  std::vector<std::string> tokens;
  unsigned next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool visible =
        (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
    const unsigned code = visible ? byte : next++;
    tokens.push_back(
        code < 0x80 ? std::string(1, static_cast<char>(code))
                    : std::string{
                          static_cast<char>(0xC0u | (code >> 6)),
                          static_cast<char>(0x80u | (code & 0x3Fu))});
  }
  tokens.insert(tokens.end(), {"he", "hel", "<s>", "</s>"});
  std::vector<std::int32_t> types(tokens.size(), 1);
  types[258] = types[259] = 3;
  file.set("tokenizer.ggml.model", text("gpt2"));
  file.set("tokenizer.ggml.pre", text("smollm"));
  file.set("tokenizer.ggml.tokens", texts(tokens));
  file.set("tokenizer.ggml.token_type", i32s(types));
  file.set("tokenizer.ggml.merges", texts({"h e", "he l"}));
  file.set("tokenizer.ggml.bos_token_id", u32(258));
  file.set("tokenizer.ggml.eos_token_id", u32(259));

  std::mt19937 random(7);
  const auto add = [&](const std::string& name,
                       const std::vector<std::uint64_t>& dims,
                       GgufType type,
                       float scale) {
    file.tensors.push_back(random_tensor(random, name, dims, type, scale));
  };
  const auto matrix = [&](const std::string& name, int columns, int rows) {
    add(name,
        {static_cast<std::uint64_t>(columns), static_cast<std::uint64_t>(rows)},
        GgufType::Q8_0,
        0.06f);
  };
  matrix("token_embd.weight", kTinyHidden, kTinyRows);
  add("output_norm.weight", {kTinyHidden}, GgufType::F32, 0.1f);
  for (int i = 0; i < kTinyLayers; ++i) {
    const std::string prefix = "blk." + std::to_string(i) + ".";
    add(prefix + "attn_norm.weight", {kTinyHidden}, GgufType::F32, 0.1f);
    add(prefix + "ffn_norm.weight", {kTinyHidden}, GgufType::F32, 0.1f);
    matrix(prefix + "attn_q.weight", kTinyHidden, kTinyQHeads * kTinyHeadDim);
    matrix(prefix + "attn_k.weight", kTinyHidden, kTinyKvHeads * kTinyHeadDim);
    matrix(prefix + "attn_v.weight", kTinyHidden, kTinyKvHeads * kTinyHeadDim);
    matrix(
        prefix + "attn_output.weight", kTinyQHeads * kTinyHeadDim, kTinyHidden);
    matrix(prefix + "ffn_gate.weight", kTinyHidden, kTinyFfn);
    matrix(prefix + "ffn_up.weight", kTinyHidden, kTinyFfn);
    matrix(prefix + "ffn_down.weight", kTinyFfn, kTinyHidden);
  }
  return file;
}

}  // namespace quire::tools::test
