#include "mlx/memory_limit.h"

#include <doctest/doctest.h>

#include <fstream>
#include <string>

#include <unistd.h>

namespace quire {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMiB = 1024 * 1024;

// A folder that stands in for "/".
class FakeRoot {
 public:
  FakeRoot() {
    std::string path = (fs::temp_directory_path() / "quire-XXXXXX").string();
    REQUIRE(mkdtemp(path.data()) != nullptr);
    path_ = path;
    write(
        "proc/meminfo",
        "MemTotal:       16000000 kB\n"
        "MemFree:          100000 kB\n"
        "MemAvailable:    8388608 kB\n");
  }
  ~FakeRoot() {
    fs::remove_all(path_);
  }
  FakeRoot(const FakeRoot&) = delete;
  FakeRoot& operator=(const FakeRoot&) = delete;

  void write(const std::string& file, const std::string& text) const {
    fs::create_directories((path_ / file).parent_path());
    std::ofstream(path_ / file) << text;
  }
  void group_v2(
      const std::string& folder,
      const std::string& max,
      std::int64_t current,
      std::int64_t page_cache) const {
    write(folder + "/memory.max", max + "\n");
    write(folder + "/memory.current", std::to_string(current) + "\n");
    write(
        folder + "/memory.stat",
        "anon 1\nfile 2\ninactive_anon 3\nactive_anon 4\ninactive_file " +
            std::to_string(page_cache / 2) + "\nactive_file " +
            std::to_string(page_cache - page_cache / 2) + "\n");
  }
  std::string room(std::optional<std::int64_t> address_space = {}) const {
    const std::optional<MemoryRoom> room =
        host_memory_room(path_, address_space);
    return room ? std::to_string(room->bytes / kMiB) + " MiB, " + room->limit
                : "nothing known";
  }

 private:
  fs::path path_;
};

constexpr const char* kAvailable = "8192 MiB, the available memory";

TEST_CASE("memory room: the system's available memory") {
  const FakeRoot root;
  CHECK(root.room() == kAvailable);
}

TEST_CASE("memory room: nothing that can be read") {
  const FakeRoot root;
  root.write("proc/meminfo", "");
  CHECK(root.room() == "nothing known");
}

TEST_CASE("memory room: a container's limit, version 2") {
  const FakeRoot root;
  root.write("proc/self/cgroup", "0::/\n");
  SUBCASE("none") {
    root.group_v2("sys/fs/cgroup", "max", 100 * kMiB, 0);
    CHECK(root.room() == kAvailable);
  }
  SUBCASE("what is used does not count twice, page cache not at all") {
    root.group_v2(
        "sys/fs/cgroup", std::to_string(3072 * kMiB), 2200 * kMiB, 2000 * kMiB);
    CHECK(root.room() == "2872 MiB, what the container's limit leaves");
  }
  SUBCASE("more in use than the limit") {
    root.group_v2("sys/fs/cgroup", std::to_string(kMiB), 5 * kMiB, 0);
    CHECK(root.room() == "0 MiB, what the container's limit leaves");
  }
  SUBCASE("larger than what is available") {
    root.group_v2("sys/fs/cgroup", std::to_string(9000 * kMiB), 0, 0);
    CHECK(root.room() == kAvailable);
  }
}

TEST_CASE("memory room: the tightest group of a hierarchy") {
  const FakeRoot root;
  root.write("proc/self/cgroup", "0::/pods/a/b\n");
  root.group_v2("sys/fs/cgroup/pods", std::to_string(700 * kMiB), 0, 0);
  root.group_v2("sys/fs/cgroup/pods/a", std::to_string(500 * kMiB), 0, 0);
  root.group_v2("sys/fs/cgroup/pods/a/b", "max", 0, 0);
  CHECK(root.room() == "500 MiB, what the container's limit leaves");
}

TEST_CASE("memory room: a container's limit, version 1") {
  const FakeRoot root;
  root.write(
      "proc/self/cgroup",
      "9:name=systemd:/\n4:memory:/docker/1f\n3:cpuset:/\n0::/\n");
  const std::string group = "sys/fs/cgroup/memory/docker/1f/";
  SUBCASE("limited") {
    root.write(group + "memory.limit_in_bytes", "1073741824\n");
    root.write(group + "memory.usage_in_bytes", "629145600\n");
    root.write(
        group + "memory.stat",
        "cache 9\ninactive_file 9\ntotal_inactive_file 314572800\n"
        "total_active_file 104857600\n");
    CHECK(root.room() == "824 MiB, what the container's limit leaves");
  }
  SUBCASE("unlimited") {
    root.write(group + "memory.limit_in_bytes", "9223372036854771712\n");
    root.write(group + "memory.usage_in_bytes", "629145600\n");
    CHECK(root.room() == kAvailable);
  }
  SUBCASE("a container that sees its group as the mount point") {
    root.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "104857600\n");
    root.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "0\n");
    CHECK(root.room() == "100 MiB, what the container's limit leaves");
  }
}

TEST_CASE("memory room: the address-space limit") {
  const FakeRoot root;
  root.write("proc/self/status", "Name:\tquire\nVmSize:\t 1048576 kB\n");
  CHECK(root.room() == kAvailable);
  CHECK(
      root.room(4096 * kMiB) ==
      "3072 MiB, what the address-space limit (ulimit -v) leaves");
  CHECK(
      root.room(512 * kMiB) ==
      "0 MiB, what the address-space limit (ulimit -v) leaves");
  CHECK(root.room(std::int64_t{1} << 50) == kAvailable);
}

TEST_CASE("memory room: this machine says something") {
  const std::optional<MemoryRoom> room = host_memory_room();
  REQUIRE(room);
  CHECK(room->bytes > 0);
}

TEST_CASE("bytes as people read them") {
  CHECK(format_bytes(0) == "0 bytes");
  CHECK(format_bytes(1023) == "1023 bytes");
  CHECK(format_bytes(1024) == "1.00 KiB");
  CHECK(format_bytes(2684354560) == "2.50 GiB");
  // Down, so that a limit is never shown larger than it is.
  CHECK(format_bytes(3 * 1024 * kMiB - 1) == "2.99 GiB");
}

}  // namespace
}  // namespace quire
