// Options that several subcommands share, and how their values are read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <mlx/dtype.h>

namespace CLI {
class App;
class Option;
class Validator;
}  // namespace CLI

namespace quire::tools {

/** --device, cpu, metal, cuda or one more; the name goes to `device`. */
CLI::Option* add_device_option(
    CLI::App& app,
    std::string& device,
    const std::vector<std::string>& more_devices = {});

/** Makes the device MLX's default; throws std::invalid_argument if this build
 * or machine does not have it. */
void use_device(const std::string& device);

/** An option that takes f32, f16 or bf16. */
CLI::Option* add_dtype_option(
    CLI::App& app,
    const std::string& flag,
    std::string& dtype,
    const std::string& description);

/** Takes whole numbers from `min` to `max`, and says so of any other value. */
CLI::Validator whole_number(std::int64_t min, std::int64_t max);

/** Takes finite numbers above 0. */
CLI::Validator positive_number();

mlx::core::Dtype parse_dtype(const std::string& name);
std::string dtype_text(mlx::core::Dtype dtype);

/** Bytes of "512MB", "2.5GiB", "1073741824"; throws std::invalid_argument. */
std::int64_t parse_size(const std::string& flag, const std::string& text);

}  // namespace quire::tools
