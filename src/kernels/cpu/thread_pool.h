#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace quire::cpu {

/**
 * Threads that spin for a while after each task before they sleep, because a
 * decode step comes back within microseconds and a futex takes 8 to 60 us to
 * wake somebody.
 *
 * - run() is not reentrant: one caller at a time.
 * - Every worker takes part in every task, so none can miss one.
 * - Nothing is allocated in run().
 */
class ThreadPool {
 public:
  /** `num_threads` counts the caller of run(); at least 1. */
  explicit ThreadPool(
      int num_threads,
      std::chrono::microseconds spin = kDefaultSpin);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const {
    return size_;
  }

  /** Calls task(thread_idx) on every thread; the caller is thread 0. */
  template <typename Task>
  void run(const Task& task) {
    static_assert(noexcept(task(0)), "There is nobody to catch it.");
    run_all(
        [](const void* context, int thread_idx) noexcept {
          (*static_cast<const Task*>(context))(thread_idx);
        },
        &task);
  }

  static constexpr std::chrono::microseconds kDefaultSpin{100};

 private:
  using TaskFn = void (*)(const void* context, int thread_idx) noexcept;
  void run_all(TaskFn task, const void* context);
  void work(int thread_idx);
  std::uint32_t await_task(std::uint32_t seen) const;

  const int size_;
  const std::chrono::microseconds spin_;
  TaskFn task_ = nullptr;  // written before generation_ is published
  const void* context_ = nullptr;
  int caller_core_ = -1;
  bool stop_ = false;
  // On lines of their own: all workers poll one, the caller polls the other.
  alignas(64) std::atomic<std::uint32_t> generation_{0};
  alignas(64) std::atomic<int> num_running_{0};
  std::vector<std::thread> workers_;
};

/**
 * Threads of the CPU kernels: QUIRE_NUM_THREADS, else the CPUs of the affinity
 * mask, at most what the control group's quota pays for.
 */
int default_num_threads();

}  // namespace quire::cpu
