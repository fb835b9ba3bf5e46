// What every backend must do with every case of the table.
#pragma once

#include <functional>
#include <span>
#include <string>

#include "support/case_data.h"
#include "support/compare.h"
#include "support/decode_case.h"

namespace quire::testing {

/** One implementation of a decode step, as the conformance suite sees it. */
struct Backend {
  std::string name;
  Rounding rounding;
  /** Empty if the backend must run the case, else why it need not. */
  std::function<std::string(const DecodeCase&)> skip;
  /** Computes the step into args.out. */
  std::function<void(const DecodeArgs&)> run;
};

/**
 * Runs one case on each backend, on the same data, and returns what went
 * wrong, a line each ("" if nothing):
 *
 * - the result is within all three measures of the reference, with NaN in
 *   every slot that must not be read and unused table entries that fault;
 * - it does not change by one bit when those slots hold infinity or zero;
 * - the rows round the output are untouched.
 */
std::string check_case(const DecodeCase& c, std::span<const Backend> backends);

/** How many (case, backend) pairs check_case() has run in this process. */
int num_checks_run();

}  // namespace quire::testing
