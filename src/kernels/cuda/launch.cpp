#include "kernels/cuda/launch.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels/cuda/kernel_symbols.h"

namespace quire::cuda {
namespace {

const void* decode_symbol(const DecodeVariant& variant) {
  switch (variant.kv_dtype) {
    case DType::Float16:
      return decode_kernel_f16(variant);
    case DType::BFloat16:
      return decode_kernel_bf16(variant);
    case DType::Float32:
      return decode_kernel_f32(variant);
  }
  return nullptr;
}

int current_device() {
  int device = 0;
  QUIRE_CHECK_CUDA(cudaGetDevice(&device));
  return device;
}

// The driver's handle of a kernel on the current device, made once. A kernel
// with more than 48 KB of shared memory must be allowed it first.
CUfunction loaded(const void* symbol, int smem_bytes) {
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, std::pair<CUfunction, int>>
      functions;
  const std::lock_guard lock(mutex);
  auto& [function, allowed] = functions[{current_device(), symbol}];
  if (function == nullptr) {
    cudaFunction_t found = nullptr;
    QUIRE_CHECK_CUDA(cudaGetFuncBySymbol(&found, symbol));
    function = reinterpret_cast<CUfunction>(found);
  }
  if (smem_bytes > allowed) {
    QUIRE_CHECK_CUDA(cudaFuncSetAttribute(
        symbol, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes));
    allowed = smem_bytes;
  }
  return function;
}

// 132 SMs lie in GPCs of 16 or 18, which hold whole clusters only.
void count_clusters(DeviceLimits& limits) {
  DecodeVariant variant;
  variant.cluster = true;
  variant.max_stages = 2;
  const TileShape shape = tile_shape(
      2,
      variant.head_dim,
      variant.kv_heads,
      variant.max_heads,
      variant.max_stages,
      smem_class(limits.compute_capability));
  const void* const symbol = decode_symbol(variant);
  // More than half of an SM: no two CTAs share one, whatever the variant.
  const int smem_bytes = shape.smem_bytes(variant.max_heads);
  loaded(symbol, smem_bytes);
  for (int c = 2; c <= kMaxCluster; ++c) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(c), 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(c * limits.num_sms));
    config.blockDim = dim3(static_cast<unsigned>(shape.warps * kWarpSize));
    config.dynamicSmemBytes = static_cast<std::size_t>(smem_bytes);
    config.attrs = &attribute;
    config.numAttrs = 1;
    QUIRE_CHECK_CUDA(cudaOccupancyMaxActiveClusters(
        &limits.active_clusters[c], symbol, &config));
  }
}

// The compute capability that the code for this device was compiled for. A
// build holds code for some architectures only; to find that out at a launch
// would be too late for another path.
int code_capability(int compute_capability) {
  cudaFuncAttributes attributes = {};
  const cudaError_t status =
      cudaFuncGetAttributes(&attributes, decode_symbol({}));
  if (status != cudaSuccess) {
    cudaGetLastError();  // this error is dealt with here
    if (status != cudaErrorNoKernelImageForDevice &&
        status != cudaErrorInvalidDeviceFunction) {
      throw std::runtime_error(
          std::string("[cuda] cudaFuncGetAttributes: ") +
          cudaGetErrorString(status) + ".");
    }
    throw std::runtime_error(
        "[cuda] This build has no kernels for compute capability " +
        std::to_string(compute_capability / 10) + "." +
        std::to_string(compute_capability % 10) +
        " (CMAKE_CUDA_ARCHITECTURES): " + cudaGetErrorString(status) + ".");
  }
  return attributes.ptxVersion;
}

DeviceLimits query_limits(int device) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || device >= count) {
    cudaGetLastError();
    throw std::runtime_error(
        std::string("[cuda] No CUDA device ") + std::to_string(device) + ": " +
        (status != cudaSuccess ? cudaGetErrorString(status)
                               : "fewer devices are present") +
        ".");
  }
  DeviceLimits limits;
  int major = 0;
  int minor = 0;
  QUIRE_CHECK_CUDA(cudaDeviceGetAttribute(
      &major, cudaDevAttrComputeCapabilityMajor, device));
  QUIRE_CHECK_CUDA(cudaDeviceGetAttribute(
      &minor, cudaDevAttrComputeCapabilityMinor, device));
  QUIRE_CHECK_CUDA(cudaDeviceGetAttribute(
      &limits.num_sms, cudaDevAttrMultiProcessorCount, device));
  QUIRE_CHECK_CUDA(cudaDeviceGetAttribute(
      &limits.smem_per_cta_bytes,
      cudaDevAttrMaxSharedMemoryPerBlockOptin,
      device));
  // Two transfers a clock. Only tuning asks for it: where the driver does not
  // tell, the memory counts as slow.
  int clock_khz = 0;
  int bus_bits = 0;
  if (cudaDeviceGetAttribute(&clock_khz, cudaDevAttrMemoryClockRate, device) !=
          cudaSuccess ||
      cudaDeviceGetAttribute(
          &bus_bits, cudaDevAttrGlobalMemoryBusWidth, device) != cudaSuccess) {
    cudaGetLastError();  // this error is dealt with here
  } else {
    limits.memory_gb_per_s =
        static_cast<int>(2e-6 * clock_khz * (bus_bits / 8.0));
  }
  limits.compute_capability = code_capability(10 * major + minor);
  if (smem_class(limits.compute_capability) == SmemClass::Kb227) {
    count_clusters(limits);
  }
  return limits;
}

void launch_plain(
    const void* symbol,
    dim3 grid,
    cudaStream_t stream,
    const void* args) {
  if (grid.x == 0 || grid.y == 0) {
    return;
  }
  void* params[] = {const_cast<void*>(args)};
  QUIRE_CHECK_CUDA(
      cudaLaunchKernel(symbol, grid, dim3(kWriteThreads), params, 0, stream));
}

}  // namespace

void check_cuda(const char* call, cudaError_t status) {
  if (status != cudaSuccess) {
    throw std::runtime_error(
        std::string("[cuda] ") + call +
        " failed: " + cudaGetErrorString(status) + ".");
  }
}

DeviceLimits device_limits(int device, bool clusters) {
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;
  const std::lock_guard lock(mutex);
  auto it = known.find(device);
  if (it == known.end()) {
    it = known.emplace(device, query_limits(device)).first;
  }
  DeviceLimits limits = it->second;
  if (!clusters) {
    std::fill(
        std::begin(limits.active_clusters),
        std::end(limits.active_clusters),
        0);
  }
  return limits;
}

CUfunction decode_function(const DecodeLaunch& launch) {
  return loaded(decode_symbol(launch.variant), launch.smem_bytes);
}

void launch_decode(const DecodeLaunch& launch, cudaStream_t stream) {
  if (launch.grid == 0) {
    return;
  }
  decode_function(launch);
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(launch.grid));
  config.blockDim = dim3(static_cast<unsigned>(launch.cta_threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(launch.smem_bytes);
  config.stream = stream;
  config.attrs = attributes;
  if (launch.cluster > 1) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeClusterDimension;
    a.val.clusterDim = {static_cast<unsigned>(launch.cluster), 1, 1};
  }
  if (launch.overlap) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    a.val.programmaticStreamSerializationAllowed = 1;
  }
  DecodeKernelArgs args = launch.args;
  void* params[] = {&args};
  QUIRE_CHECK_CUDA(
      cudaLaunchKernelExC(&config, decode_symbol(launch.variant), params));
}

void init_workspace(void* workspace, std::int64_t bytes, cudaStream_t stream) {
  QUIRE_CHECK_CUDA(cudaMemsetAsync(
      workspace, 0xff, static_cast<std::size_t>(bytes), stream));
}

CUfunction kv_append_function(const KvAppendLaunch& launch) {
  return loaded(
      kv_append_kernel_symbol(launch.dtype, launch.kv_dtype, launch.elems), 0);
}

CUfunction copy_blocks_function() {
  return loaded(copy_blocks_kernel_symbol(), 0);
}

CUfunction fill_function() {
  return loaded(fill_kernel_symbol(), 0);
}

void launch_kv_append(const KvAppendLaunch& launch, cudaStream_t stream) {
  launch_plain(
      kv_append_kernel_symbol(launch.dtype, launch.kv_dtype, launch.elems),
      dim3(static_cast<unsigned>(launch.grid)),
      stream,
      &launch.args);
}

void launch_copy_blocks(const CopyBlocksLaunch& launch, cudaStream_t stream) {
  launch_plain(
      copy_blocks_kernel_symbol(),
      dim3(
          static_cast<unsigned>(launch.grid_x),
          static_cast<unsigned>(launch.grid_y)),
      stream,
      &launch.args);
}

}  // namespace quire::cuda
