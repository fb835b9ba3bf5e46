#include "mlx/path_counts.h"

#include <mutex>

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

}  // namespace

void count_path(Path path, const std::string& fallback_reason) {
  Counters& c = counters();
  const std::lock_guard lock(c.mutex);
  ++field(c.counts, path);
  if (!fallback_reason.empty()) {
    ++c.counts.fallbacks[fallback_reason];
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
