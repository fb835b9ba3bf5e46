#include "mlx/metal_launch.h"

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include <mlx/backend/metal/device.h>

#include "mlx/gpu_cores.h"

namespace quire {
namespace {

// Threadgroups of paged_decode that one core holds at once, going by 17 KB of
// threadgroup memory each. Not measured on a device; QUIRE_NUM_SPLITS
// overrides what follows from it.
constexpr int kGroupsPerCore = 2;

mx::metal::Device& gpu() {
  return mx::metal::device(mx::Device::gpu);
}

MTL::ComputePipelineState* pipeline(const metal::KernelLaunch& launch) {
  MTL::Library* library = gpu().get_library(
      launch.kernel_name, [&launch] { return metal::kernel_text(launch); });
  return gpu().get_kernel(launch.kernel_name, library);
}

KernelSupport try_compile(const metal::KernelLaunch& launch) {
  try {
    const MTL::ComputePipelineState* state = pipeline(launch);
    const metal::Support fits = metal::fits_device(
        launch,
        {.max_threads =
             static_cast<int>(state->maxTotalThreadsPerThreadgroup()),
         .max_memory_bytes = static_cast<int>(
             gpu().mtl_device()->maxThreadgroupMemoryLength())});
    return {fits.ok, fits.reason};
  } catch (const std::exception& error) {
    return {
        false,
        "the Metal kernel " + launch.kernel_name +
            " does not compile on this system: " + error.what()};
  }
}

MTL::Size to_size(const std::array<int, 3>& v) {
  return MTL::Size(
      static_cast<NS::UInteger>(v[0]),
      static_cast<NS::UInteger>(v[1]),
      static_cast<NS::UInteger>(v[2]));
}

}  // namespace

KernelSupport compile_metal_kernel(const metal::KernelLaunch& launch) {
  static std::mutex mutex;
  static std::map<std::string, KernelSupport> known;
  const std::lock_guard lock(mutex);
  const auto found = known.find(launch.kernel_name);
  if (found != known.end()) {
    return found->second;
  }
  return known.emplace(launch.kernel_name, try_compile(launch)).first->second;
}

void enqueue_metal_kernel(
    const metal::KernelLaunch& launch,
    const OperandArray& array_of,
    mx::Stream stream) {
  auto& encoder = mx::metal::get_command_encoder(stream);
  encoder.set_compute_pipeline_state(pipeline(launch));
  int slot = 0;
  for (const metal::BufferBinding& binding : launch.buffers) {
    mx::array& array = array_of(binding.operand);
    if (binding.written) {
      encoder.set_output_array(array, slot++, binding.byte_offset);
    } else {
      encoder.set_input_array(array, slot++, binding.byte_offset);
    }
  }
  encoder.set_vector_bytes(launch.constants, slot);
  encoder.dispatch_threadgroups(
      to_size(launch.num_threadgroups), to_size(launch.num_threads));
}

DecodeDevice metal_decode_device() {
  static const int num_cores = gpu_core_count(gpu().get_architecture());
  return {.num_cores = num_cores, .groups_per_core = kGroupsPerCore};
}

}  // namespace quire
