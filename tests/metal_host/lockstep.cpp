#include "lockstep.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LOCKSTEP_ASAN 1
#include <sanitizer/common_interface_defs.h>
#endif
#if __has_feature(memory_sanitizer)
#define LOCKSTEP_MSAN 1
#include <sanitizer/msan_interface.h>
#endif
#endif

// Fibers move between stacks that the sanitizers did not make: their shadow of
// returned frames costs 15 times the run time and finds nothing here.
extern "C" const char* __asan_default_options() {
  return "detect_stack_use_after_return=0:detect_leaks=0";
}
// The harness poisons what must not be read, and only that: it is compiled
// without MSan's bookkeeping in the standard library.
extern "C" const char* __msan_default_options() {
  return "poison_in_malloc=0:poison_in_free=0";
}

// void lockstep_switch(void** save_sp, void* load_sp)
#if !defined(__x86_64__) || !defined(__linux__)
#error "The lock-step runtime switches fibers on x86-64 Linux only."
#endif
asm(R"(
.text
.globl lockstep_switch
.type lockstep_switch,@function
lockstep_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  retq
.size lockstep_switch,.-lockstep_switch
)");
extern "C" void lockstep_switch(void** save_sp, void* load_sp);

namespace lockstep {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr unsigned kSimdWidth = 32;
constexpr unsigned kMaxThreads = 1024;

enum class State { Ready, InSimd, InBarrier, Done };

struct Fiber {
  void* sp;
  char* stack;
  void* fake_stack;  // AddressSanitizer's
  ThreadIds ids;
  State state;
  Site site;
  unsigned simdgroup;
  unsigned lane;
};

struct Simdgroup {
  unsigned num_live = 0;
  unsigned num_arrived = 0;
  uint32_t live = 0;
  unsigned parity = 0;  // exchanges alternate, so a slow lane can still read
  uint32_t epoch = 1;   // simdgroup barriers passed
  Site site = {};
  alignas(64) unsigned char slots[2][kSimdWidth * kSlotBytes];
};

struct Buffer {
  std::string name;
  const char* begin;
  size_t num_bytes;
  bool writable;
  Traffic traffic;
  std::vector<uint32_t> writer;  // of each byte, 0: none
  std::vector<bool> loaded;
};

// Who touched a byte of threadgroup memory last, and between which barriers.
struct Shadow {
  uint32_t write_epoch, write_simd_epoch, read_epoch, read_simd_epoch;
  uint16_t writer, reader;
  bool many_simdgroups_read, many_lanes_read;
};

// An array in threadgroup memory of the kernel that runs.
struct ThreadgroupArray {
  char* begin;
  size_t num_bytes;
  uint32_t filled_for = 0;  // threadgroup serial + 1
  std::vector<Shadow> shadow;
};

// The threads of the threadgroup that runs, and everything about it.
struct Machine {
  std::vector<Fiber> fibers;
  std::vector<std::unique_ptr<Simdgroup>> simdgroups;
  std::vector<char*> stacks;
  Fiber* current = nullptr;
  void* main_sp = nullptr;
  void* main_fake_stack = nullptr;
  const void* main_stack = nullptr;
  size_t main_stack_bytes = 0;
  KernelFn kernel = nullptr;
  void* const* buffers = nullptr;
  unsigned num_live = 0;
  unsigned num_in_barrier = 0;
  std::vector<ThreadgroupArray> arrays;
  uint32_t epoch = 0;  // barriers that ordered threadgroup memory
  uint32_t threadgroup_serial = 0;
  Site barrier = {};
  std::string error;
};

Machine machine;
Counters totals;
std::vector<std::unique_ptr<Buffer>> watched;

bool operator==(const Site& a, const Site& b) {
  return a.line == b.line && a.column == b.column && !strcmp(a.op, b.op) &&
         !strcmp(a.file, b.file);
}

std::string to_string(const Site& site) {
  return std::string(site.op) + " at " + site.file + ":" +
         std::to_string(site.line) + ":" + std::to_string(site.column);
}

std::string to_string(const Fiber& fiber) {
  const Id3& p = fiber.ids.threadgroup_position;
  return "threadgroup (" + std::to_string(p.x) + ", " + std::to_string(p.y) +
         ", " + std::to_string(p.z) + ") simdgroup " +
         std::to_string(fiber.simdgroup) + " lane " +
         std::to_string(fiber.lane);
}

// --- Fibers ------------------------------------------------------------------

void switch_to_main([[maybe_unused]] bool dying) {
  Fiber* fiber = machine.current;
#ifdef LOCKSTEP_ASAN
  __sanitizer_start_switch_fiber(
      dying ? nullptr : &fiber->fake_stack,
      machine.main_stack,
      machine.main_stack_bytes);
#endif
  lockstep_switch(&fiber->sp, machine.main_sp);
#ifdef LOCKSTEP_ASAN
  __sanitizer_finish_switch_fiber(fiber->fake_stack, nullptr, nullptr);
#endif
}

void switch_to(Fiber& fiber) {
  machine.current = &fiber;
#ifdef LOCKSTEP_ASAN
  __sanitizer_start_switch_fiber(
      &machine.main_fake_stack, fiber.stack, kStackBytes);
#endif
  lockstep_switch(&machine.main_sp, fiber.sp);
#ifdef LOCKSTEP_ASAN
  __sanitizer_finish_switch_fiber(machine.main_fake_stack, nullptr, nullptr);
#endif
  machine.current = nullptr;
}

[[noreturn]] void leave() {
  machine.current->state = State::Done;
  switch_to_main(true);
  abort();
}

// A violation ends the fiber; dispatch() throws once it is back on its stack.
[[noreturn]] void fail(const std::string& message) {
  if (machine.error.empty()) {
    machine.error = message;
  }
  leave();
}

void wake(State from, size_t begin_thread, size_t end_thread) {
  for (size_t i = begin_thread; i < end_thread; ++i) {
    if (machine.fibers[i].state == from) {
      machine.fibers[i].state = State::Ready;
    }
  }
}

void complete_exchange(Simdgroup& simdgroup, unsigned index) {
  simdgroup.num_arrived = 0;
  simdgroup.parity ^= 1;
  const size_t begin = size_t{index} * kSimdWidth;
  wake(
      State::InSimd,
      begin,
      std::min(begin + kSimdWidth, machine.fibers.size()));
}

extern "C" void lockstep_entry() {
#ifdef LOCKSTEP_ASAN
  __sanitizer_finish_switch_fiber(
      nullptr, &machine.main_stack, &machine.main_stack_bytes);
#endif
  Fiber& fiber = *machine.current;
  machine.kernel(fiber.ids, machine.buffers);
  // A thread that returned is inactive from here on.
  Simdgroup& simdgroup = *machine.simdgroups[fiber.simdgroup];
  --simdgroup.num_live;
  simdgroup.live &= ~(1u << fiber.lane);
  --machine.num_live;
  if (simdgroup.num_live > 0 && simdgroup.num_arrived == simdgroup.num_live) {
    complete_exchange(simdgroup, fiber.simdgroup);
  }
  if (machine.num_in_barrier > 0) {
    fail(
        to_string(fiber) + " has returned; others wait in " +
        to_string(machine.barrier));
  }
  leave();
}

void prepare(Fiber& fiber, unsigned index, Id3 position, Id3 grid, Id3 shape) {
  const Id3 in_group{
      index % shape.x, index / shape.x % shape.y, index / (shape.x * shape.y)};
  fiber.stack = machine.stacks[index];
  fiber.fake_stack = nullptr;
  fiber.state = State::Ready;
  fiber.simdgroup = index / kSimdWidth;
  fiber.lane = index % kSimdWidth;
  fiber.ids = {
      position,
      grid,
      shape,
      in_group,
      {position.x * shape.x + in_group.x,
       position.y * shape.y + in_group.y,
       position.z * shape.z + in_group.z},
      {grid.x * shape.x, grid.y * shape.y, grid.z * shape.z},
      index,
      fiber.simdgroup,
      fiber.lane,
      static_cast<unsigned>(machine.simdgroups.size())};
  Simdgroup& simdgroup = *machine.simdgroups[fiber.simdgroup];
  ++simdgroup.num_live;
  simdgroup.live |= 1u << fiber.lane;
  // As if lockstep_switch had been called from lockstep_entry's first line:
  // six registers, the return address, and an aligned frame above.
  auto** sp = reinterpret_cast<void**>(fiber.stack + kStackBytes - 64);
  *--sp = nullptr;
  *--sp = reinterpret_cast<void*>(&lockstep_entry);
  fiber.sp = sp - 6;
}

// --- Threadgroup memory ------------------------------------------------------

// NaN in every float type.
void fill(ThreadgroupArray& array) {
  memset(array.begin, 0xff, array.num_bytes);
#ifdef LOCKSTEP_MSAN
  __msan_poison(array.begin, array.num_bytes);
#endif
}

ThreadgroupArray* find_array(const char* at) {
  for (ThreadgroupArray& array : machine.arrays) {
    if (at >= array.begin && at < array.begin + array.num_bytes) {
      return &array;
    }
  }
  return nullptr;
}

// Races with an earlier access to the byte that no barrier separates?
bool races(const Shadow& s, bool write, unsigned thread, uint32_t simd_epoch) {
  const unsigned simdgroup = thread / kSimdWidth;
  if (s.write_epoch == machine.epoch && s.writer != thread &&
      (s.writer / kSimdWidth != simdgroup ||
       s.write_simd_epoch == simd_epoch)) {
    return true;
  }
  if (!write || s.read_epoch != machine.epoch) {
    return false;
  }
  if (s.many_simdgroups_read || s.reader / kSimdWidth != simdgroup) {
    return true;
  }
  return s.read_simd_epoch == simd_epoch &&
         (s.many_lanes_read || s.reader != thread);
}

void note(Shadow& s, bool write, unsigned thread, uint32_t simd_epoch) {
  const auto id = static_cast<uint16_t>(thread);
  if (write) {
    s.write_epoch = machine.epoch;
    s.write_simd_epoch = simd_epoch;
    s.writer = id;
    return;
  }
  if (s.read_epoch != machine.epoch) {
    s.many_simdgroups_read = s.many_lanes_read = false;
  } else {
    s.many_simdgroups_read |= s.reader / kSimdWidth != thread / kSimdWidth;
    s.many_lanes_read = s.read_simd_epoch == simd_epoch &&
                        (s.many_lanes_read || s.reader != id);
  }
  s.read_epoch = machine.epoch;
  s.read_simd_epoch = simd_epoch;
  s.reader = id;
}

void access_threadgroup(
    ThreadgroupArray& array,
    const char* at,
    unsigned num_bytes,
    bool write) {
  const Fiber& fiber = *machine.current;
  ++(write ? totals.threadgroup_stores : totals.threadgroup_loads);
  if (at + num_bytes > array.begin + array.num_bytes) {
    fail("access past a threadgroup array by " + to_string(fiber));
  }
  const unsigned thread = fiber.ids.index_in_threadgroup;
  const uint32_t simd_epoch = machine.simdgroups[fiber.simdgroup]->epoch;
  for (unsigned i = 0; i < num_bytes; ++i) {
    Shadow& shadow = array.shadow[static_cast<size_t>(at - array.begin) + i];
    if (races(shadow, write, thread, simd_epoch)) {
      fail(
          std::string("race in threadgroup memory: ") +
          (write ? "write" : "read") + " by " + to_string(fiber) +
          " with thread " +
          std::to_string(
              shadow.write_epoch == machine.epoch && shadow.writer != thread
                  ? shadow.writer
                  : shadow.reader) +
          ", no barrier between");
    }
    note(shadow, write, thread, simd_epoch);
  }
}

// --- Device memory -----------------------------------------------------------

void access_device(
    Buffer& buffer,
    const char* at,
    unsigned num_bytes,
    bool write) {
  const Fiber& fiber = *machine.current;
  const auto offset = static_cast<size_t>(at - buffer.begin);
  if (offset + num_bytes > buffer.num_bytes) {
    fail("access past the end of " + buffer.name + " by " + to_string(fiber));
  }
  if (!write) {
    buffer.traffic.load_bytes += num_bytes;
    ++buffer.traffic.loads[num_bytes];
    std::fill_n(
        buffer.loaded.begin() + static_cast<ptrdiff_t>(offset),
        num_bytes,
        true);
    return;
  }
  buffer.traffic.store_bytes += num_bytes;
  if (!buffer.writable) {
    fail("store to read-only " + buffer.name + " by " + to_string(fiber));
  }
  const uint32_t id = machine.threadgroup_serial * kMaxThreads +
                      fiber.ids.index_in_threadgroup + 1;
  for (unsigned i = 0; i < num_bytes; ++i) {
    uint32_t& writer = buffer.writer[offset + i];
    if (writer != 0 && writer != id) {
      fail(
          "two threads write byte " + std::to_string(offset + i) + " of " +
          buffer.name + ", the second is " + to_string(fiber));
    }
    writer = id;
  }
}

void access(const void* address, unsigned num_bytes, bool write) {
  if (!machine.current) {
    return;
  }
  const char* at = static_cast<const char*>(address);
  if (ThreadgroupArray* array = find_array(at)) {
    access_threadgroup(*array, at, num_bytes, write);
    return;
  }
  for (const auto& buffer : watched) {
    if (at >= buffer->begin && at < buffer->begin + buffer->num_bytes) {
      access_device(*buffer, at, num_bytes, write);
      return;
    }
  }
}

// Waits until all live lanes are here; returns the parity of their slots.
unsigned meet(const Site& site, const void* value, unsigned num_bytes) {
  Fiber& fiber = *machine.current;
  Simdgroup& simdgroup = *machine.simdgroups[fiber.simdgroup];
  if (simdgroup.num_arrived == 0) {
    simdgroup.site = site;
  } else if (!(simdgroup.site == site)) {
    fail(
        "divergent simdgroup operation: " + to_string(fiber) + " is in " +
        to_string(site) + ", others are in " + to_string(simdgroup.site));
  }
  const unsigned parity = simdgroup.parity;
  if (num_bytes > 0) {
    memcpy(simdgroup.slots[parity] + fiber.lane * kSlotBytes, value, num_bytes);
  }
  if (++simdgroup.num_arrived == simdgroup.num_live) {
    complete_exchange(simdgroup, fiber.simdgroup);
    return parity;
  }
  fiber.state = State::InSimd;
  fiber.site = site;
  switch_to_main(false);
  return parity;
}

void run_threadgroup(unsigned schedule, std::mt19937& random) {
  std::vector<unsigned> order(machine.fibers.size());
  for (unsigned i = 0; i < order.size(); ++i) {
    order[i] = i;
  }
  for (;;) {
    if (schedule != 0) {
      std::shuffle(order.begin(), order.end(), random);
    }
    bool ran = false;
    size_t num_done = 0;
    for (const unsigned i : order) {
      Fiber& fiber = machine.fibers[i];
      if (fiber.state == State::Ready) {
        ran = true;
        switch_to(fiber);
        if (!machine.error.empty()) {
          throw std::runtime_error(machine.error);
        }
      }
      num_done += fiber.state == State::Done;
    }
    if (num_done == machine.fibers.size()) {
      return;
    }
    if (!ran) {
      for (const Fiber& fiber : machine.fibers) {
        if (fiber.state != State::Done) {
          throw std::runtime_error(
              "deadlock: " + to_string(fiber) + " waits in " +
              to_string(fiber.site));
        }
      }
    }
  }
}

}  // namespace

Peers simd_exchange(
    const void* value,
    unsigned num_bytes,
    SimdOp kind,
    const Site& site) {
  const Fiber& fiber = *machine.current;
  Simdgroup& simdgroup = *machine.simdgroups[fiber.simdgroup];
  ++(kind == SimdOp::Shuffle   ? totals.shuffles
     : kind == SimdOp::Vote    ? totals.votes
     : kind == SimdOp::Product ? totals.products
                               : totals.reductions);
  const uint32_t active = simdgroup.live;
  const unsigned lane = fiber.lane;
  const unsigned parity = meet(site, value, num_bytes);
  return {simdgroup.slots[parity], active, lane};
}

void simdgroup_barrier(bool orders_threadgroup_memory, const Site& site) {
  ++totals.simdgroup_barriers;
  Simdgroup& simdgroup = *machine.simdgroups[machine.current->simdgroup];
  const bool last = simdgroup.num_arrived + 1 == simdgroup.num_live;
  meet(site, nullptr, 0);
  if (last && orders_threadgroup_memory) {
    ++simdgroup.epoch;
  }
}

void threadgroup_barrier(bool orders_threadgroup_memory, const Site& site) {
  ++totals.threadgroup_barriers;
  if (machine.num_live != machine.fibers.size()) {
    fail("a thread has returned before " + to_string(site));
  }
  if (machine.num_in_barrier == 0) {
    machine.barrier = site;
  } else if (!(machine.barrier == site)) {
    fail(
        "divergent barriers: " + to_string(*machine.current) + " is in " +
        to_string(site) + ", others are in " + to_string(machine.barrier));
  }
  if (++machine.num_in_barrier == machine.num_live) {
    machine.num_in_barrier = 0;
    machine.epoch += orders_threadgroup_memory;
    wake(State::InBarrier, 0, machine.fibers.size());
    return;
  }
  machine.current->state = State::InBarrier;
  machine.current->site = site;
  switch_to_main(false);
}

void count_exp() {
  ++totals.exps;
}

void use_threadgroup_array(void* data, size_t num_bytes) {
  auto* begin = static_cast<char*>(data);
  ThreadgroupArray* array = find_array(begin);
  if (!array) {
    array = &machine.arrays.emplace_back();
    array->begin = begin;
    array->num_bytes = num_bytes;
    array->shadow.resize(num_bytes);
  }
  if (array->filled_for != machine.threadgroup_serial + 1) {
    array->filled_for = machine.threadgroup_serial + 1;
    fill(*array);
  }
}

void dispatch(
    Id3 threadgroups,
    Id3 threads,
    KernelFn kernel,
    void* const* buffers,
    unsigned schedule) {
  const unsigned num_threads = threads.x * threads.y * threads.z;
  if (num_threads == 0 || num_threads > kMaxThreads) {
    throw std::runtime_error(
        "a threadgroup of " + std::to_string(num_threads) + " threads");
  }
  while (machine.stacks.size() < num_threads) {
    void* stack = mmap(
        nullptr,
        kStackBytes,
        PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
        -1,
        0);
    if (stack == MAP_FAILED) {
      throw std::runtime_error("no memory for the stack of a fiber");
    }
    machine.stacks.push_back(static_cast<char*>(stack));
  }
  for (const auto& buffer : watched) {
    std::fill(buffer->writer.begin(), buffer->writer.end(), 0u);
  }
  machine.error.clear();
  machine.kernel = kernel;
  machine.buffers = buffers;
  machine.threadgroup_serial = 0;
  machine.arrays.clear();
  machine.fibers.resize(num_threads);
  std::mt19937 random(schedule);
  for (unsigned z = 0; z < threadgroups.z; ++z) {
    for (unsigned y = 0; y < threadgroups.y; ++y) {
      for (unsigned x = 0; x < threadgroups.x; ++x) {
        ++machine.epoch;
        machine.simdgroups.clear();
        for (unsigned i = 0; i < num_threads; i += kSimdWidth) {
          machine.simdgroups.push_back(std::make_unique<Simdgroup>());
        }
        for (unsigned i = 0; i < num_threads; ++i) {
          prepare(machine.fibers[i], i, {x, y, z}, threadgroups, threads);
        }
        machine.num_live = num_threads;
        machine.num_in_barrier = 0;
        run_threadgroup(schedule, random);
        ++machine.threadgroup_serial;
      }
    }
  }
}

void watch_buffer(
    const char* name,
    const void* data,
    size_t num_bytes,
    bool writable) {
  auto buffer = std::make_unique<Buffer>();
  buffer->name = name;
  buffer->begin = static_cast<const char*>(data);
  buffer->num_bytes = num_bytes;
  buffer->writable = writable;
  buffer->traffic = {};
  buffer->loaded.resize(num_bytes);
  if (writable) {
    buffer->writer.resize(num_bytes);
  }
  watched.push_back(std::move(buffer));
}

void forget_buffers() {
  watched.clear();
}

Traffic traffic(const char* name) {
  for (const auto& buffer : watched) {
    if (buffer->name == name) {
      Traffic result = buffer->traffic;
      result.distinct_load_bytes = static_cast<uint64_t>(
          std::count(buffer->loaded.begin(), buffer->loaded.end(), true));
      return result;
    }
  }
  throw std::runtime_error(std::string("no watched buffer ") + name);
}

uint64_t threadgroup_bytes() {
  uint64_t sum = 0;
  for (const ThreadgroupArray& array : machine.arrays) {
    sum += array.num_bytes;
  }
  return sum;
}

Counters counters() {
  return totals;
}

}  // namespace lockstep

// The hooks that -fsanitize-coverage=trace-loads,trace-stores calls.
#define LOCKSTEP_HOOK(width)                              \
  extern "C" void __sanitizer_cov_load##width(void* p) {  \
    lockstep::access(p, width, false);                    \
  }                                                       \
  extern "C" void __sanitizer_cov_store##width(void* p) { \
    lockstep::access(p, width, true);                     \
  }
LOCKSTEP_HOOK(1)
LOCKSTEP_HOOK(2)
LOCKSTEP_HOOK(4)
LOCKSTEP_HOOK(8)
LOCKSTEP_HOOK(16)
// Without a coverage type beside them, loads and stores are not traced at all;
// these are that type's hooks.
extern "C" __attribute__((weak)) void __sanitizer_cov_trace_pc_guard(
    uint32_t*) {}
extern "C" __attribute__((weak)) void __sanitizer_cov_trace_pc_guard_init(
    uint32_t*,
    uint32_t*) {}

// float -> bfloat, round to nearest even; libgcc 12 lacks it.
extern "C" __attribute__((weak)) __bf16 __truncsfbf2(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = value != value
                               ? (bits >> 16) | 0x40
                               : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const auto half_bits = static_cast<uint16_t>(rounded);
  __bf16 result;
  memcpy(&result, &half_bits, sizeof result);
  return result;
}
