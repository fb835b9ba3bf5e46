// Runs a Metal kernel that was compiled as C++: one fiber a thread, in lock
// step where simdgroup functions and barriers demand it.
//
// Found and reported while it runs: simdgroup functions in divergent code,
// barriers that not all threads reach, races in threadgroup memory, two threads
// that write the same device byte, stores to read-only buffers. Counted: every
// device load and store with its width, simd operations, exponentials,
// barriers, threadgroup accesses. Loads and stores are seen only in kernels
// compiled with
// -fsanitize-coverage=func,trace-pc-guard,trace-loads,trace-stores.
//
// The kernels' translation units include this file through shim/metal_stdlib,
// and no header of libstdc++: MLX's kernels define ::log1p and others.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace lockstep {

struct Id3 {
  unsigned x, y, z;
};

/// All that a Metal thread can ask about itself.
struct ThreadIds {
  Id3 threadgroup_position;
  Id3 threadgroups_per_grid;
  Id3 threads_per_threadgroup;
  Id3 position_in_threadgroup;
  Id3 position_in_grid;
  Id3 threads_per_grid;
  unsigned index_in_threadgroup;
  unsigned simdgroup_index;
  unsigned simd_lane;
  unsigned num_simdgroups;
};

/// Where in the kernel an operation stands; lanes in lock step must agree.
struct Site {
  const char* op;
  const char* file;
  int line;
  int column;
};

/// Buffers in slot order, as the generated launchers expect them.
using KernelFn = void (*)(const ThreadIds&, void* const* buffers);

/// A kernel that the generated code offers under its host name.
struct KernelEntry {
  const char* name;
  KernelFn run;
};

// --- Called by kernels, through shim/metal_stdlib ---------------------------

enum class SimdOp { Reduction, Shuffle, Vote, Product };

constexpr unsigned kSlotBytes = 64;  // of one lane in an exchange

/// What the lanes of a simdgroup brought to a simdgroup function.
struct Peers {
  const unsigned char* slots;  // [32][kSlotBytes]
  uint32_t active;             // bit per lane that takes part
  unsigned lane;               // the caller
};

Peers simd_exchange(
    const void* value,
    unsigned num_bytes,
    SimdOp kind,
    const Site& site);
void threadgroup_barrier(bool orders_threadgroup_memory, const Site& site);
void simdgroup_barrier(bool orders_threadgroup_memory, const Site& site);
void count_exp();
/// Every thread names each of its kernel's threadgroup arrays before it uses
/// it. The first thread of a threadgroup finds it filled with NaN.
void use_threadgroup_array(void* data, size_t num_bytes);

// --- Called by the harness ---------------------------------------------------

/// Runs every threadgroup, one after another. `schedule` 0 runs the threads in
/// order, any other value in an order of its own that changes at every switch.
/// Throws std::runtime_error on the first violation.
void dispatch(
    Id3 threadgroups,
    Id3 threads_per_threadgroup,
    KernelFn kernel,
    void* const* buffers,
    unsigned schedule = 0);

/// From now on loads and stores of [data, data + num_bytes) are counted, and
/// stores checked. Overlapping buffers are not allowed.
void watch_buffer(
    const char* name,
    const void* data,
    size_t num_bytes,
    bool writable);
void forget_buffers();

struct Traffic {
  uint64_t load_bytes;
  uint64_t store_bytes;
  uint64_t distinct_load_bytes;
  uint64_t loads[17];  // loads[w]: loads of w bytes
};
Traffic traffic(const char* name);

/// Bytes of the threadgroup arrays of the last kernel dispatched.
uint64_t threadgroup_bytes();

/// Counts over all threads since the program began.
struct Counters {
  uint64_t reductions;
  uint64_t shuffles;
  uint64_t votes;
  uint64_t products;  // of 8 x 8 matrices, once a lane
  uint64_t exps;
  uint64_t threadgroup_barriers;
  uint64_t simdgroup_barriers;
  uint64_t threadgroup_loads;
  uint64_t threadgroup_stores;
};
Counters counters();

}  // namespace lockstep
