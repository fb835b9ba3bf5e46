#include "mlx/memory_limit.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <sstream>
#include <string_view>

#include <sys/resource.h>
#if defined(__APPLE__)
#include <mach/mach.h>
#include <sys/sysctl.h>
#endif

namespace quire {
namespace {

namespace fs = std::filesystem;

void keep_smaller(
    std::optional<MemoryRoom>& room,
    std::optional<std::int64_t> bytes,
    const char* limit) {
  if (bytes && (!room || *bytes < room->bytes)) {
    room = MemoryRoom{std::max<std::int64_t>(*bytes, 0), limit};
  }
}

#if defined(__APPLE__)

// Pages that are free or can be reclaimed without swapping.
std::optional<std::int64_t> available_memory(const fs::path&) {
  vm_statistics64_data_t stats;
  mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
  vm_size_t page_bytes = 0;
  const mach_port_t host = mach_host_self();
  const bool ok = host_page_size(host, &page_bytes) == KERN_SUCCESS &&
                  host_statistics64(
                      host,
                      HOST_VM_INFO64,
                      reinterpret_cast<host_info64_t>(&stats),
                      &count) == KERN_SUCCESS;
  mach_port_deallocate(mach_task_self(), host);
  if (!ok) {
    return std::nullopt;
  }
  const std::uint64_t pages = std::uint64_t{stats.free_count} +
                              stats.inactive_count + stats.purgeable_count;
  return static_cast<std::int64_t>(pages * page_bytes);
}

std::optional<std::int64_t> control_group_room(const fs::path&) {
  return std::nullopt;
}

std::optional<std::int64_t> mapped_bytes(const fs::path&) {
  mach_task_basic_info_data_t info;
  mach_msg_type_number_t count = MACH_TASK_BASIC_INFO_COUNT;
  if (task_info(
          mach_task_self(),
          MACH_TASK_BASIC_INFO,
          reinterpret_cast<task_info_t>(&info),
          &count) != KERN_SUCCESS) {
    return std::nullopt;
  }
  return static_cast<std::int64_t>(info.virtual_size);
}

#else

// The whole number that `text` begins with, after blanks.
std::optional<std::int64_t> leading_number(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  std::int64_t value = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) {
    return std::nullopt;
  }
  return value;
}

// A file that holds one number; "max" and what cannot be read is nullopt.
std::optional<std::int64_t> number_in(const fs::path& file) {
  std::ifstream in(file);
  std::string line;
  return std::getline(in, line) ? leading_number(line) : std::nullopt;
}

// The number behind `key` in a file of lines "key number".
std::optional<std::int64_t> number_behind(
    const fs::path& file,
    std::string_view key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(key)) {
      return leading_number(std::string_view(line).substr(key.size()));
    }
  }
  return std::nullopt;
}

std::optional<std::int64_t> available_memory(const fs::path& root) {
  std::optional<std::int64_t> kib =
      number_behind(root / "proc/meminfo", "MemAvailable:");
  return kib ? std::optional(*kib * 1024) : std::nullopt;
}

// The files of one version of control groups.
struct GroupFiles {
  const char* limit;
  const char* usage;
  const char* inactive_file;  // keys of memory.stat: page cache
  const char* active_file;
};
constexpr GroupFiles kVersion2{
    "memory.max",
    "memory.current",
    "inactive_file ",
    "active_file "};
constexpr GroupFiles kVersion1{
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file ",
    "total_active_file "};

// What one group leaves: its limit less its usage, page cache not counted.
std::optional<std::int64_t> room_of_group(
    const fs::path& group,
    const GroupFiles& files) {
  const std::optional<std::int64_t> limit = number_in(group / files.limit);
  const std::optional<std::int64_t> usage = number_in(group / files.usage);
  if (!limit || !usage) {
    return std::nullopt;
  }
  const fs::path stat = group / "memory.stat";
  const std::int64_t page_cache =
      number_behind(stat, files.inactive_file).value_or(0) +
      number_behind(stat, files.active_file).value_or(0);
  return *limit - std::max<std::int64_t>(*usage - page_cache, 0);
}

// The smallest room of a group and all above it, up to the mount point. A
// container often sees its own group as the mount point.
std::optional<std::int64_t> room_of_groups(
    const fs::path& mount,
    const fs::path& group,
    const GroupFiles& files) {
  std::optional<std::int64_t> smallest = room_of_group(mount, files);
  fs::path path = mount;
  for (const fs::path& part : group.relative_path()) {
    path /= part;
    const std::optional<std::int64_t> room = room_of_group(path, files);
    if (room && (!smallest || *room < *smallest)) {
      smallest = room;
    }
  }
  return smallest;
}

// /proc/self/cgroup has lines "id:controllers:path"; id 0 is version 2.
std::optional<std::int64_t> control_group_room(const fs::path& root) {
  std::optional<std::int64_t> smallest;
  std::ifstream in(root / "proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second =
        first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) {
      continue;
    }
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const fs::path group = line.substr(second + 1);
    std::optional<std::int64_t> room;
    if (controllers.empty()) {
      room = room_of_groups(root / "sys/fs/cgroup", group, kVersion2);
    } else if (
        ("," + controllers + ",").find(",memory,") != std::string::npos) {
      room = room_of_groups(root / "sys/fs/cgroup/memory", group, kVersion1);
    }
    if (room && (!smallest || *room < *smallest)) {
      smallest = room;
    }
  }
  return smallest;
}

std::optional<std::int64_t> mapped_bytes(const fs::path& root) {
  const std::optional<std::int64_t> kib =
      number_behind(root / "proc/self/status", "VmSize:");
  return kib ? std::optional(*kib * 1024) : std::nullopt;
}

#endif

}  // namespace

std::optional<std::int64_t> address_space_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
    return std::nullopt;
  }
  return static_cast<std::int64_t>(std::min<std::uint64_t>(
      limit.rlim_cur, std::numeric_limits<std::int64_t>::max()));
}

std::optional<MemoryRoom> host_memory_room(
    const fs::path& root,
    std::optional<std::int64_t> address_space_bytes) {
  std::optional<MemoryRoom> room;
  keep_smaller(room, available_memory(root), "the available memory");
  keep_smaller(
      room, control_group_room(root), "what the container's limit leaves");
  const std::optional<std::int64_t> mapped = mapped_bytes(root);
  if (address_space_bytes && mapped) {
    keep_smaller(
        room,
        *address_space_bytes - *mapped,
        "what the address-space limit (ulimit -v) leaves");
  }
  return room;
}

std::string format_bytes(std::int64_t bytes) {
  constexpr std::array kUnits = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024.0 && unit + 1 < kUnits.size()) {
    value /= 1024.0;
    ++unit;
  }
  std::array<char, 32> text{};
  std::snprintf(
      text.data(),
      text.size(),
      unit == 0 ? "%.0f %s" : "%.2f %s",
      unit == 0 ? value : std::floor(value * 100.0) / 100.0,
      kUnits[unit]);
  return text.data();
}

}  // namespace quire
