#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace quire::cpu {

/** Floats on a cache line of their own; grows, never shrinks, keeps nothing. */
class AlignedBuffer {
 public:
  /** At least `size` floats of unspecified content. */
  float* reserve(std::size_t size) {
    if (size > size_) {
      data_.reset();
      size_ = 0;
      data_.reset(static_cast<float*>(
          ::operator new(size * sizeof(float), kAlignment)));
      size_ = size;
    }
    return data_.get();
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(float* data) const {
      ::operator delete(data, kAlignment);
    }
  };
  std::unique_ptr<float, Delete> data_;
  std::size_t size_ = 0;
};

}  // namespace quire::cpu
