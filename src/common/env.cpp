#include "common/env.h"

#include <charconv>
#include <cstdlib>
#include <string_view>

#include "common/error.h"
#include "quire/runtime.h"

namespace quire {
namespace {

constexpr std::string_view kIsaNames[] = {"portable", "avx2", "avx512", "neon"};

using Lookup = std::function<const char*(const char*)>;

std::string_view get(const Lookup& lookup, const char* name) {
  const char* value = lookup(name);
  return value ? std::string_view(value) : std::string_view();
}

int parse_int(const Lookup& lookup, const char* name, int min, int max) {
  const std::string_view text = get(lookup, name);
  if (text.empty()) {
    return 0;
  }
  int value = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value);
  require(
      error == std::errc() && end == text.data() + text.size() &&
          value >= min && value <= max,
      "env",
      name,
      " must be a whole number from ",
      min,
      " to ",
      max,
      "; got \"",
      text,
      "\".");
  return value;
}

template <std::size_t N>
std::string parse_word(
    const Lookup& lookup,
    const char* name,
    const std::string_view (&words)[N]) {
  const std::string_view text = get(lookup, name);
  std::string list;
  for (const std::string_view word : words) {
    if (text == word || text.empty()) {
      return std::string(text);
    }
    list += (list.empty() ? "" : ", ") + std::string(word);
  }
  require(
      false, "env", name, " must be one of ", list, "; got \"", text, "\".");
  return {};
}

}  // namespace

Env parse_env(const Lookup& lookup) {
  Env e;
  constexpr std::string_view kGate[] = {"auto", "on", "off"};
  const std::string gate =
      parse_word(lookup, "QUIRE_NATIVE_PAGED_KERNEL", kGate);
  e.native_paged_kernel = gate == "on"    ? NativeKernelEnv::On
                          : gate == "off" ? NativeKernelEnv::Off
                                          : NativeKernelEnv::Auto;
  e.checks = parse_int(lookup, "QUIRE_CHECKS", 0, 1) == 1;
  e.num_threads = parse_int(lookup, "QUIRE_NUM_THREADS", 1, 1024);
  e.cpu_isa = parse_word(lookup, "QUIRE_CPU_ISA", kIsaNames);
  e.num_splits = parse_int(lookup, "QUIRE_NUM_SPLITS", 0, 4096);
  constexpr std::string_view kLog[] = {"off", "info", "debug"};
  e.log = parse_word(lookup, "QUIRE_LOG", kLog);
  return e;
}

const Env& env() {
  static const Env value = parse_env(std::getenv);
  return value;
}

std::vector<EnvVariable> env_variables() {
  env();  // refuses values that cannot be used
  const auto row = [](const char* name, const char* unset, const char* effect) {
    const std::string_view value = get(std::getenv, name);
    return EnvVariable{
        name, value.empty() ? unset : std::string(value), effect};
  };
  return {
      row("QUIRE_NATIVE_PAGED_KERNEL",
          "(auto)",
          "auto, on or off. off: never the fused kernel, beats every option; "
          "on: as use_native_paged_kernel = On where the option says Auto."),
      row("QUIRE_CHECKS",
          "(0)",
          "0 or 1. 1: check block ids, slots and lengths on GPUs too; the CPU "
          "always checks them."),
      row("QUIRE_NUM_THREADS",
          "(affinity mask)",
          "1 to 1024. Threads of the CPU kernels."),
      row("QUIRE_CPU_ISA",
          "(best)",
          "portable, avx2, avx512 or neon. Instruction set of the CPU "
          "kernels."),
      row("QUIRE_NUM_SPLITS",
          "(0)",
          "0 to 4096. KV splits a sequence where the option says 0; 0: "
          "chosen."),
      row("QUIRE_LOG",
          "(off)",
          "off, info or debug. Messages about paths and fallbacks on stderr."),
  };
}

}  // namespace quire
