// The environment variables of the library, read once.
#pragma once

#include <string>
#include <vector>

namespace quire {

/** What QUIRE_NATIVE_PAGED_KERNEL says. */
enum class NativeKernelEnv { Auto, On, Off };

/**
 * All settings that come from the environment. env() parses them once, at its
 * first call, and throws std::invalid_argument with the variable's name, the
 * values it takes and the value it has if one cannot be used.
 */
struct Env {
  NativeKernelEnv native_paged_kernel = NativeKernelEnv::Auto;
  bool checks = false;     // QUIRE_CHECKS: 0 or 1
  int num_threads = 0;     // QUIRE_NUM_THREADS: 0 is the affinity mask's count
  std::string cpu_isa;     // QUIRE_CPU_ISA: empty is the best the CPU has
  int num_splits = 0;      // QUIRE_NUM_SPLITS: 0 is chosen
  std::string log;         // QUIRE_LOG: "" or "off", "info", "debug"
};

const Env& env();

/** One variable as `quire info` prints it. */
struct EnvVariable {
  std::string name;
  std::string value;   // as set, or the default in parentheses
  std::string effect;  // one sentence, with the values it takes
};
std::vector<EnvVariable> env_variables();

}  // namespace quire
