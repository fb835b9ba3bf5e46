#include "tools/bench/memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#ifdef __APPLE__
#include <sys/sysctl.h>
#endif

namespace quire::bench {
namespace {

#ifdef __APPLE__

std::int64_t sysctl_value(const char* name) {
  std::int64_t value = 0;
  std::size_t size = sizeof(value);
  return ::sysctlbyname(name, &value, &size, nullptr, 0) == 0 ? value : 0;
}

#else

/** The number at the head of a file, or `otherwise`. */
std::int64_t read_number(const std::string& file, std::int64_t otherwise) {
  std::int64_t value = 0;
  return std::ifstream(file) >> value ? value : otherwise;
}

#endif

}  // namespace

std::int64_t last_level_cache_bytes() {
  constexpr std::int64_t kUnknown = std::int64_t{64} << 20;
  std::int64_t largest = 0;
#ifdef __APPLE__
  largest = std::max(
      sysctl_value("hw.l3cachesize"),
      sysctl_value("hw.perflevel0.l2cachesize"));
#else
  for (int index = 0; index < 8; ++index) {
    const std::string file = "/sys/devices/system/cpu/cpu0/cache/index" +
                             std::to_string(index) + "/size";
    // Always kibibytes: "266240K".
    largest = std::max(largest, read_number(file, 0) * 1024);
  }
#endif
  return largest > 0 ? largest : kUnknown;
}

std::int64_t available_memory_bytes() {
#ifdef __APPLE__
  return sysctl_value("hw.memsize") / 2;
#else
  constexpr std::int64_t kUnlimited = std::numeric_limits<std::int64_t>::max();
  std::int64_t available = std::int64_t{1} << 30;
  std::ifstream meminfo("/proc/meminfo");
  for (std::string key; meminfo >> key;) {
    if (key == "MemAvailable:") {
      meminfo >> available;
      available *= 1024;
      break;
    }
  }
  const std::string group = "/sys/fs/cgroup/memory.";
  const std::int64_t limit = read_number(group + "max", kUnlimited);
  return std::min(
      available,
      limit == kUnlimited ? limit : limit - read_number(group + "current", 0));
#endif
}

double peak_bytes(const Shape& shape, std::int64_t rotation, int num_pools) {
  const auto least = static_cast<double>(rotation);
  const double paged =
      kv_elements(shape) * static_cast<double>(dtype_bytes(shape.kv_dtype));
  const double f32 = kv_elements(shape) * 4;
  const double pool = std::max(least, paged);
  const double dense = std::max(least, f32);
  const double gather = 2 * f32 + paged;  // two copies alive at once
  return num_pools * pool + 2 * dense + std::max(least, f32) + gather;
}

}  // namespace quire::bench
