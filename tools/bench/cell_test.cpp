// Benchmarks must not lie: what is wrong, or is not what it says, is not timed.
#include "tools/bench/cell.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "kernels/cpu/paged_decode.h"
#include "tools/bench/check.h"
#include "tools/bench/report.h"

namespace quire::bench {
namespace {

Shape small_shape(DType q_dtype, DType kv_dtype) {
  return {
      .num_seqs = 3,
      .context = 70,
      .ragged = true,
      .block_size = 16,
      .head_dim = 64,
      .num_q_heads = 6,
      .num_kv_heads = 2,
      .q_dtype = q_dtype,
      .kv_dtype = kv_dtype,
  };
}

Device& device() {
  static const std::unique_ptr<Device> device = make_cpu_device();
  return *device;
}

CellOptions options_for(const Shape& shape) {
  return {
      .shape = shape,
      .paths = {"dense", "dense_best", "gather", "fused"},
      .min_seconds = 0.0,
      .poll = [] {},
  };
}

std::size_t out_bytes(const DecodeArgs& args) {
  return static_cast<std::size_t>(
             args.params.num_seqs * args.params.num_q_heads *
             args.params.head_dim) *
         dtype_bytes(args.q_dtype);
}

double largest_error(DType dtype) {
  return dtype == DType::Float32 ? 1e-5 : dtype == DType::Float16 ? 1e-3 : 1e-2;
}

/** Measures one planted kernel; returns the result and counts its runs. */
CellResult measure_kernel(const CacheData& data, Kernel kernel, int& runs) {
  const Path path = make_kernel_path(data, [&](const DecodeArgs& args) {
    ++runs;
    kernel(args);
  });
  return measure(data, {path}, 1 << 16, options_for(data.shape()), device());
}

TEST_CASE("A kernel that returns at once is refused before it is timed") {
  const CacheData data(
      small_shape(DType::Float32, DType::Float16), std::int64_t{1} << 20);
  int runs = 0;
  const auto refuses = [&](const Kernel& kernel) {
    runs = 0;
    const CellResult result = measure_kernel(data, kernel, runs);
    CHECK(result.rows.empty());
    REQUIRE(result.refusals.size() == 1);
    CHECK(result.refusals[0].path == "fused");
    CHECK(result.refusals[0].timing == "kernel");
    CHECK_FALSE(result.refusals[0].reason.empty());
    CHECK(runs == 1);
  };
  refuses([](const DecodeArgs&) {});
  refuses([](const DecodeArgs& args) {
    std::memset(args.out, 0, out_bytes(args));
  });
  // Skips the last sequence.
  refuses([](const DecodeArgs& args) {
    DecodeArgs fewer = args;
    --fewer.params.num_seqs;
    cpu::paged_decode(fewer);
  });
  refuses([](const DecodeArgs&) { throw std::runtime_error("No."); });

  runs = 0;
  const CellResult result = measure_kernel(data, cpu::paged_decode, runs);
  CHECK(result.refusals.empty());
  REQUIRE(result.rows.size() == 1);
  CHECK(runs > result.rows[0].iterations);
}

TEST_CASE("A path that does not run what it says is refused") {
  const CacheData data(
      small_shape(DType::Float32, DType::Float32), std::int64_t{1} << 20);
  Path impostor = make_gather_path(data);
  impostor.name = "fused";
  impostor.must_run = "fused_cpu";
  const CellResult result = measure(
      data,
      {impostor, make_gather_path(data)},
      1 << 16,
      options_for(data.shape()),
      device());
  REQUIRE(result.refusals.size() == 1);
  CHECK(result.refusals[0].path == "fused");
  CHECK(result.refusals[0].reason.find("gather") != std::string::npos);
  REQUIRE(result.rows.size() == 1);
  CHECK(result.rows[0].ran == "gather");
}

TEST_CASE("A path that changes while it is timed is refused") {
  const CacheData data(
      small_shape(DType::Float32, DType::Float32), std::int64_t{1} << 20);
  Path fickle = make_fused_path(data, "fused_cpu");
  const Path gather = make_gather_path(data);
  int runs = 0;
  fickle.run = [run = fickle.run, &gather, &runs](int set) {
    (++runs == 4 ? gather.run : run)(set);
  };
  const CellResult result =
      measure(data, {fickle}, 1 << 16, options_for(data.shape()), device());
  CHECK(result.rows.empty());
  CHECK(result.refusals.size() == 1);
}

TEST_CASE("Every path of a cell is right, and says what ran") {
  for (const DType dtype : {DType::Float32, DType::Float16, DType::BFloat16}) {
    CAPTURE(dtype_name(dtype));
    const CellResult result =
        run_cell(options_for(small_shape(dtype, DType::Float16)), device());
    for (const Refusal& refusal : result.refusals) {
      FAIL_CHECK(refusal.path << ": " << refusal.reason);
    }
    REQUIRE(result.rows.size() == 5);
    const char* const expected[][3] = {
        {"dense", "dense", "end_to_end"},
        {"dense_best", "dense", "end_to_end"},
        {"gather", "gather", "end_to_end"},
        {"fused", "fused_cpu", "end_to_end"},
        {"fused", "fused_cpu", "kernel"}};
    for (std::size_t i = 0; i < result.rows.size(); ++i) {
      const Row& row = result.rows[i];
      CAPTURE(i);
      CHECK(row.path == expected[i][0]);
      CHECK(row.ran == expected[i][1]);
      CHECK(row.timing == expected[i][2]);
      CHECK(row.max_abs_error < largest_error(row.dtype));
      CHECK(row.seconds_min > 0.0);
      CHECK(row.seconds_min <= row.seconds_median);
      CHECK(row.limit_seconds >= row.read_seconds);
      CHECK(row.read_seconds > 0.0);
      CHECK(row.kv_bytes == kv_bytes(row.shape, row.kv_dtype));
      CHECK(row.iterations >= 5);
    }
    CHECK(result.rows[0].dtype == dtype);
    CHECK(result.rows[0].kv_dtype == dtype);
    CHECK(result.rows[3].kv_dtype == DType::Float16);
    // Gather copies K and V; the fused op makes its output and no more.
    CHECK(result.rows[2].allocated_bytes > result.rows[2].kv_bytes);
    CHECK(result.rows[3].allocated_bytes < 2 * 3 * 6 * 64 * 4);
  }
}

TEST_CASE("Metal's way to time a cell is right on another backend") {
  const std::unique_ptr<Device> metal = make_metal_device("fused_cpu");
  Shape shape = small_shape(DType::Float16, DType::Float16);
  CHECK(metal->why_not_fused(shape).empty());
  CellOptions options = options_for(shape);
  options.paths = {"gather", "fused"};
  const CellResult result = run_cell(options, *metal);
  for (const Refusal& refusal : result.refusals) {
    FAIL_CHECK(refusal.path << ": " << refusal.reason);
  }
  REQUIRE(result.rows.size() == 3);
  const Row& kernel = result.rows[2];
  CHECK(kernel.timing == "kernel");
  CHECK(kernel.ran == "fused_cpu");
  CHECK(kernel.seconds_min > 0.0);
  CHECK(kernel.read_seconds > 0.0);

  shape.head_dim = 72;
  CHECK(metal->why_not_fused(shape).find("head") != std::string::npos);
}

TEST_CASE("An interrupted cell ends") {
  CellOptions options =
      options_for(small_shape(DType::Float32, DType::Float16));
  int polls = 0;
  options.poll = [&] {
    if (++polls == 12) {
      throw std::runtime_error("interrupted");
    }
  };
  CHECK_THROWS_AS(run_cell(options, device()), std::runtime_error);
  CHECK(polls == 12);
}

TEST_CASE("The counters say which paths ran") {
  PathCounts before;
  before.gather = 3;
  PathCounts after = before;
  CHECK(count_ran(before, after, "dense") == "dense");
  after.fused_cpu = 1;
  CHECK(count_ran(before, after, "dense") == "fused_cpu");
  after.gather = 4;
  CHECK(count_ran(before, after, "dense") == "fused_cpu+gather");
}

TEST_CASE("Shares are limits over the median") {
  Row row;
  row.seconds_median = 4.0;
  row.read_seconds = 1.0;
  row.limit_seconds = 2.0;
  const tools::Json json = row_json(row);
  CHECK(json["share_of_read_bandwidth"] == 0.25);
  CHECK(json["share_of_limit"] == 0.5);
}

}  // namespace
}  // namespace quire::bench
