// What a subcommand writes: results, tables, JSON, progress.
#pragma once

#include <chrono>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "tools/cli/command.h"

namespace quire::tools {

using Json = nlohmann::ordered_json;

/** A result could not be written: the reader is gone, the disk is full. */
struct OutputLost : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/**
 * Call first in main. Descriptors 0 to 2 that are closed are filled, so that no
 * file opened later takes their numbers and gets what was meant for stdout; and
 * a reader that goes away is an error of write, not a signal.
 */
void prepare_standard_streams();

/** Writes all of it to stdout at once, unbuffered; throws OutputLost, or
 * Interrupted if a signal came while the reader kept it waiting. */
void write_stdout(std::string_view text);

/** Writes to stderr; errors are ignored, there is nowhere to report them. */
void write_stderr(std::string_view text);

bool stdout_is_terminal();
bool stderr_is_terminal();

/** Rows of cells as aligned columns; the first row is the heading. Columns of
 * numbers are aligned right. */
std::string format_table(const std::vector<std::vector<std::string>>& rows);

/** A number with `digits` significant digits and a decimal point, whatever the
 * locale; whole numbers from 1000 up without an exponent. */
std::string format_number(double value, int digits = 3);

/** Bytes as "8.8 MB". */
std::string format_bytes(double bytes);

/** Throws std::invalid_argument unless --json's file can be written; call it
 * before work whose result would be lost. */
void require_json_writable(const Session& session);

/** Writes `result`, with the envelope "quire" in front, where --json says; does
 * nothing without --json. `device` is the one that computed. */
void write_json(
    const Session& session,
    const std::string& device,
    const Json& result);

/** A line on stderr that is rewritten while something goes on; nothing unless
 * stderr is a terminal. */
class Progress {
 public:
  explicit Progress(std::string label);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /** `share` is 0 to 1. Draws at most ten times a second. */
  void update(double share);

 private:
  std::string label_;
  bool is_on_;
  bool is_drawn_ = false;
  std::chrono::steady_clock::time_point next_;
};

}  // namespace quire::tools
