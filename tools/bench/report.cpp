#include "tools/bench/report.h"

#include <nlohmann/json.hpp>

namespace quire::bench {
namespace {

using tools::format_number;

std::string dtypes(DType dtype, DType kv_dtype) {
  return std::string(dtype_name(dtype)) + "/" + dtype_name(kv_dtype);
}

std::string microseconds(double seconds) {
  return format_number(1e6 * seconds, 4);
}

std::string percent(double share) {
  return format_number(100 * share, 3);
}

}  // namespace

tools::Json row_json(const Row& row) {
  return {
      {"batch", row.shape.num_seqs},
      {"context", row.shape.context},
      {"ragged", row.shape.ragged},
      {"block_size", row.shape.block_size},
      {"head_dim", row.shape.head_dim},
      {"q_heads", row.shape.num_q_heads},
      {"kv_heads", row.shape.num_kv_heads},
      {"dtype", dtype_name(row.dtype)},
      {"kv_dtype", dtype_name(row.kv_dtype)},
      {"path", row.path},
      {"ran", row.ran},
      {"timing", row.timing},
      {"seconds_median", row.seconds_median},
      {"seconds_min", row.seconds_min},
      {"iterations", row.iterations},
      {"kv_bytes", row.kv_bytes},
      {"read_seconds", row.read_seconds},
      {"limit_seconds", row.limit_seconds},
      {"share_of_read_bandwidth", row.read_seconds / row.seconds_median},
      {"share_of_limit", row.limit_seconds / row.seconds_median},
      {"allocated_bytes_per_step", row.allocated_bytes},
      {"max_abs_error", row.max_abs_error},
  };
}

tools::Json refusal_json(const Refusal& refusal) {
  return {
      {"batch", refusal.shape.num_seqs},
      {"context", refusal.shape.context},
      {"ragged", refusal.shape.ragged},
      {"path", refusal.path},
      {"timing", refusal.timing},
      {"reason", refusal.reason},
  };
}

std::vector<std::vector<std::string>> table(const std::vector<Row>& rows) {
  std::vector<std::vector<std::string>> lines{
      {"Cell",
       "q/KV",
       "Path",
       "Timing",
       "Ran",
       "Median us",
       "Min us",
       "KV",
       "GB/s",
       "% of read",
       "% of limit",
       "Allocated",
       "Max error"}};
  for (const Row& row : rows) {
    lines.push_back(
        {describe(row.shape),
         dtypes(row.dtype, row.kv_dtype),
         row.path,
         row.timing,
         row.ran,
         microseconds(row.seconds_median),
         microseconds(row.seconds_min),
         tools::format_bytes(static_cast<double>(row.kv_bytes)),
         format_number(
             1e-9 * static_cast<double>(row.kv_bytes) / row.seconds_median),
         percent(row.read_seconds / row.seconds_median),
         percent(row.limit_seconds / row.seconds_median),
         tools::format_bytes(static_cast<double>(row.allocated_bytes)),
         format_number(row.max_abs_error, 2)});
  }
  return lines;
}

}  // namespace quire::bench
