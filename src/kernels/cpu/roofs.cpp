#include "kernels/cpu/roofs.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include "kernels/cpu/roof_kernel.h"

namespace quire::cpu {
namespace {

RoofKernel find_roof(Isa isa) {
  switch (isa) {
    case Isa::Portable:
      return find_roof_portable();
#if defined(QUIRE_CPU_X86)
    case Isa::Avx2:
      return find_roof_avx2();
    case Isa::Avx512:
    case Isa::Avx512Bf16:
      return find_roof_avx512();
#elif defined(QUIRE_CPU_NEON)
    case Isa::Neon:
      return find_roof_neon();
#endif
    default:
      return {};
  }
}

template <typename Task>
double time_run(DecodeEngine& engine, const Task& task) {
  const auto start = std::chrono::steady_clock::now();
  engine.run(task);
  const std::chrono::duration<double> elapsed =
      std::chrono::steady_clock::now() - start;
  return elapsed.count();
}

}  // namespace

std::string_view read_loop_name(ReadLoop loop) {
  switch (loop) {
    case ReadLoop::Plain:
      return "plain";
    case ReadLoop::Ahead1KiB:
      return "1 KiB ahead";
    case ReadLoop::Ahead4KiB:
      return "4 KiB ahead";
  }
  return "?";
}

double time_read(
    DecodeEngine& engine,
    Isa isa,
    ReadLoop loop,
    const std::byte* data,
    std::size_t num_bytes) {
  const RoofKernel kernel = find_roof(isa);
  const auto read = loop == ReadLoop::Plain       ? kernel.read
                    : loop == ReadLoop::Ahead1KiB ? kernel.read_ahead_1k
                                                  : kernel.read_ahead_4k;
  const auto num_threads = static_cast<std::size_t>(engine.num_threads());
  const std::size_t share =
      num_bytes / num_threads / kReadUnitBytes * kReadUnitBytes;
  return time_run(engine, [&](int thread_idx) noexcept {
    read(data + static_cast<std::size_t>(thread_idx) * share, share);
  });
}

double measure_multiply_add_rate(DecodeEngine& engine, Isa isa, int repeats) {
  const RoofKernel kernel = find_roof(isa);
  constexpr int kIterations = 50000;
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < repeats; ++i) {
    best = std::min(best, time_run(engine, [&](int) noexcept {
                      kernel.multiply_add(kIterations);
                    }));
  }
  return static_cast<double>(kernel.multiply_adds_per_iteration) * kIterations *
         engine.num_threads() / best;
}

}  // namespace quire::cpu
