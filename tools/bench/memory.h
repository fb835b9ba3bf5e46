// How much memory the data of a benchmark must and may take.
#pragma once

#include <cstdint>

#include "tools/bench/shape.h"

namespace quire::bench {

/** Bytes of the largest cache of this machine; 64 MiB if it does not say. */
std::int64_t last_level_cache_bytes();

/** Bytes that this process can still take: the machine's available memory, or
 * less where a control group allows less. */
std::int64_t available_memory_bytes();

/** What a cell may take at its peak, gather's copies included, roughly;
 * `num_pools` as Device has it. */
double
peak_bytes(const Shape& shape, std::int64_t rotation_bytes, int num_pools);

}  // namespace quire::bench
