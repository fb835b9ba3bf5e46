// The environment variables of the library, read once.
#pragma once

#include <functional>
#include <string>

namespace quire {

/** What QUIRE_NATIVE_PAGED_KERNEL says. */
enum class NativeKernelEnv { Auto, On, Off };

/**
 * All settings that come from the environment; quire/runtime.h lists them for
 * users. An empty variable is as good as none. env() parses them once, at its
 * first call, and throws std::invalid_argument with the variable's name, the
 * values it takes and the value it has if one cannot be used.
 */
struct Env {
  NativeKernelEnv native_paged_kernel = NativeKernelEnv::Auto;
  bool checks = false;  // QUIRE_CHECKS: 0 or 1
  int num_threads = 0;  // QUIRE_NUM_THREADS: 0 is the affinity mask's count
  std::string cpu_isa;  // QUIRE_CPU_ISA: empty is the best the CPU has
  int num_splits = 0;   // QUIRE_NUM_SPLITS: 0 is chosen
  std::string log;      // QUIRE_LOG: "" or "off", "info", "debug"
};

const Env& env();

/** As env(), from the values that `lookup` returns; null is unset. */
Env parse_env(const std::function<const char*(const char* name)>& lookup);

}  // namespace quire
