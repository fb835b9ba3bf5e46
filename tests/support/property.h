// RapidCheck inside doctest.
#pragma once

#include <cstdlib>
#include <sstream>
#include <string>
#include <utility>

#include <doctest/doctest.h>
#include <rapidcheck.h>

namespace quire::testing {

/**
 * Checks a property on `num_cases` random inputs. A failure prints the shrunk
 * input and the seed with which RC_PARAMS repeats it.
 */
template <typename Property>
void check_property(int num_cases, Property&& property) {
  rc::detail::TestParams params = rc::detail::configuration().testParams;
  params.maxSuccess = num_cases;
  if (std::getenv("RC_PARAMS") == nullptr) {
    params.seed = 20250731;  // the same cases in every run
  }
  const rc::detail::TestResult result = rc::detail::checkProperty(
      rc::detail::toProperty(std::forward<Property>(property)),
      rc::detail::TestMetadata(),
      params);
  rc::detail::SuccessResult success;
  const bool passed = result.match(success);
  std::ostringstream text;
  rc::detail::printResultMessage(result, text);
  CHECK_MESSAGE(passed, text.str());
}

}  // namespace quire::testing
