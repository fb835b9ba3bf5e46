// quire info: what this program is, where it runs and how it is set.
#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include "quire/runtime.h"
#include "tools/cli/command.h"
#include "tools/cli/output.h"
#include "tools/cli/system.h"

namespace quire::tools {
namespace {

std::string join(const std::vector<std::string>& words) {
  std::string result;
  for (const std::string& word : words) {
    result += (result.empty() ? "" : ", ") + word;
  }
  return result.empty() ? "none" : result;
}

int run(const Session& session) {
  const bool has_gpu =
      mlx::core::is_available(mlx::core::Device(mlx::core::Device::gpu));
  const std::vector<std::string> devices =
      has_gpu ? std::vector<std::string>{"cpu", "gpu"}
              : std::vector<std::string>{"cpu"};
  const std::vector<EnvVariable> variables = env_variables();
  if (!session.json_to_stdout()) {
    std::string text = format_table({
        {"Quire", quire_version() + " (" + quire_commit() + ")"},
        {"MLX", mlx_version_text()},
        {"BLAS", blas_name()},
        {"CPU", cpu_name()},
        {"GPU", gpu_name()},
        {"Devices", join(devices)},
        {"Kernels", join(native_kernels())},
        {"CPU instructions", cpu_isa()},
        {"CPU threads", std::to_string(cpu_threads())},
    });
    std::vector<std::vector<std::string>> rows{{"Variable", "Value", "Effect"}};
    for (const EnvVariable& variable : variables) {
      rows.push_back({variable.name, variable.value, variable.effect});
    }
    write_stdout(text + "\n" + format_table(rows));
  }
  Json environment = Json::object();
  for (const EnvVariable& variable : variables) {
    environment[variable.name] = variable.value;
  }
  write_json(
      session,
      "cpu",
      {{"devices", devices},
       {"kernels", native_kernels()},
       {"cpu_isa", cpu_isa()},
       {"cpu_threads", cpu_threads()},
       {"environment", environment}});
  return kExitDone;
}

}  // namespace

RunCommand configure_info(CLI::App&) {
  return run;
}

}  // namespace quire::tools
