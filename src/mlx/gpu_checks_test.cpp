#include "mlx/gpu_checks.h"

#include <doctest/doctest.h>

#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

namespace quire {

// Stands in for a GPU backend's.
void download(const mx::array& a, void* to, mx::Stream) {
  std::memcpy(to, a.data<void>(), a.nbytes());
}

namespace {

template <class T>
mx::array evaluated(const std::vector<T>& values, const mx::Shape& shape) {
  mx::array a(values.begin(), shape);
  mx::eval(a);
  return a;
}

mx::Stream stream() {
  return mx::default_stream(mx::Device::cpu);
}

}  // namespace

TEST_CASE("slots other than -1 and those of the cache are refused") {
  const auto check = [](std::int64_t slot) {
    check_slots(evaluated<std::int64_t>({3, slot, 0}, {3}), 160, stream());
  };
  CHECK_NOTHROW(check(-1));
  CHECK_NOTHROW(check(159));
  for (const std::int64_t slot :
       {std::int64_t{-2}, std::int64_t{160}, std::int64_t{1} << 40}) {
    const std::string text = "160; got " + std::to_string(slot) + ".";
    CHECK_THROWS_WITH_AS(
        check(slot), doctest::Contains(text.c_str()), std::runtime_error);
  }
}

TEST_CASE("block copies from and to ids outside the pool are refused") {
  const auto check = [](std::int32_t source, std::int32_t target) {
    check_block_copies(
        evaluated<std::int32_t>({0, 1, source, target}, {2, 2}), 5, stream());
  };
  CHECK_NOTHROW(check(4, 0));
  CHECK_THROWS_WITH_AS(
      check(5, 0), doctest::Contains("5; got 5."), std::runtime_error);
  CHECK_THROWS_WITH_AS(
      check(0, -1), doctest::Contains("5; got -1."), std::runtime_error);
}

TEST_CASE("block ids and lengths of a decode step are checked") {
  const DecodeParams params{
      .num_seqs = 2, .num_blocks = 4, .block_size = 8, .max_blocks_per_seq = 2};
  constexpr std::int32_t kUnused = std::numeric_limits<std::int32_t>::max();
  const auto check = [&](std::int32_t block, std::int32_t seq_len, int bound) {
    check_decode_step(
        params,
        bound,
        evaluated<std::int32_t>({block, 3, 0, kUnused}, {2, 2}),
        evaluated<std::int32_t>({seq_len, 8}, {2}),
        stream());
  };
  CHECK_NOTHROW(check(1, 16, 0));
  CHECK_NOTHROW(check(kUnused, 0, 8));
  CHECK_THROWS_AS(check(4, 1, 0), std::runtime_error);
  CHECK_THROWS_AS(check(-1, 9, 0), std::runtime_error);
  CHECK_THROWS_AS(check(1, 17, 0), std::runtime_error);
  CHECK_THROWS_AS(check(1, -1, 0), std::runtime_error);
  CHECK_THROWS_AS(check(1, 10, 9), std::runtime_error);
}

}  // namespace quire
