#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace quire::fuzz {

// Takes values off the fuzzer's bytes; zeros when they are used up.
class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size)
      : data_(data), size_(size) {}

  template <typename T>
  T take() {
    T value{};
    const std::size_t n = std::min(sizeof(T), size_);
    std::memcpy(&value, data_, n);
    data_ += n;
    size_ -= n;
    return value;
  }

  template <typename T, std::size_t N>
  T pick(const T (&choices)[N]) {
    return choices[take<std::uint8_t>() % N];
  }

  // Mostly small values around a bound, now and then any value at all.
  std::int64_t near_bound(std::int64_t bound) {
    const auto kind = take<std::uint8_t>();
    if (kind < 200) {
      return kind % (bound + 1);
    }
    return kind < 230 ? bound - 2 + kind % 4 : take<std::int64_t>();
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

}  // namespace quire::fuzz
