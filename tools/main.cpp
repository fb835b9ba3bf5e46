// quire: generate, validate and measure with paged attention.
#include <exception>
#include <map>
#include <sstream>
#include <stdexcept>

#include <CLI/CLI.hpp>

#include "quire/runtime.h"
#include "tools/cli/command.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/output.h"
#include "tools/cli/system.h"

namespace quire::tools {
namespace {

constexpr Command kCommands[] = {
    {"bench", "Time every path of a decode step.", configure_bench},
    {"generate", "Generate text with a GGUF model.", configure_generate},
    {"validate",
     "Check the fused path over many decode steps on this device.",
     configure_validate},
    {"info", "Print versions, devices and settings.", configure_info},
};

constexpr const char* kFooter =
    "Exit codes: 0 done; 1 the result is bad or partial; 2 bad usage or "
    "unusable input.";

int run(int argc, char** argv) {
  const std::string version_text = "quire " + quire_version();
  CLI::App app("Paged KV cache and paged attention for MLX.", "quire");
  app.require_subcommand(0, 1);  // none is said below, after what is unknown
  app.set_version_flag("--version", version_text, "Print the version and exit");

  Session session;
  for (int i = 0; i < argc; ++i) {
    session.command_line += (i > 0 ? " " : "") + std::string(argv[i]);
  }
  std::map<const CLI::App*, RunCommand> runs;
  for (const Command& command : kCommands) {
    CLI::App* sub = app.add_subcommand(command.name, command.description);
    runs[sub] = command.configure(*sub);
    sub->add_option(
           "--json",
           session.json_path,
           "Write the result as JSON to FILE; -: to stdout, and nothing else "
           "there. Default: none")
        ->check(CLI::Validator(
            [](const std::string& path) {
              return std::string(path.empty() ? "must name a file" : "");
            },
            ""))
        ->type_name("FILE");
    sub->set_version_flag(
        "--version", version_text, "Print the version and exit");
    sub->footer(sub->get_footer() + kFooter);
  }
  app.footer(kFooter);  // last: subcommands made after it would inherit it

  try {
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) {
      throw CLI::RequiredError("A subcommand");
    }
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    std::ostringstream messages;
    const int code = app.exit(error, out, messages);
    write_stdout(out.str());
    write_stderr(messages.str());
    return code == 0 ? kExitDone : kExitUnusable;
  }
  // A value that can't be used stops every subcommand alike.
  (void)env_variables();
  (void)cpu_isa();
  require_json_writable(session);
  return runs.at(app.get_subcommands().front())(session);
}

}  // namespace
}  // namespace quire::tools

int main(int argc, char** argv) {
  using namespace quire::tools;
  prepare_standard_streams();
  try {
    restart_with_fast_blas(argv);
    catch_interrupts();
    return run(argc, argv);
  } catch (const OutputLost& error) {
    write_stderr(std::string("quire: ") + error.what() + "\n");
    return kExitBadResult;
  } catch (const Interrupted&) {
    write_stderr("quire: interrupted\n");
    return kExitBadResult;
  } catch (const std::bad_alloc&) {
    write_stderr("quire: Out of memory.\n");
  } catch (const std::exception& error) {
    write_stderr(std::string("quire: ") + error.what() + "\n");
  }
  return kExitUnusable;
}
