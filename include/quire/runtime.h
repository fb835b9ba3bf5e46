#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "quire/api.h"

namespace quire {

/**
 * How often each path of paged_attention was evaluated since the program
 * began or reset_path_counts() was called, one count an op (a layer-step).
 * Building an op counts nothing; evaluating a compiled graph counts each time.
 */
struct PathCounts {
  std::int64_t fused_cpu = 0;
  std::int64_t fused_metal = 0;
  std::int64_t fused_cuda = 0;
  std::int64_t fused_metal_host = 0;  // Metal's source executed on the CPU
  std::int64_t gather = 0;            // by request and as a fallback

  /** Evaluations of gather that a fused path was wanted for, by reason. */
  std::map<std::string, std::int64_t> fallbacks;

  friend bool operator==(const PathCounts&, const PathCounts&) = default;
};

/** A snapshot of the counters. Safe to call from any thread. */
QUIRE_API PathCounts path_counts();

/** Sets all counters to zero. Safe to call from any thread. */
QUIRE_API void reset_path_counts();

/** Version of this library: "major.minor.patch". */
QUIRE_API std::string version();

/** Version of the MLX library that is loaded. */
QUIRE_API std::string mlx_version();

/** Fused paged-attention kernels of this build: of "cpu", "metal", "cuda". */
QUIRE_API std::vector<std::string> native_kernels();

/**
 * Instruction set of the CPU kernels in use; "none" for a build without them.
 * Throws std::invalid_argument when QUIRE_CPU_ISA asks for one that this CPU
 * does not have.
 */
QUIRE_API std::string cpu_isa();

/** Threads that the CPU kernels use; 0 for a build without them. */
QUIRE_API int cpu_threads();

/** An environment variable that the library reads. */
struct EnvVariable {
  std::string name;
  std::string value;   // as set, or the default in parentheses
  std::string effect;  // one sentence, with the values it takes
};

/**
 * Every environment variable of the library, in the order of the manual.
 * Throws std::invalid_argument if one has a value that cannot be used.
 */
QUIRE_API std::vector<EnvVariable> env_variables();

}  // namespace quire
