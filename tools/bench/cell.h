// One cell of a benchmark: data, checks, roofs and times of all its paths.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tools/bench/device.h"
#include "tools/bench/path.h"
#include "tools/bench/shape.h"

namespace quire::bench {

/** What is known of one path of a cell. */
struct Row {
  Shape shape;
  std::string path;
  std::string ran;
  std::string timing;
  DType dtype = DType::Float32;
  DType kv_dtype = DType::Float32;
  double seconds_median = 0;
  double seconds_min = 0;
  int iterations = 0;
  std::int64_t kv_bytes = 0;
  double read_seconds = 0;   // the best pure read of kv_bytes
  double limit_seconds = 0;  // or of the multiply-adds, if that is longer
  std::int64_t allocated_bytes = 0;
  double max_abs_error = 0;
};

/** A path that was not timed, or whose times do not count. */
struct Refusal {
  Shape shape;
  std::string path;
  std::string timing;
  std::string reason;
};

struct CellResult {
  std::vector<Row> rows;
  std::vector<Refusal> refusals;
  std::vector<std::string> notes;  // sentences

  void append(CellResult other);
};

struct CellOptions {
  Shape shape;
  std::vector<std::string> paths;  // dense, dense_best, gather, fused
  double min_seconds = 0;          // of each path
  std::function<void()> poll;      // called often; may throw to end the cell
};

/** Makes the data, and measures every path and the roofs on it in turn, on the
 * default device, which `device` is. */
CellResult run_cell(const CellOptions& options, Device& device);

/**
 * Checks `paths` on the first set of `data`, then times those that passed,
 * interleaved with the roofs; `read_bytes` of memory serve the read roof.
 */
CellResult measure(
    const CacheData& data,
    const std::vector<Path>& paths,
    std::int64_t read_bytes,
    const CellOptions& options,
    Device& device);

}  // namespace quire::bench
