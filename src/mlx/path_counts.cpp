#include "mlx/path_counts.h"

#include <cstdio>
#include <mutex>

#include "common/env.h"
#include "quire/runtime.h"

namespace quire {
namespace {

struct Counters {
  std::mutex mutex;
  PathCounts counts;
};

Counters& counters() {
  static Counters value;
  return value;
}

std::int64_t& field(PathCounts& counts, Path path) {
  switch (path) {
    case Path::FusedCpu:
      return counts.fused_cpu;
    case Path::FusedMetal:
      return counts.fused_metal;
    case Path::FusedCuda:
      return counts.fused_cuda;
    case Path::FusedMetalHost:
      return counts.fused_metal_host;
    case Path::Gather:
      break;
  }
  return counts.gather;
}

// QUIRE_LOG: info says each reason for a fallback once, debug every time.
void log_fallback(const std::string& reason, bool is_new) {
  const std::string& level = env().log;
  if (level == "debug" || (level == "info" && is_new)) {
    std::fprintf(
        stderr, "quire: paged_attention took gather: %s\n", reason.c_str());
  }
}

}  // namespace

void count_path(Path path, const std::string& fallback_reason) {
  Counters& c = counters();
  const std::lock_guard lock(c.mutex);
  ++field(c.counts, path);
  if (!fallback_reason.empty()) {
    const std::int64_t times = ++c.counts.fallbacks[fallback_reason];
    log_fallback(fallback_reason, times == 1);
  }
}

PathCounts path_counts() {
  Counters& c = counters();
  const std::lock_guard lock(c.mutex);
  return c.counts;
}

void reset_path_counts() {
  Counters& c = counters();
  const std::lock_guard lock(c.mutex);
  c.counts = {};
}

}  // namespace quire
