#include "tools/cli/output.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>

#include <nlohmann/json.hpp>

#include "common/error.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/system.h"

namespace quire::tools {
namespace {

constexpr auto kDrawInterval = std::chrono::milliseconds(100);

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text.data();
}

// Characters that a terminal shows, near enough for our own tables.
std::size_t width(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) {
        return (static_cast<unsigned char>(c) & 0xC0u) != 0x80u;
      }));
}

bool starts_like_a_number(std::string_view text) {
  return !text.empty() &&
         (text[0] == '-' || (text[0] >= '0' && text[0] <= '9'));
}

}  // namespace

void prepare_standard_streams() {
  // open() takes the lowest free number, so in this order each gets its own.
  // Read-only for stdout: a write to it must fail, as it would if closed.
  const std::array<int, 3> modes{O_RDONLY, O_RDONLY, O_WRONLY};
  for (int fd = 0; fd < 3; ++fd) {
    if (::fcntl(fd, F_GETFD) == -1) {
      (void)::open("/dev/null", modes[static_cast<std::size_t>(fd)]);
    }
  }
  ::signal(SIGPIPE, SIG_IGN);
}

void write_stdout(std::string_view text) {
  while (!text.empty()) {
    const auto count = ::write(STDOUT_FILENO, text.data(), text.size());
    if (count >= 0) {
      text.remove_prefix(static_cast<std::size_t>(count));
    } else if (errno == EINTR) {
      throw_if_interrupted();
    } else {
      throw OutputLost(
          std::string("Cannot write to stdout: ") + std::strerror(errno) + ".");
    }
  }
}

void write_stderr(std::string_view text) {
  while (!text.empty()) {
    const auto count = ::write(STDERR_FILENO, text.data(), text.size());
    if (count <= 0) {
      return;
    }
    text.remove_prefix(static_cast<std::size_t>(count));
  }
}

bool stdout_is_terminal() {
  return ::isatty(STDOUT_FILENO) == 1;
}

bool stderr_is_terminal() {
  return ::isatty(STDERR_FILENO) == 1;
}

std::string format_table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  std::vector<bool> is_number;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    is_number.resize(widths.size(), rows.size() > 1);
    for (std::size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], width(row[i]));
      is_number[i] = is_number[i] &&
                     (&row == &rows.front() || starts_like_a_number(row[i]));
    }
  }
  std::string result;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - width(row[i]), ' ');
      line += i > 0 ? "  " : "";
      line += is_number[i] ? padding + row[i] : row[i] + padding;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    result += line + '\n';
  }
  return result;
}

std::string format_number(double value, int digits) {
  std::array<char, 64> text{};
  // Also what would round up to a power of ten, and print as "1e+03".
  const double limit = std::pow(10.0, digits) - 0.5;
  const bool is_large = std::abs(value) >= limit;
  const auto [end, error] = is_large ? std::to_chars(
                                           text.data(),
                                           text.data() + text.size(),
                                           value,
                                           std::chars_format::fixed,
                                           0)
                                     : std::to_chars(
                                           text.data(),
                                           text.data() + text.size(),
                                           value,
                                           std::chars_format::general,
                                           digits);
  return error == std::errc() ? std::string(text.data(), end) : "?";
}

std::string format_bytes(double bytes) {
  constexpr std::array<const char*, 5> kUnits{"B", "kB", "MB", "GB", "TB"};
  std::size_t unit = 0;
  while (bytes >= 1000.0 && unit + 1 < kUnits.size()) {
    bytes /= 1000.0;
    ++unit;
  }
  return format_number(bytes) + " " + kUnits[unit];
}

void require_json_writable(const Session& session) {
  if (session.json_path.empty() || session.json_to_stdout()) {
    return;
  }
  const std::ofstream file(session.json_path, std::ios::app);
  require(
      file.good(),
      "--json",
      "\"",
      session.json_path,
      "\" must be a file that can be written; ",
      std::strerror(errno),
      ".");
}

void write_json(
    const Session& session,
    const std::string& device,
    const Json& result) {
  if (session.json_path.empty()) {
    return;
  }
  Json document;
  document["quire"] = {
      {"version", quire_version()},
      {"commit", quire_commit()},
      {"mlx_version", mlx_version_text()},
      {"device", device},
      {"cpu", cpu_name()},
      {"gpu", gpu_name()},
      {"blas", blas_name()},
      {"date", utc_now()},
      {"command", session.command_line}};
  document.update(result);
  const std::string text =
      document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  if (session.json_to_stdout()) {
    write_stdout(text);
    return;
  }
  std::ofstream file(session.json_path, std::ios::trunc);
  file << text;
  file.close();
  if (!file) {
    throw OutputLost("Cannot write \"" + session.json_path + "\".");
  }
}

Progress::Progress(std::string label)
    : label_(std::move(label)),
      is_on_(stderr_is_terminal()),
      next_(std::chrono::steady_clock::now() + kDrawInterval) {}

Progress::~Progress() {
  if (is_drawn_) {
    write_stderr("\r\033[K");
  }
}

void Progress::update(double share) {
  const auto now = std::chrono::steady_clock::now();
  if (!is_on_ || now < next_) {
    return;
  }
  next_ = now + kDrawInterval;
  is_drawn_ = true;
  const int percent = static_cast<int>(std::clamp(share, 0.0, 1.0) * 100.0);
  write_stderr("\r\033[K" + label_ + " " + std::to_string(percent) + " %");
}

}  // namespace quire::tools
