// The counters behind path_counts(): which path of paged_attention ran.
#pragma once

#include <string>

namespace quire {

enum class Path { FusedCpu, FusedMetal, FusedCuda, FusedMetalHost, Gather };

/**
 * Counts one evaluation of `path`; `fallback_reason` is why a fused path that
 * was wanted did not run, empty where none was. Thread-safe.
 */
void count_path(Path path, const std::string& fallback_reason = {});

}  // namespace quire
