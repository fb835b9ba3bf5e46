// What a benchmark says: the rows of its table and of its JSON.
#pragma once

#include <string>
#include <vector>

#include "tools/bench/cell.h"
#include "tools/cli/output.h"

namespace quire::bench {

/** One object of "cells" in the JSON. */
tools::Json row_json(const Row& row);

/** One object of "refused" in the JSON. */
tools::Json refusal_json(const Refusal& refusal);

/** The heading and a line a row, for format_table(). */
std::vector<std::vector<std::string>> table(const std::vector<Row>& rows);

}  // namespace quire::bench
