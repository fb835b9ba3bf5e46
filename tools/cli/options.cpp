#include "tools/cli/options.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <string_view>
#include <system_error>
#include <utility>

#include <mlx/mlx.h>
#include <CLI/CLI.hpp>

#include "common/error.h"

namespace quire::tools {

namespace mx = mlx::core;

CLI::Option* add_device_option(
    CLI::App& app,
    std::string& device,
    const std::vector<std::string>& more_devices) {
  std::vector<std::string> devices = {"cpu", "metal", "cuda"};
  devices.insert(devices.end(), more_devices.begin(), more_devices.end());
  return app.add_option("--device", device, "Where to compute")
      ->check(CLI::IsMember(devices))
      ->capture_default_str();
}

void use_device(const std::string& device) {
  if (device == "cpu") {
    mx::set_default_device(mx::Device::cpu);
    return;
  }
  const mx::Device gpu(mx::Device::gpu);
  require(
      mx::is_available(gpu) && mx::metal::is_available() == (device == "metal"),
      "--device",
      "The MLX library in use must support the device; got \"",
      device,
      "\".");
  mx::set_default_device(gpu);
}

CLI::Option* add_dtype_option(
    CLI::App& app,
    const std::string& flag,
    std::string& dtype,
    const std::string& description) {
  return app.add_option(flag, dtype, description)
      ->check(CLI::IsMember({"f32", "f16", "bf16"}));
}

CLI::Validator whole_number(std::int64_t min, std::int64_t max) {
  const std::string from = std::to_string(min);
  const std::string to = std::to_string(max);
  return {
      [=](const std::string& text) {
        std::int64_t value = 0;
        const char* const end = text.data() + text.size();
        const auto [at, error] = std::from_chars(text.data(), end, value);
        return error == std::errc() && at == end && min <= value && value <= max
                   ? std::string()
                   : "must be a whole number from " + from + " to " + to +
                         "; got \"" + text + "\"";
      },
      from + ".." + to};
}

CLI::Validator positive_number() {
  return {
      [](const std::string& text) {
        char* at = nullptr;
        const double value = std::strtod(text.c_str(), &at);
        return !text.empty() && *at == '\0' && std::isfinite(value) && value > 0
                   ? std::string()
                   : "must be a finite number above 0; got \"" + text + "\"";
      },
      "above 0"};
}

mx::Dtype parse_dtype(const std::string& name) {
  return name == "f32"   ? mx::float32
         : name == "f16" ? mx::float16
                         : mx::bfloat16;
}

std::string dtype_text(mx::Dtype dtype) {
  return dtype == mx::float32 ? "f32" : dtype == mx::float16 ? "f16" : "bf16";
}

std::int64_t parse_size(const std::string& flag, const std::string& text) {
  constexpr std::array<std::pair<std::string_view, double>, 12> kUnits{{
      {"", 1},
      {"B", 1},
      {"kB", 1e3},
      {"KB", 1e3},
      {"MB", 1e6},
      {"GB", 1e9},
      {"K", 0x1p10},
      {"KiB", 0x1p10},
      {"M", 0x1p20},
      {"MiB", 0x1p20},
      {"G", 0x1p30},
      {"GiB", 0x1p30},
  }};
  // Apple's libc++ has no std::from_chars for floating point.
  const std::size_t length =
      std::min(text.find_first_not_of("0123456789."), text.size());
  const std::string digits = text.substr(0, length);
  const bool is_number = digits.find_first_not_of('.') != std::string::npos &&
                         std::count(digits.begin(), digits.end(), '.') <= 1;
  double bytes = -1;
  for (const auto& [unit, factor] : kUnits) {
    if (is_number && text.substr(length) == unit) {
      bytes = std::floor(std::strtod(digits.c_str(), nullptr) * factor);
    }
  }
  require(
      bytes >= 0 && bytes < 0x1p62,
      flag,
      "A size must be a number of bytes, with a unit if you like (kB, MB, GB, "
      "KiB, MiB, GiB); got \"",
      text,
      "\".");
  return static_cast<std::int64_t>(bytes);
}

}  // namespace quire::tools
