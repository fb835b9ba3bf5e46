#include "tools/cli/system.h"

#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <fstream>
#include <string_view>

#ifdef __APPLE__
#include <sys/sysctl.h>
#endif

#include <mlx/mlx.h>

#include "quire/runtime.h"

namespace quire::tools {
namespace {

namespace mx = mlx::core;

#ifndef __APPLE__
// OpenBLAS is linked by the build, or not; asking the loader serves both.
std::string openblas_text(const char* function) {
  void* symbol = ::dlsym(RTLD_DEFAULT, function);
  return symbol ? reinterpret_cast<const char* (*)()>(symbol)() : "";
}

int openblas_threads() {
  void* symbol = ::dlsym(RTLD_DEFAULT, "openblas_get_num_threads");
  return symbol ? reinterpret_cast<int (*)()>(symbol)() : 0;
}
#endif

}  // namespace

std::string quire_version() {
  return version();
}

std::string quire_commit() {
  return QUIRE_COMMIT;
}

std::string mlx_version_text() {
  return mlx_version();
}

std::string cpu_name() {
#ifdef __APPLE__
  std::array<char, 256> name{};
  std::size_t size = name.size() - 1;
  ::sysctlbyname("machdep.cpu.brand_string", name.data(), &size, nullptr, 0);
  return name.data();
#else
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const auto colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "unknown";
#endif
}

std::string gpu_name() {
  const mx::Device gpu(mx::Device::gpu);
  if (!mx::is_available(gpu)) {
    return "none";
  }
  const auto& info = mx::device_info(gpu);
  const auto name = info.find("device_name");
  return name != info.end() ? std::get<std::string>(name->second) : "unknown";
}

std::string blas_name() {
#ifdef __APPLE__
  return "Accelerate";
#else
  const std::string config = openblas_text("openblas_get_config");
  if (config.empty()) {
    return "MLX's own (slow)";
  }
  // "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ..."
  const auto second_space = config.find(' ', config.find(' ') + 1);
  return config.substr(0, second_space) + ", core " +
         openblas_text("openblas_get_corename") + ", " +
         std::to_string(openblas_threads()) + " threads";
#endif
}

void restart_with_fast_blas(char** argv) {
#if defined(__linux__) && defined(__x86_64__)
  constexpr std::array<std::string_view, 8> kCoresWithoutAvx{
      "Prescott",
      "Core2",
      "Penryn",
      "Dunnington",
      "Nehalem",
      "Atom",
      "Northwood",
      "Katmai"};
  const std::string core = openblas_text("openblas_get_corename");
  bool is_slow = false;
  for (const std::string_view name : kCoresWithoutAvx) {
    is_slow = is_slow || name == core;
  }
  __builtin_cpu_init();
  if (!is_slow || std::getenv("OPENBLAS_CORETYPE") != nullptr ||
      !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    return;
  }
  const bool has_avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  ::setenv("OPENBLAS_CORETYPE", has_avx512 ? "SkylakeX" : "Haswell", 1);
  ::execv("/proc/self/exe", argv);
  // Where exec is not allowed the program goes on, slower.
#else
  (void)argv;
#endif
}

}  // namespace quire::tools
