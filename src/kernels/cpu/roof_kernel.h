// The contract between roofs.cpp and the vector code; see step_kernel.h.
#pragma once

#include <cstddef>

namespace quire::cpu {

/** Reads go in units of this many bytes: four vectors of 64. */
inline constexpr std::size_t kReadUnitBytes = 256;

struct RoofKernel {
  void (*read)(const std::byte* data, std::size_t num_bytes) = nullptr;
  void (*read_ahead_1k)(const std::byte* data, std::size_t num_bytes) = nullptr;
  void (*read_ahead_4k)(const std::byte* data, std::size_t num_bytes) = nullptr;
  void (*multiply_add)(int iterations) = nullptr;
  int multiply_adds_per_iteration = 0;
};

RoofKernel find_roof_portable();
RoofKernel find_roof_neon();
RoofKernel find_roof_avx2();
RoofKernel find_roof_avx512();

}  // namespace quire::cpu
