// quire validate: is the fused path right on this device?
#include <limits>
#include <memory>
#include <regex>
#include <string>
#include <vector>

#include <mlx/mlx.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "common/error.h"
#include "support/validation.h"
#include "tools/cli/command.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/options.h"
#include "tools/cli/output.h"

#ifdef QUIRE_METAL_HOST
#include "metal_host_path.h"
#endif

namespace quire::tools {
namespace {

namespace mx = mlx::core;
using testing::DecodeCase;
using testing::ValidationResult;

#ifdef QUIRE_METAL_HOST
// The Metal kernels in lock step on the CPU, in builds that have them.
constexpr const char* kMetalHost = "metal-host";
const std::vector<std::string> kMoreDevices = {kMetalHost};

std::unique_ptr<testing::FusedPath> make_path(const std::string& device) {
  return device == kMetalHost ? metal_host::make_metal_host_path()
                              : testing::make_op_path();
}
#else
constexpr const char* kMetalHost = "";
const std::vector<std::string> kMoreDevices = {};

std::unique_ptr<testing::FusedPath> make_path(const std::string&) {
  return testing::make_op_path();
}
#endif

bool computes_on_cpu(const std::string& device) {
  return device == "cpu" || device == kMetalHost;
}

// The GPU if MLX has one: that is where a user wants to know.
std::string best_device() {
  const mx::Device gpu(mx::Device::gpu);
  if (!mx::is_available(gpu)) {
    return "cpu";
  }
  return mx::metal::is_available() ? "metal" : "cuda";
}

struct ValidateOptions {
  std::string device = best_device();
  int steps = 200;
  double threshold = testing::kRmsThreshold;
  std::string filter;
  bool list = false;
  std::uint64_t seed = 0;
};

std::vector<DecodeCase> selected_cases(const ValidateOptions& options) {
  std::regex filter;
  try {
    filter = std::regex(options.filter);
  } catch (const std::regex_error& error) {
    require(
        false,
        "validate",
        "--filter must be a regular expression; got \"",
        options.filter,
        "\" (",
        error.what(),
        ").");
  }
  std::vector<DecodeCase> cases;
  for (DecodeCase& c :
       testing::validation_cases(!computes_on_cpu(options.device))) {
    if (std::regex_search(c.name, filter)) {
      cases.push_back(std::move(c));
    }
  }
  require(
      !cases.empty(),
      "validate",
      "--filter must match the name of a case; got \"",
      options.filter,
      "\", which matches none. --list prints all names.");
  return cases;
}

std::vector<std::string> table_row(const ValidationResult& result) {
  return {
      result.name,
      result.path,
      std::to_string(result.steps),
      format_number(result.max_rms),
      format_number(result.max_relative_rms),
      format_number(result.max_abs),
      result.passed ? "passed" : "FAILED"};
}

std::string repeat_command(
    const ValidationResult& result,
    const ValidateOptions& options) {
  return "quire validate --device " + options.device + " --steps " +
         std::to_string(options.steps) + " --threshold " +
         format_number(options.threshold, 6) + " --seed " +
         std::to_string(options.seed) + " --filter '^" + result.name + "$'";
}

std::string report(
    const std::vector<ValidationResult>& results,
    const ValidateOptions& options) {
  std::vector<std::vector<std::string>> rows{
      {"case", "path", "steps", "RMS", "relative RMS", "max abs", "verdict"}};
  std::size_t num_passed = 0;
  std::string failures;
  for (const ValidationResult& result : results) {
    rows.push_back(table_row(result));
    num_passed += result.passed ? 1 : 0;
    if (!result.passed) {
      failures += "\n" + result.name + ": " + result.reason +
                  "\n  to repeat it: " + repeat_command(result, options) + "\n";
    }
  }
  return format_table(rows) + failures + "\n" + std::to_string(num_passed) +
         " of " + std::to_string(results.size()) + " cases passed on " +
         options.device + " (RMS and relative RMS below " +
         format_number(options.threshold) +
         ", every sampled element within its bound, nothing but the fused path "
         "ran)\n";
}

Json to_json(const ValidationResult& result) {
  return {
      {"name", result.name},
      {"path", result.path},
      {"steps", result.steps},
      {"max_rms", result.max_rms},
      {"max_relative_rms", result.max_relative_rms},
      {"max_abs", result.max_abs},
      {"bound", result.bound},
      {"passed", result.passed},
      {"reason", result.reason}};
}

int run(const ValidateOptions& options, const Session& session) {
  const std::vector<DecodeCase> cases = selected_cases(options);
  if (options.list) {
    std::string names;
    for (const DecodeCase& c : cases) {
      names += c.name + "\n";
    }
    write_stdout(names);
    return kExitDone;
  }
  use_device(computes_on_cpu(options.device) ? "cpu" : options.device);
  const std::unique_ptr<testing::FusedPath> path = make_path(options.device);

  std::vector<ValidationResult> results;
  bool all_passed = true;
  {
    Progress progress("validating");
    for (const DecodeCase& c : cases) {
      ValidationResult result = testing::validate_case(
          c,
          *path,
          {.steps = options.steps,
           .threshold = options.threshold,
           .seed = options.seed,
           .stop = [](int) { return is_interrupted(); },
           // Tensor cores take weights of the cache's type.
           .rounding = {.weights_to_kv_dtype = options.device == "cuda"}});
      if (is_interrupted()) {
        break;
      }
      all_passed = all_passed && result.passed;
      results.push_back(std::move(result));
      progress.update(
          static_cast<double>(results.size()) /
          static_cast<double>(cases.size()));
    }
  }

  const bool partial = results.size() < cases.size();
  if (!session.json_to_stdout()) {
    write_stdout(report(results, options));
  }
  if (partial) {
    write_stderr(
        "quire: interrupted after " + std::to_string(results.size()) + " of " +
        std::to_string(cases.size()) + " cases\n");
  }
  Json json{
      {"device", options.device},
      {"steps", options.steps},
      {"threshold", options.threshold},
      {"passed", all_passed && !partial},
      {"cases", Json::array()}};
  for (const ValidationResult& result : results) {
    json["cases"].push_back(to_json(result));
  }
  if (partial) {
    json["partial"] = true;
  }
  write_json(session, options.device, json);
  return all_passed && !partial ? kExitDone : kExitBadResult;
}

}  // namespace

RunCommand configure_validate(CLI::App& app) {
  const auto options = std::make_shared<ValidateOptions>();
  add_device_option(app, options->device, kMoreDevices);
  app.add_option("--steps", options->steps, "Decode steps of each case")
      ->check(whole_number(1, 100000))
      ->capture_default_str();
  app.add_option(
         "--threshold",
         options->threshold,
         "RMS and relative RMS of fused against gather-then-SDPA must stay "
         "below this")
      ->check(positive_number())
      ->capture_default_str();
  app.add_option(
         "--filter",
         options->filter,
         "Only cases whose name matches this regular expression. Default: all")
      ->type_name("REGEX");
  app.add_flag("--list", options->list, "Print the cases' names and stop");
  app.add_option("--seed", options->seed, "Seed of the random data")
      ->check(whole_number(0, std::numeric_limits<std::int64_t>::max()))
      ->capture_default_str();
  return [options](const Session& session) { return run(*options, session); };
}

}  // namespace quire::tools
