#include "kernels/cpu/roofs.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cpu/isa.h"

namespace quire::cpu {
namespace {

TEST_CASE("The read roof takes the time of its bytes, and stays inside them") {
  // A loop that the compiler drops would beat any cache.
  constexpr double kBytesPerSecond = 2e12;
  // Heap arrays of exactly the bytes: the address sanitizer sees an overrun.
  const std::vector<std::byte> data(std::size_t{16} << 20);
  DecodeEngine engine(2);
  for (const Isa isa : available_isas()) {
    for (const ReadLoop loop : kReadLoops) {
      CAPTURE(std::string(isa_name(isa)));
      CAPTURE(std::string(read_loop_name(loop)));
      double best = 1e9;
      for (int i = 0; i < 3; ++i) {
        best = std::min(
            best, time_read(engine, isa, loop, data.data(), data.size()));
      }
      CHECK(best > static_cast<double>(data.size()) / kBytesPerSecond);
    }
  }
}

TEST_CASE("The multiply-add roof is what a core of today can do") {
  DecodeEngine engine(1);
  for (const Isa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    const double rate = measure_multiply_add_rate(engine, isa, 3);
    CHECK(rate > 1e7);
    CHECK(rate < 1e12);  // 64 a cycle at 6 GHz is 4e11
  }
}

}  // namespace
}  // namespace quire::cpu
