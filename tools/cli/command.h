// How a subcommand is made: a function adds its options to an App of its own
// and returns what runs them. main.cpp lists the subcommands, one line each.
#pragma once

#include <functional>
#include <string>

namespace CLI {
class App;
}

namespace quire::tools {

// Exit codes (see also OutputLost and main.cpp).
inline constexpr int kExitDone = 0;
inline constexpr int kExitBadResult = 1;  // ran; the result is bad or partial
inline constexpr int kExitUnusable = 2;   // usage, environment or input

/** What every subcommand gets besides its own options. */
struct Session {
  std::string command_line;
  std::string json_path;  // of --json; empty: none, "-": stdout

  /** Whether stdout belongs to the JSON alone. */
  bool json_to_stdout() const {
    return json_path == "-";
  }
};

/** Runs a subcommand whose options have been parsed; returns the exit code.
 * Bad usage and unusable input throw std::invalid_argument. */
using RunCommand = std::function<int(const Session&)>;

struct Command {
  const char* name;
  const char* description;
  RunCommand (*configure)(CLI::App& app);
};

RunCommand configure_bench(CLI::App& app);
RunCommand configure_generate(CLI::App& app);
RunCommand configure_validate(CLI::App& app);
RunCommand configure_info(CLI::App& app);

}  // namespace quire::tools
