// How much memory this process may still take, from what the system says.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "quire/kv_cache.h"

namespace quire {

/**
 * The host's part of memory_room(): system, control groups (v1 and v2) and
 * address-space limit; nullopt where none of them can be read. `root` stands
 * in for "/" in tests.
 */
std::optional<MemoryRoom> host_memory_room(
    const std::filesystem::path& root = "/");

/** 1536 MiB as "1.5 GiB": at most three digits after rounding down. */
std::string format_bytes(std::int64_t bytes);

}  // namespace quire
