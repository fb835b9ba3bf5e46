// quire bench: every path of a decode step, timed on the same data against what
// the memory and the arithmetic of the machine allow.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "common/error.h"
#include "quire/runtime.h"
#include "tools/bench/blas_core.h"
#include "tools/bench/cell.h"
#include "tools/bench/device.h"
#include "tools/bench/memory.h"
#include "tools/bench/report.h"
#include "tools/cli/command.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/options.h"
#include "tools/cli/output.h"

namespace quire::tools {
namespace {

struct Options {
  std::string device = "cpu";
  std::vector<int> batch{1, 4};
  std::vector<int> context{1024, 4096};
  bool ragged = false;
  int block_size = kDefaultBlockSize;
  int head_dim = 128;
  int q_heads = 32;
  int kv_heads = 8;
  std::string dtype = "f32";
  std::string kv_dtype = "f16";
  std::vector<std::string> paths{"dense", "dense_best", "gather", "fused"};
  double min_time = 0.3;
};

DType dtype_of(const std::string& name) {
  return name == "f32"   ? DType::Float32
         : name == "f16" ? DType::Float16
                         : DType::BFloat16;
}

std::vector<bench::Shape> make_grid(const Options& options) {
  std::vector<bench::Shape> grid;
  for (const int batch : options.batch) {
    for (const int context : options.context) {
      grid.push_back({
          .num_seqs = batch,
          .context = context,
          .ragged = options.ragged,
          .block_size = options.block_size,
          .head_dim = options.head_dim,
          .num_q_heads = options.q_heads,
          .num_kv_heads = options.kv_heads,
          .q_dtype = dtype_of(options.dtype),
          .kv_dtype = dtype_of(options.kv_dtype),
      });
    }
  }
  return grid;
}

bool has_path(const Options& options, const std::string& name) {
  return std::find(options.paths.begin(), options.paths.end(), name) !=
         options.paths.end();
}

void check_options(const Options& options) {
  require(
      options.q_heads % options.kv_heads == 0,
      "bench",
      "--q-heads must be a multiple of --kv-heads; got ",
      options.q_heads,
      " and ",
      options.kv_heads,
      ".");
  if (!has_path(options, "fused")) {
    return;
  }
  for (const EnvVariable& variable : env_variables()) {
    require(
        variable.name != "QUIRE_NATIVE_PAGED_KERNEL" || variable.value != "off",
        "--paths",
        "\"fused\" must not be asked for while QUIRE_NATIVE_PAGED_KERNEL is "
        "\"off\", which forbids it.");
  }
}

void check_shapes(
    const Options& options,
    const std::vector<bench::Shape>& grid,
    const bench::Device& device) {
  const std::int64_t available = device.available_bytes();
  for (const bench::Shape& shape : grid) {
    const std::string reason =
        has_path(options, "fused") ? device.why_not_fused(shape) : "";
    require(reason.empty(), "--paths", "\"fused\" is not offered: ", reason);
    const double needed = bench::peak_bytes(
        shape,
        bench::rotation_bytes(device),
        has_path(options, "fused") ? device.num_pools() : 1);
    require(
        needed <= static_cast<double>(available),
        "bench",
        "A cell of ",
        shape.num_seqs,
        " x ",
        shape.context,
        " tokens must fit the available memory; it takes about ",
        format_bytes(needed),
        " of ",
        format_bytes(static_cast<double>(available)),
        ".");
  }
}

std::unique_ptr<bench::Device> make_device(const std::string& name) {
  return name == "cuda"    ? bench::make_cuda_device()
         : name == "metal" ? bench::make_metal_device()
                           : bench::make_cpu_device();
}

int run(const Options& options, const Session& session) {
  check_options(options);
  use_device(options.device);
  const bool on_cpu = options.device == "cpu";
  const std::unique_ptr<bench::Device> device = make_device(options.device);
  const std::vector<bench::Shape> grid = make_grid(options);
  check_shapes(options, grid, *device);

  bench::CellResult all;
  bool partial = false;
  {
    Progress progress("Measuring");
    std::size_t num_done = 0;
    try {
      if (on_cpu) {
        all.notes = bench::choose_blas_core(grid.front());
      }
      for (const bench::Shape& shape : grid) {
        progress.update(
            static_cast<double>(num_done) / static_cast<double>(grid.size()));
        bench::CellResult cell = bench::run_cell(
            {
                .shape = shape,
                .paths = options.paths,
                .min_seconds = options.min_time,
                .poll = throw_if_interrupted,
            },
            *device);
        all.append(std::move(cell));
        ++num_done;
      }
    } catch (const Interrupted&) {
      partial = true;
    }
  }

  for (const bench::Refusal& refusal : all.refusals) {
    write_stderr(
        "quire: refused: " + bench::describe(refusal.shape) + " " +
        refusal.path + " (" + refusal.timing + "): " + refusal.reason + "\n");
  }
  for (const std::string& note : all.notes) {
    write_stderr("quire: note: " + note + "\n");
  }
  if (!session.json_to_stdout()) {
    write_stdout(format_table(bench::table(all.rows)));
  }
  Json result{
      {"cells", Json::array()},
      {"refused", Json::array()},
      {"notes", all.notes},
      {"partial", partial}};
  for (const bench::Row& row : all.rows) {
    result["cells"].push_back(bench::row_json(row));
  }
  for (const bench::Refusal& refusal : all.refusals) {
    result["refused"].push_back(bench::refusal_json(refusal));
  }
  write_json(session, options.device, result);
  return partial || !all.refusals.empty() ? kExitBadResult : kExitDone;
}

}  // namespace

RunCommand configure_bench(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  app.footer(
      "Allocated (allocated_bytes_per_step in the JSON): what MLX's allocator "
      "held at a step's peak beyond the step's inputs. On CUDA the fused path "
      "takes its result, and once a workspace, past that allocator: neither is "
      "counted.\n\n");
  add_device_option(app, options->device);
  const auto add_list = [&](const char* flag, auto& list, const char* text) {
    return app.add_option(flag, list, text)
        ->delimiter(',')
        ->capture_default_str();
  };
  const auto add_count = [&](const char* flag, int& count, const char* text) {
    app.add_option(flag, count, text)
        ->check(whole_number(1, 1024))
        ->capture_default_str();
  };
  add_list("--batch", options->batch, "Sequences of a step; a list")
      ->check(whole_number(1, 1 << 20));
  add_list("--context", options->context, "Tokens of a sequence; a list")
      ->check(whole_number(1, 1 << 30));
  app.add_flag(
      "--ragged",
      options->ragged,
      "Spread a batch's lengths evenly up to the context. Default: all equal");
  app.add_option("--block-size", options->block_size, "Tokens of a block")
      ->check(CLI::IsMember({8, 16, 32, 64, 128, 256}))
      ->capture_default_str();
  add_count("--head-dim", options->head_dim, "Elements of a head");
  add_count("--q-heads", options->q_heads, "Query heads");
  add_count("--kv-heads", options->kv_heads, "KV heads");
  add_dtype_option(
      app, "--dtype", options->dtype, "Of queries, and of dense K and V")
      ->capture_default_str();
  add_dtype_option(app, "--kv-dtype", options->kv_dtype, "Of the paged cache")
      ->capture_default_str();
  add_list(
      "--paths",
      options->paths,
      "What to time: dense (MLX's attention over contiguous K and V), "
      "dense_best (the same in its fastest dtype), gather, fused")
      ->check(CLI::IsMember({"dense", "dense_best", "gather", "fused"}));
  app.add_option(
         "--min-time", options->min_time, "Seconds that each path is timed for")
      ->check(positive_number())
      ->capture_default_str();
  return [options](const Session& session) { return run(*options, session); };
}

}  // namespace quire::tools
