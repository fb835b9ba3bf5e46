#include "kernels/cpu/thread_pool.h"

#include <doctest/doctest.h>

#include <string>

#include "kernels/cpu/decode_engine.h"
#include "kernels/cpu/isa.h"

#if defined(__linux__)
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace quire::cpu {
namespace {

using std::chrono::microseconds;

TEST_CASE("Every thread takes part in every task exactly once") {
  for (const int size : {1, 2, 5}) {
    for (const int spin : {0, 1, 500}) {
      CAPTURE(size);
      CAPTURE(spin);
      ThreadPool pool(size, microseconds(spin));
      CHECK(pool.size() == size);
      // Not atomic: run() itself must order a task after the one before it.
      std::vector<int> calls(static_cast<std::size_t>(size));
      for (int task = 1; task <= 300; ++task) {
        pool.run([&](int thread_idx) noexcept {
          ++calls[static_cast<std::size_t>(thread_idx)];
        });
        REQUIRE(
            calls == std::vector<int>(static_cast<std::size_t>(size), task));
        if (task % 100 == 0) {  // let the workers fall asleep
          std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
      }
    }
  }
}

TEST_CASE("A pool that never ran, or has just run, ends") {
  for (int i = 0; i < 20; ++i) {
    const ThreadPool idle(3, microseconds(i * 10));
    ThreadPool used(3, microseconds(i * 10));
    used.run([](int) noexcept {});
  }
}

TEST_CASE("There is at least one thread") {
  CHECK(default_num_threads() >= 1);
  CHECK(ThreadPool(0).size() == 1);
}

TEST_CASE("QUIRE_CPU_ISA takes what the machine has and nothing else") {
  const std::vector<Isa>& isas = available_isas();
  CHECK(isas.front() == Isa::Portable);
  CHECK(select_isa("") == isas.back());
  for (const Isa isa : isas) {
    if (isa != Isa::Avx512 || isas.back() != Isa::Avx512Bf16) {
      CHECK(select_isa(isa_name(isa)) == isa);
    }
  }
  for (const char* name : {"avx2", "avx512", "neon"}) {
    bool have = false;
    for (const Isa isa : isas) {
      have |= isa_name(isa) == name;
    }
    if (!have) {
      CHECK_THROWS_WITH_AS(
          select_isa(name), doctest::Contains(name), std::invalid_argument);
    }
  }
}

#if defined(__linux__) && !defined(__SANITIZE_THREAD__)
// The thread sanitizer does not follow threads that a forked child starts.
TEST_CASE("A forked child gets threads of its own") {
  const auto count = [] {
    std::atomic<int> calls{0};
    default_engine().run([&](int) noexcept { ++calls; });
    return calls.load();
  };
  const int expected = default_engine().num_threads();
  REQUIRE(count() == expected);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    alarm(20);  // a child without threads would wait for ever
    _exit(count() == expected ? 0 : 1);
  }
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(count() == expected);
}
#endif

}  // namespace
}  // namespace quire::cpu
