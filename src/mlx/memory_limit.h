// How much memory this process may still take, from what the system says.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "quire/kv_cache.h"

namespace quire {

/** The process's address-space limit (ulimit -v) in bytes, if it has one. */
std::optional<std::int64_t> address_space_limit();

/**
 * The host's part of memory_room(): system, control groups (v1 and v2) and
 * address-space limit; nullopt where none of them can be read. `root` stands
 * in for "/" in tests.
 */
std::optional<MemoryRoom> host_memory_room(
    const std::filesystem::path& root = "/",
    std::optional<std::int64_t> address_space_bytes = address_space_limit());

/** 1536 MiB as "1.5 GiB": at most three digits after rounding down. */
std::string format_bytes(std::int64_t bytes);

}  // namespace quire
