#include "mlx/gpu_cores.h"

#include <cstdint>

// The seven functions of IOKit and CoreFoundation that are called, declared
// here: a cross build has no headers of either. References are opaque pointers.
extern "C" {
void* IOServiceMatching(const char* name);
std::uint32_t IOServiceGetMatchingService(
    std::uint32_t main_port,
    const void* matching);  // takes over the reference to `matching`
const void* IORegistryEntryCreateCFProperty(
    std::uint32_t entry,
    const void* key,
    const void* allocator,
    std::uint32_t options);
int IOObjectRelease(std::uint32_t object);
const void* CFStringCreateWithCString(
    const void* allocator,
    const char* text,
    std::uint32_t encoding);
unsigned char
CFNumberGetValue(const void* number, std::intptr_t type, void* value);
void CFRelease(const void* object);
}

namespace quire {
namespace {

constexpr std::uint32_t kEncodingUtf8 = 0x08000100;
constexpr std::intptr_t kNumberSInt32 = 3;

// 0 where the registry has no such entry.
int registry_core_count() {
  const std::uint32_t gpu =
      IOServiceGetMatchingService(0, IOServiceMatching("AGXAccelerator"));
  if (gpu == 0) {
    return 0;
  }
  const void* key =
      CFStringCreateWithCString(nullptr, "gpu-core-count", kEncodingUtf8);
  const void* number = IORegistryEntryCreateCFProperty(gpu, key, nullptr, 0);
  std::int32_t count = 0;
  if (number) {
    CFNumberGetValue(number, kNumberSInt32, &count);
    CFRelease(number);
  }
  CFRelease(key);
  IOObjectRelease(gpu);
  return count;
}

}  // namespace

int gpu_core_count(const std::string& architecture) {
  if (const int count = registry_core_count(); count > 0) {
    return count;
  }
  switch (architecture.empty() ? '?' : architecture.back()) {
    case 'p':  // phones
      return 6;
    case 'd':  // Ultra
      return 64;
    case 's':  // Max
      return 32;
    default:
      return 10;
  }
}

}  // namespace quire
