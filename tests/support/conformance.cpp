#include "support/conformance.h"

#include <exception>
#include <sstream>

namespace quire::testing {
namespace {

int checks_run = 0;

std::string check_backend(
    const Backend& backend,
    CaseData& data,
    const Expected& expected) {
  data.clear_out();
  data.poison(Poison::NaN);
  const DecodeArgs args = data.args();
  backend.run(args);
  const ErrorStats stats =
      compare(args.out, args.q_dtype, expected.out, expected.bound);
  if (std::string wrong = verdict(stats, limits_of(stats)); !wrong.empty()) {
    return wrong;
  }
  const std::vector<std::uint8_t> before = data.out_bytes();
  for (const Poison kind : {Poison::Infinity, Poison::Zero}) {
    data.clear_out();
    data.poison(kind);
    backend.run(args);
    if (data.out_bytes() != before) {
      return "the result changes with memory that must not be read";
    }
  }
  if (!data.canaries_intact()) {
    return "a row beside the output was written";
  }
  return {};
}

}  // namespace

std::string check_case(const DecodeCase& c, std::span<const Backend> backends) {
  CaseData data(c);
  // Rounding differs between backends, so each kind has its own bounds.
  std::vector<std::pair<Rounding, Expected>> cache;
  const auto expected_for = [&](const Rounding& rounding) -> const Expected& {
    for (const auto& [key, value] : cache) {
      if (key.weights_to_kv_dtype == rounding.weights_to_kv_dtype &&
          key.q_to_kv_dtype == rounding.q_to_kv_dtype) {
        return value;
      }
    }
    cache.emplace_back(rounding, expect(data.args(), rounding));
    return cache.back().second;
  };

  std::ostringstream wrong;
  for (const Backend& backend : backends) {
    if (!backend.skip(c).empty()) {
      continue;
    }
    ++checks_run;
    std::string text;
    try {
      text = check_backend(backend, data, expected_for(backend.rounding));
    } catch (const std::exception& error) {
      text = std::string("threw: ") + error.what();
    }
    if (!text.empty()) {
      wrong << backend.name << ": " << c.name << ": " << text << '\n';
    }
  }
  return wrong.str();
}

int num_checks_run() {
  return checks_run;
}

}  // namespace quire::testing
