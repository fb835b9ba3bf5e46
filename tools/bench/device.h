// What a benchmark must know of the device that computes: what bounds it, and
// how to time its kernel alone.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tools/bench/interleave.h"
#include "tools/bench/path.h"

namespace quire::bench {

/** A pure read; a run of it makes `steps` of them. */
struct Read {
  Task run;
  int steps = 1;
};

class Device {
 public:
  virtual ~Device() = default;

  /** What count_ran() calls the fused path here. */
  virtual std::string fused_path() const = 0;
  /** What its paged paths round besides their result. */
  virtual testing::Rounding rounding() const = 0;
  /** Bytes of the last-level cache. */
  virtual std::int64_t cache_bytes() const = 0;
  /** Bytes that this process can still take of the device's memory. */
  virtual std::int64_t available_bytes() const = 0;
  /** How often the pool stands in memory once there is a kernel path. */
  virtual int num_pools() const {
    return 1;
  }
  /** Why there is no fused kernel for `shape`; empty if there is. */
  virtual std::string why_not_fused(const Shape& shape) const = 0;

  /** The kernel of the fused path alone, on the data's pool. */
  virtual Path make_kernel_path(const CacheData& data) = 0;
  /**
   * Ways to only read `num_bytes` of `size_bytes` of memory of their own, the
   * next ones at each run: the fastest of them is the memory roof.
   */
  virtual std::vector<Read> make_reads(
      std::int64_t size_bytes,
      std::int64_t num_bytes) = 0;
  /** Multiply-adds a second, the arithmetic roof. */
  virtual double multiply_add_rate() = 0;
};

std::unique_ptr<Device> make_cpu_device();

/** Throws std::invalid_argument in a build without CUDA. */
std::unique_ptr<Device> make_cuda_device();

/** MLX's default device as Metal is timed; tests run it on another one, whose
 * fused path is `fused_path`. */
std::unique_ptr<Device> make_metal_device(
    std::string fused_path = "fused_metal");

/**
 * Each path's K and V rotate over this many bytes: twice the last-level cache,
 * so that each step reads memory, but at most a sixth of the available memory,
 * because the pool, two dense copies and the read roof's memory stand beside
 * each other.
 */
std::int64_t rotation_bytes(const Device& device);

}  // namespace quire::bench
