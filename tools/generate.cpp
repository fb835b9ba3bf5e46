// quire generate: text of a GGUF model, through the paged cache or a dense one.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "common/error.h"
#include "quire/runtime.h"
#include "tools/cli/command.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/options.h"
#include "tools/cli/output.h"
#include "tools/llama/dense_store.h"
#include "tools/llama/generation.h"
#include "tools/llama/gguf.h"
#include "tools/llama/model.h"
#include "tools/llama/paged_store.h"
#include "tools/llama/tokenizer.h"
#include "tools/llama/utf8_stream.h"

namespace quire::tools {
namespace {

constexpr int kMaxInt = std::numeric_limits<int>::max();

struct Options {
  std::string model;
  std::optional<std::string> prompt;
  std::string prompt_file;
  int max_tokens = 256;
  bool ignore_eos = false;
  std::string cache = "paged";
  std::string attention = "auto";
  int block_size = kDefaultBlockSize;
  int cache_blocks = 0;
  std::string cache_memory;
  std::string dtype = "f32";
  std::string kv_dtype;
  std::string device = "cpu";
  std::vector<const CLI::Option*> paged_only;
};

std::string read_prompt_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  std::string text;
  ssize_t count = fd >= 0 ? 1 : -1;
  while (count > 0) {
    char buffer[65'536];
    count = ::read(fd, buffer, sizeof(buffer));
    if (count > 0) {
      text.append(buffer, static_cast<std::size_t>(count));
    }
  }
  const int error = errno;
  if (fd >= 0) {
    ::close(fd);
  }
  throw_if_interrupted();
  require(
      count == 0,
      "--prompt-file",
      "\"",
      path,
      "\" cannot be read: ",
      std::strerror(error),
      ".");
  return text;
}

void check_prompt(const std::vector<int>& prompt, const ModelConfig& config) {
  require(!prompt.empty(), "generate", "The prompt must not be empty.");
  require(
      static_cast<std::int64_t>(prompt.size()) <= config.context_length,
      "generate",
      "The prompt must fit the model's context of ",
      config.context_length,
      " tokens; got ",
      prompt.size(),
      ".");
}

// Of what is set but can't have an effect with a dense cache, the user hears.
void note_dense_options(const Options& options) {
  const auto note = [](const std::string& name) {
    write_stderr(
        "quire: note: " + name + " has no effect with --cache dense.\n");
  };
  for (const CLI::Option* option : options.paged_only) {
    if (option->count() > 0) {
      note(option->get_name());
    }
  }
  for (const EnvVariable& variable : env_variables()) {
    if (variable.value[0] != '(') {
      note(variable.name);
    }
  }
}

NativeKernel parse_attention(const std::string& attention) {
  const NativeKernel wanted = attention == "fused"    ? NativeKernel::On
                              : attention == "gather" ? NativeKernel::Off
                                                      : NativeKernel::Auto;
  if (wanted == NativeKernel::On) {
    for (const EnvVariable& variable : env_variables()) {
      require(
          variable.name != "QUIRE_NATIVE_PAGED_KERNEL" ||
              variable.value != "off",
          "--attention",
          "\"fused\" must not be asked for while QUIRE_NATIVE_PAGED_KERNEL is "
          "\"off\", which forbids it.");
    }
  }
  return wanted;
}

int num_cache_blocks(
    const Options& options,
    const KvCacheOptions& cache,
    const ModelConfig& config,
    std::int64_t prompt_len) {
  const auto blocks_for = [&](std::int64_t tokens) {
    return static_cast<int>(
        (tokens + options.block_size - 1) / options.block_size);
  };
  // The last token that is generated needs no place.
  const std::int64_t most_tokens = std::min<std::int64_t>(
      prompt_len + options.max_tokens - 1, config.context_length);
  int num_blocks = blocks_for(most_tokens);
  if (options.cache_blocks > 0) {
    num_blocks = options.cache_blocks;
  } else if (!options.cache_memory.empty()) {
    const std::int64_t block_bytes =
        std::int64_t{2} * cache.num_layers * cache.num_kv_heads *
        cache.head_dim * cache.block_size *
        static_cast<std::int64_t>(mx::size_of(cache.dtype));
    num_blocks = static_cast<int>(std::min<std::int64_t>(
        parse_size("--cache-memory", options.cache_memory) / block_bytes,
        kMaxInt));
    require(
        num_blocks > 0,
        "--cache-memory",
        "The cache must hold at least one block of ",
        block_bytes,
        " bytes; got \"",
        options.cache_memory,
        "\".");
  }
  require(
      blocks_for(prompt_len) <= num_blocks,
      "generate",
      "The cache must hold the prompt: ",
      prompt_len,
      " tokens take ",
      blocks_for(prompt_len),
      " blocks of ",
      options.block_size,
      "; got ",
      num_blocks,
      " blocks.");
  return num_blocks;
}

std::unique_ptr<KvStore> make_store(
    const Options& options,
    const ModelConfig& config,
    std::int64_t prompt_len) {
  if (options.cache == "dense") {
    note_dense_options(options);
    const std::string& dtype =
        options.kv_dtype.empty() ? options.dtype : options.kv_dtype;
    return std::make_unique<DenseStore>(
        config.num_layers,
        config.num_kv_heads,
        config.head_dim,
        parse_dtype(dtype));
  }
  KvCacheOptions cache;
  cache.num_layers = config.num_layers;
  cache.num_kv_heads = config.num_kv_heads;
  cache.head_dim = config.head_dim;
  cache.block_size = options.block_size;
  cache.dtype =
      options.kv_dtype.empty() ? mx::float16 : parse_dtype(options.kv_dtype);
  cache.num_blocks = num_cache_blocks(options, cache, config, prompt_len);
  return std::make_unique<PagedStore>(
      cache, parse_attention(options.attention));
}

/** Layer-steps of decoding by path. */
Json path_json(const PathCounts& before, std::int64_t dense) {
  const PathCounts now = path_counts();
  return {
      {"fused_cpu", now.fused_cpu - before.fused_cpu},
      {"fused_metal", now.fused_metal - before.fused_metal},
      {"fused_cuda", now.fused_cuda - before.fused_cuda},
      {"gather", now.gather - before.gather},
      {"dense", dense}};
}

std::string rate(std::int64_t tokens, double seconds) {
  return tokens > 0 && seconds > 0
             ? format_number(static_cast<double>(tokens) / seconds)
             : "-";
}

std::string summary(
    const Generation& generation,
    std::int64_t prompt_len,
    const CacheReport& cache,
    const Json& paths) {
  std::string ran;
  for (const auto& [path, count] : paths.items()) {
    if (count > 0) {
      ran += (ran.empty() ? "" : ", ") + path + " " + count.dump();
    }
  }
  const auto num_generated =
      static_cast<std::int64_t>(generation.token_ids.size());
  const std::int64_t num_decoded = std::max<std::int64_t>(num_generated - 1, 0);
  const std::string dtype = dtype_text(cache.kv_dtype);
  const std::string blocks =
      cache.kind == "paged"
          ? std::to_string(cache.blocks_used_peak) + " of " +
                std::to_string(cache.blocks_total) + " blocks of " +
                std::to_string(cache.block_size) + ", "
          : "";
  return format_table({
             {"", "tokens", "seconds", "tokens/s"},
             {"prefill",
              std::to_string(prompt_len),
              format_number(generation.prefill_seconds),
              rate(prompt_len, generation.prefill_seconds)},
             {"decode",
              std::to_string(num_decoded),
              format_number(generation.decode_seconds),
              rate(num_decoded, generation.decode_seconds)},
         }) +
         "cache    " + cache.kind + " " + dtype + ", " + blocks +
         format_bytes(static_cast<double>(cache.bytes)) + "\n" + "paths    " +
         (ran.empty() ? "none" : ran) + " (layer-steps)\n" + "finish   " +
         finish_text(generation.finish) + "\n";
}

/** Sends text to stdout, in a form that a terminal can take. */
class TextWriter {
 public:
  explicit TextWriter(bool is_on)
      : is_on_(is_on), is_terminal_(stdout_is_terminal()) {}

  void write(const std::string& text) {
    num_written_ += text.size();
    if (is_on_) {
      write_stdout(is_terminal_ ? without_control_characters(text) : text);
    }
  }

  /** What of the whole text has not been written yet. */
  void finish(const std::string& whole) {
    write(whole.substr(num_written_));
    if (is_on_ && is_terminal_) {
      write_stdout("\n");
    }
  }

 private:
  bool is_on_;
  bool is_terminal_;
  std::size_t num_written_ = 0;
};

int run(const Options& options, const Session& session) {
  use_device(options.device);
  const mx::Dtype dtype = parse_dtype(options.dtype);
  const std::string text =
      options.prompt ? *options.prompt : read_prompt_file(options.prompt_file);

  std::vector<int> prompt;
  Generation generation;
  std::unique_ptr<KvStore> store;
  std::optional<OutputLost> lost;
  TextWriter writer(!session.json_to_stdout());
  PathCounts paths_before;
  int num_layers = 0;
  try {
    const GgufFile file(options.model);
    const Tokenizer tokenizer(file);
    const ModelConfig config = read_model_config(file);
    num_layers = config.num_layers;
    require(
        tokenizer.num_tokens() <= config.vocab_size,
        file.path(),
        "Key \"tokenizer.ggml.tokens\" must have at most as many tokens as "
        "\"token_embd.weight\" has rows; got ",
        tokenizer.num_tokens(),
        " and ",
        config.vocab_size,
        ".");
    prompt = tokenizer.encode(text);
    check_prompt(prompt, config);
    const auto prompt_len = static_cast<std::int64_t>(prompt.size());
    store = make_store(options, config, prompt_len);

    std::optional<Model> model;
    {
      Progress progress("Loading");
      model.emplace(file, dtype, [&](double share) {
        throw_if_interrupted();
        progress.update(share);
      });
      file.drop_tensor_pages();
    }
    std::optional<Progress> progress(std::in_place, "Prefilling");
    generate(
        *model,
        tokenizer,
        *store,
        prompt,
        {.max_tokens = options.max_tokens, .ignore_eos = options.ignore_eos},
        throw_if_interrupted,
        [&](int done) {
          progress->update(
              static_cast<double>(done) / static_cast<double>(prompt_len));
          paths_before = path_counts();
        },
        [&](const std::string& piece) {
          progress.reset();
          writer.write(piece);
        },
        generation);
  } catch (const Interrupted&) {
    generation.finish = Finish::Interrupted;
  } catch (const OutputLost& error) {
    generation.finish = Finish::Interrupted;
    lost = error;
  }
  if (!lost) {
    writer.finish(generation.text);
  }

  const CacheReport cache = store ? store->report() : CacheReport{};
  const auto num_generated =
      static_cast<std::int64_t>(generation.token_ids.size());
  const bool is_dense = cache.kind == "dense";
  const Json paths = path_json(
      paths_before,
      is_dense ? std::max<std::int64_t>(num_generated - 1, 0) * num_layers : 0);
  const bool is_partial = generation.finish == Finish::Interrupted;
  Json result{
      {"prompt_tokens", prompt.size()},
      {"prefill_seconds", generation.prefill_seconds},
      {"decode_seconds", generation.decode_seconds},
      {"generated_tokens", num_generated},
      {"samples",
       Json::array(
           {{{"text", generation.text},
             {"token_ids", generation.token_ids},
             {"finish", finish_text(generation.finish)}}})},
      {"cache",
       {{"kind", options.cache},
        {"kv_dtype", dtype_text(cache.kv_dtype)},
        {"block_size", cache.block_size},
        {"blocks_used_peak", cache.blocks_used_peak},
        {"blocks_shared_peak", cache.blocks_shared_peak},
        {"blocks_total", cache.blocks_total},
        {"bytes", cache.bytes}}},
      {"paths", paths}};
  if (is_partial) {
    result["partial"] = true;
  }
  write_json(session, options.device, result);
  if (lost) {
    throw *lost;
  }
  write_stderr(
      (stdout_is_terminal() || stderr_is_terminal() ? "\n" : "") +
      summary(
          generation, static_cast<std::int64_t>(prompt.size()), cache, paths));
  const bool is_whole =
      generation.finish == Finish::Eos || generation.finish == Finish::Length;
  return is_whole ? kExitDone : kExitBadResult;
}

}  // namespace

RunCommand configure_generate(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  Options& o = *options;
  app.add_option("--model", o.model, "GGUF file of a Llama-architecture model")
      ->required()
      ->type_name("FILE");
  auto* prompt = app.add_option_group(
      "Prompt",
      "One of these. Texts of control tokens, as <|im_start|>, are those "
      "tokens; all else is taken byte for byte");
  prompt->add_option("--prompt", o.prompt, "Text to go on from")
      ->type_name("TEXT");
  prompt->add_option("--prompt-file", o.prompt_file, "File with the text")
      ->type_name("FILE");
  prompt->require_option(1);
  app.add_option("--max-tokens", o.max_tokens, "Most tokens to generate")
      ->check(whole_number(1, kMaxInt))
      ->type_name("N")
      ->capture_default_str();
  app.add_flag(
      "--ignore-eos",
      o.ignore_eos,
      "Go on after an end-of-sequence token. Default: stop there");
  app.add_option("--cache", o.cache, "Cache of keys and values")
      ->check(CLI::IsMember({"paged", "dense"}))
      ->capture_default_str();
  o.paged_only.push_back(
      app.add_option(
             "--attention",
             o.attention,
             "Path of paged attention in decoding; auto: fused where there is "
             "a kernel")
          ->check(CLI::IsMember({"auto", "fused", "gather"}))
          ->capture_default_str());
  o.paged_only.push_back(
      app.add_option("--block-size", o.block_size, "Tokens in a cache block")
          ->check(CLI::IsMember({8, 16, 32, 64, 128, 256}))
          ->capture_default_str());
  auto* blocks = app.add_option(
                        "--cache-blocks",
                        o.cache_blocks,
                        "Blocks in the cache. Default: as many as the prompt "
                        "and --max-tokens need")
                     ->check(whole_number(1, kMaxInt))
                     ->type_name("N");
  auto* memory =
      app.add_option(
             "--cache-memory",
             o.cache_memory,
             "Size of the cache, as 512MB or 1.5GiB, instead of --cache-blocks")
          ->type_name("SIZE")
          ->excludes(blocks);
  o.paged_only.push_back(blocks);
  o.paged_only.push_back(memory);
  add_dtype_option(app, "--dtype", o.dtype, "Type of weights and activations")
      ->capture_default_str();
  add_dtype_option(
      app,
      "--kv-dtype",
      o.kv_dtype,
      "Type of the cache. Default: f16 for --cache paged, as --dtype for "
      "--cache dense");
  add_device_option(app, o.device);
  return [options](const Session& session) { return run(*options, session); };
}

}  // namespace quire::tools
