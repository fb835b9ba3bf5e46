// Device memory for tests and benchmarks.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <utility>
#include <vector>

#include "kernels/cuda/launch.h"

namespace quire::cuda {

/** Owns `count` elements of device memory. */
template <class T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t count) : count_(count) {
    void* data = nullptr;
    check_cuda("cudaMalloc", cudaMalloc(&data, count * sizeof(T) + 16));
    data_ = static_cast<T*>(data);
  }
  explicit DeviceBuffer(const std::vector<T>& host)
      : DeviceBuffer(host.size()) {
    upload(host);
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        count_(std::exchange(other.count_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() {
    cudaFree(data_);
  }

  T* data() const {
    return data_;
  }
  std::size_t size() const {
    return count_;
  }
  void upload(const std::vector<T>& host) {
    check_cuda(
        "cudaMemcpy",
        cudaMemcpy(
            data_, host.data(), host.size() * sizeof(T), cudaMemcpyDefault));
  }
  std::vector<T> download() const {
    std::vector<T> host(count_);
    check_cuda(
        "cudaMemcpy",
        cudaMemcpy(host.data(), data_, count_ * sizeof(T), cudaMemcpyDefault));
    return host;
  }
  void fill(int byte) {
    check_cuda("cudaMemset", cudaMemset(data_, byte, count_ * sizeof(T)));
  }

 private:
  T* data_ = nullptr;
  std::size_t count_ = 0;
};

}  // namespace quire::cuda
