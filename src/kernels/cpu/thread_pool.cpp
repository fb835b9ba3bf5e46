#include "kernels/cpu/thread_pool.h"

#include <algorithm>
#include <fstream>
#include <string>

#include "common/env.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace quire::cpu {
namespace {

inline void pause_core() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

#if defined(__linux__)
int current_core() {
  return sched_getcpu();
}

/**
 * A woken worker often starts on its waker's core and would stay there,
 * spinning against its caller, so that both halves of the work run one after
 * the other. It leaves by excluding that core from its own mask.
 */
void leave_core(int core, const cpu_set_t& allowed) {
  cpu_set_t others = allowed;
  CPU_CLR(core, &others);
  if (CPU_COUNT(&others) > 0) {
    sched_setaffinity(0, sizeof others, &others);
  }
}

int affinity_count() {
  cpu_set_t allowed;
  return sched_getaffinity(0, sizeof allowed, &allowed) == 0
             ? CPU_COUNT(&allowed)
             : 0;
}

/** CPUs that the control group's quota pays for, rounded up; 0: no limit. */
int quota_count() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::int64_t quota = 0;
  std::int64_t period = 0;
  if (file >> quota >> period && quota > 0 && period > 0) {
    return static_cast<int>((quota + period - 1) / period);
  }
  return 0;
}
#else
int current_core() {
  return -1;
}
int affinity_count() {
  return 0;
}
int quota_count() {
  return 0;
}
#endif

}  // namespace

ThreadPool::ThreadPool(int num_threads, std::chrono::microseconds spin)
    : size_(std::max(1, num_threads)), spin_(spin) {
  workers_.reserve(static_cast<std::size_t>(size_ - 1));
  for (int i = 1; i < size_; ++i) {
    workers_.emplace_back([this, i] { work(i); });
  }
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) {
    worker.join();
  }
}

void ThreadPool::run_all(TaskFn task, const void* context) {
  if (size_ > 1) {
    task_ = task;
    context_ = context;
    caller_core_ = current_core();
    num_running_.store(size_ - 1, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
  }
  task(context, 0);
  for (int i = 1; num_running_.load(std::memory_order_acquire) != 0; ++i) {
    pause_core();
    if (i % 128 == 0) {
      std::this_thread::yield();
    }
  }
}

/** Spins, then sleeps, until the generation is another than `seen`. */
std::uint32_t ThreadPool::await_task(std::uint32_t seen) const {
  const auto deadline = std::chrono::steady_clock::now() + spin_;
  for (int i = 1;; ++i) {
    const std::uint32_t now = generation_.load(std::memory_order_acquire);
    if (now != seen) {
      return now;
    }
    pause_core();
    if (i % 64 == 0) {
      std::this_thread::yield();
      if (std::chrono::steady_clock::now() > deadline) {
        generation_.wait(seen, std::memory_order_acquire);
      }
    }
  }
}

void ThreadPool::work(int thread_idx) {
#if defined(__linux__)
  cpu_set_t allowed;
  const bool may_move = sched_getaffinity(0, sizeof allowed, &allowed) == 0;
#endif
  std::uint32_t seen = 0;
  for (;;) {
    seen = await_task(seen);
    if (stop_) {
      return;
    }
#if defined(__linux__)
    if (may_move && current_core() == caller_core_) {
      leave_core(caller_core_, allowed);
    }
#endif
    task_(context_, thread_idx);
    num_running_.fetch_sub(1, std::memory_order_release);
  }
}

int default_num_threads() {
  if (env().num_threads > 0) {
    return env().num_threads;
  }
  int count = affinity_count();
  if (count == 0) {
    count = static_cast<int>(std::thread::hardware_concurrency());
  }
  const int quota = quota_count();
  return std::max(1, quota > 0 ? std::min(count, quota) : count);
}

}  // namespace quire::cpu
