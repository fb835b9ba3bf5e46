// What limits a decode step on this machine, measured: the two denominators
// of every share that Quire prints.
#pragma once

#include <cstddef>
#include <string_view>

#include "kernels/cpu/decode_engine.h"

namespace quire::cpu {

/** Ways to read memory; which is fastest depends on the CPU's prefetchers. */
enum class ReadLoop {
  Plain,      // loads only, hardware prefetch
  Ahead1KiB,  // software prefetch that far ahead
  Ahead4KiB,
};
inline constexpr ReadLoop kReadLoops[] = {
    ReadLoop::Plain,
    ReadLoop::Ahead1KiB,
    ReadLoop::Ahead4KiB};
std::string_view read_loop_name(ReadLoop loop);

/**
 * Seconds that the engine's threads need to load `num_bytes` once, each thread
 * one contiguous share, and do nothing else with them. Cold memory gives the
 * bandwidth roof: rotate `data` past the last cache between calls, take the
 * median of many, and of the loops the best.
 */
double time_read(
    DecodeEngine& engine,
    Isa isa,
    ReadLoop loop,
    const std::byte* data,
    std::size_t num_bytes);

/**
 * Multiply-adds (f32) per second of all the engine's threads at once, in
 * registers only: the best of `repeats` runs of about 0.2 ms each.
 */
double
measure_multiply_add_rate(DecodeEngine& engine, Isa isa, int repeats = 30);

}  // namespace quire::cpu
