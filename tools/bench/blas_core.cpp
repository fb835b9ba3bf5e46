#include "tools/bench/blas_core.h"

#include <cstdlib>

#ifdef __linux__
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <iterator>

#include <nlohmann/json.hpp>

#include "tools/bench/cell.h"
#include "tools/bench/memory.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/system.h"
#endif

namespace quire::bench {

#ifdef __linux__

namespace {

constexpr const char* kCoreType = "OPENBLAS_CORETYPE";
// From this process to the one that replaces it, and to its child: the value
// that was preset. Whoever finds it does not compare again.
constexpr const char* kPreset = "QUIRE_BENCH_PRESET_CORETYPE";
constexpr double kMinSeconds = 0.2;

/** The dense path's median, with this process's BLAS; 0 if it is wrong. */
double time_dense(const Shape& shape) {
  const std::unique_ptr<Device> device = make_cpu_device();
  const CellResult cell = run_cell(
      {
          .shape = shape,
          .paths = {"dense"},
          .min_seconds = kMinSeconds,
          .poll = tools::throw_if_interrupted,
      },
      *device);
  return cell.rows.empty() ? 0.0 : cell.rows.front().seconds_median;
}

std::vector<std::string> dense_command(const Shape& shape) {
  std::vector<std::string> command{
      "quire",
      "bench",
      "--paths=dense",
      "--batch=" + std::to_string(shape.num_seqs),
      "--context=" + std::to_string(shape.context),
      "--block-size=" + std::to_string(shape.block_size),
      "--head-dim=" + std::to_string(shape.head_dim),
      "--q-heads=" + std::to_string(shape.num_q_heads),
      "--kv-heads=" + std::to_string(shape.num_kv_heads),
      std::string("--dtype=") + dtype_name(shape.q_dtype),
      std::string("--kv-dtype=") + dtype_name(shape.kv_dtype),
      "--min-time=0.2",
      "--json=-"};
  if (shape.ragged) {
    command.emplace_back("--ragged");
  }
  return command;
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> result;
  result.reserve(strings.size() + 1);
  for (std::string& text : strings) {
    result.push_back(text.data());
  }
  result.push_back(nullptr);
  return result;
}

/** What a child of this program writes to stdout; "" if it fails. */
std::string run_child(std::vector<std::string> command) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
    return "";
  }
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  ::posix_spawn_file_actions_addopen(
      &actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t child = 0;
  const int error = ::posix_spawn(
      &child,
      "/proc/self/exe",
      &actions,
      nullptr,
      pointers(command).data(),
      environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  std::string text;
  std::array<char, 4096> buffer{};
  for (ssize_t count = 1; error == 0 && count > 0;) {
    count = ::read(ends[0], buffer.data(), buffer.size());
    text.append(buffer.data(), count > 0 ? static_cast<std::size_t>(count) : 0);
  }
  ::close(ends[0]);
  int status = 0;
  if (error != 0 || ::waitpid(child, &status, 0) != child || status != 0) {
    return "";
  }
  return text;
}

struct Measured {
  double seconds = 0;  // 0: wrong, or it failed
  std::string blas;
};

Measured time_dense_in_child(const Shape& shape) {
  const nlohmann::json result = nlohmann::json::parse(
      run_child(dense_command(shape)), nullptr, /*allow_exceptions=*/false);
  if (result.is_discarded() || result["cells"].empty()) {
    return {};
  }
  return {
      result["cells"][0]["seconds_median"].get<double>(),
      result["quire"]["blas"].get<std::string>()};
}

/** Replaces this process by the same command. */
void restart() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> command;
  for (std::string argument; std::getline(file, argument, '\0');) {
    command.push_back(argument);
  }
  ::execv("/proc/self/exe", pointers(command).data());
}

}  // namespace

std::vector<std::string> choose_blas_core(const Shape& shape) {
  if (const char* preset = std::getenv(kPreset)) {
    return {
        std::string("The dense paths run without the preset ") + kCoreType +
        "=" + preset + ": with it they are slower here."};
  }
  const char* value = std::getenv(kCoreType);
  if (value == nullptr) {
    return {};
  }
  const std::string preset = value;
  const double with = time_dense(shape);

  ::setenv(kPreset, preset.c_str(), 1);
  ::unsetenv(kCoreType);
  const Measured without = time_dense_in_child(shape);
  tools::throw_if_interrupted();
  const bool is_same = without.blas == tools::blas_name();
  if (!is_same && without.seconds > 0.0 && without.seconds < with) {
    restart();
  }
  ::unsetenv(kPreset);
  ::setenv(kCoreType, preset.c_str(), 1);
  if (is_same) {
    return {};
  }
  return {
      std::string("The dense paths run with the preset ") + kCoreType + "=" +
      preset + "; without it they are " +
      (without.seconds > 0.0 ? "no faster." : "wrong.")};
}

#else

std::vector<std::string> choose_blas_core(const Shape&) {
  return {};
}

#endif

}  // namespace quire::bench
