#pragma once

#include <chrono>
#include <mutex>
#include <vector>

#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/decode_params.h"

namespace quire::cpu {

/**
 * Threads and their workspace: what paged_decode() runs on.
 *
 * - Calls from several threads run one after the other: they would share the
 *   same memory bandwidth, and two at once would need twice the threads.
 * - The workspace grows to the largest call and then allocates no more.
 */
class DecodeEngine {
 public:
  explicit DecodeEngine(
      int num_threads,
      std::chrono::microseconds spin = ThreadPool::kDefaultSpin);

  /** As cpu::paged_decode(), on an instruction set of available_isas(). */
  void paged_decode(const DecodeArgs& args, Isa isa);

  /** task(thread_idx) on every thread, as ThreadPool::run(): for timing. */
  template <typename Task>
  void run(const Task& task) {
    const std::lock_guard lock(mutex_);
    pool_.run(task);
  }

  int num_threads() const {
    return pool_.size();
  }

 private:
  std::mutex mutex_;  // held for a whole call
  ThreadPool pool_;
  AlignedBuffer workspace_;
  std::vector<std::int64_t> first_item_;  // [num_seqs + 1]
};

/**
 * The process's engine, made at the first call with default_num_threads().
 * Never destroyed, so that static destructors may still decode; a forked child
 * makes its own, because threads do not survive a fork.
 */
DecodeEngine& default_engine();

}  // namespace quire::cpu
