#include "mlx/cuda_buffers.h"

#include <map>
#include <mutex>
#include <vector>

#include <mlx/backend/cuda/allocator.h>
#include <mlx/backend/cuda/utils.h>

#include "kernels/cuda/launch.h"

namespace quire {
namespace {

using mx::cu::CudaBuffer;

// Freed buffers by device and size. Never destroyed: arrays may outlive it.
class BufferCache {
 public:
  static BufferCache& instance() {
    static auto* const cache = new BufferCache;
    return *cache;
  }

  mx::allocator::Buffer allocate(
      std::size_t bytes,
      mx::cu::CommandEncoder& encoder) {
    constexpr std::size_t kGrain = 512;
    const std::size_t size = (bytes + kGrain - 1) / kGrain * kGrain;
    const int device = encoder.device().cuda_device();
    {
      const std::lock_guard lock(mutex_);
      std::vector<CudaBuffer*>& list = free_[{device, size}];
      if (!list.empty()) {
        CudaBuffer* const buffer = list.back();
        list.pop_back();
        free_bytes_ -= size;
        return mx::allocator::Buffer{buffer};
      }
    }
    void* data = nullptr;
    QUIRE_CHECK_CUDA(cudaMallocAsync(&data, size, encoder.stream()));
    return mx::allocator::Buffer{new CudaBuffer{data, size, device}};
  }

  void release(CudaBuffer* buffer) {
    if (buffer->device >= 0) {
      const std::lock_guard lock(mutex_);
      if (free_bytes_ + buffer->size <= kMostFreeBytes) {
        free_[{buffer->device, buffer->size}].push_back(buffer);
        free_bytes_ += buffer->size;
        return;
      }
      cudaFree(buffer->data);
    } else {
      // Read on the host: MLX has moved it to managed or pinned memory.
      cudaPointerAttributes attributes = {};
      cudaPointerGetAttributes(&attributes, buffer->data);
      if (attributes.type == cudaMemoryTypeHost) {
        cudaFreeHost(buffer->data);
      } else {
        cudaFree(buffer->data);
      }
    }
    delete buffer;
  }

 private:
  static constexpr std::size_t kMostFreeBytes = std::size_t{256} << 20;

  std::mutex mutex_;
  std::map<std::pair<int, std::size_t>, std::vector<CudaBuffer*>> free_;
  std::size_t free_bytes_ = 0;
};

void set_device_data(mx::array& a, mx::cu::CommandEncoder& encoder) {
  a.set_data(mx::allocator::Data(
      BufferCache::instance().allocate(a.nbytes(), encoder),
      [](mx::allocator::Buffer buffer) {
        BufferCache::instance().release(static_cast<CudaBuffer*>(buffer.ptr()));
      }));
}

}  // namespace

void allocate_on_device(mx::array& out, mx::cu::CommandEncoder& encoder) {
  set_device_data(out, encoder);
}

const mx::array& stream_workspace(
    mx::Stream stream,
    mx::cu::CommandEncoder& encoder,
    std::int64_t bytes) {
  // Never destroyed: MLX may be gone before the end of the program.
  static auto* const workspaces = new std::map<int, mx::array>;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  const auto known = workspaces->find(stream.index);
  if (known != workspaces->end()) {
    if (known->second.nbytes() >= static_cast<std::size_t>(bytes)) {
      return known->second;
    }
    encoder.add_temporary(known->second);  // launches under way still use it
    workspaces->erase(known);
  }
  constexpr std::int64_t kGrain = 1 << 20;
  const std::int64_t size = (bytes + kGrain - 1) / kGrain * kGrain;
  mx::array fresh(
      {static_cast<mx::ShapeElem>(size / 4)}, mx::uint32, nullptr, {});
  set_device_data(fresh, encoder);
  uint32_t* words = mx::gpu_ptr<uint32_t>(fresh);
  std::int64_t count = size / 16;
  encoder.set_output_array(fresh);
  encoder.add_kernel_node_ex(
      cuda::fill_function(),
      dim3(64),
      dim3(cuda::kWriteThreads),
      {},
      0,
      words,
      count);
  return workspaces->emplace(stream.index, std::move(fresh)).first->second;
}

}  // namespace quire
