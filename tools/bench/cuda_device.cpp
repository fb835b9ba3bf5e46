// Roofs and kernel times on CUDA: replays of graphs of launches, so that no
// host time is in them, each launch on other bytes than the one before.
#include <algorithm>
#include <cstddef>
#include <limits>

#include "benchmarks/cuda/graph_replay.h"
#include "benchmarks/cuda/read_bandwidth.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/launch.h"
#include "tools/bench/device.h"

namespace quire::bench {
namespace {

using cuda::DeviceBuffer;
using Bytes = DeviceBuffer<std::byte>;

// A replay reads about so many bytes: milliseconds, beside which the launch of
// the graph is nothing.
constexpr std::int64_t kReplayBytes = std::int64_t{16} << 30;
constexpr int kMostLaunches = 1000;

/** Launches of a replay: whole turns over `num_sets`. */
int replay_launches(std::int64_t num_bytes, int num_sets) {
  const auto wanted = static_cast<int>(
      std::clamp<std::int64_t>(kReplayBytes / num_bytes, 2, kMostLaunches));
  return (wanted + num_sets - 1) / num_sets * num_sets;
}

template <class T>
DeviceBuffer<T> upload(const void* from, std::int64_t count) {
  DeviceBuffer<T> to(static_cast<std::size_t>(count));
  QUIRE_CHECK_CUDA(
      cudaMemcpy(to.data(), from, to.size() * sizeof(T), cudaMemcpyDefault));
  return to;
}

/** The data of a cell on the device, and its launches. */
struct KernelRun {
  explicit KernelRun(const CacheData& data) {
    const DecodeArgs first = data.args(0);
    const DecodeParams& p = first.params;
    const std::int64_t q_bytes =
        std::int64_t{p.num_seqs} * p.num_q_heads * p.head_dim *
        static_cast<std::int64_t>(dtype_bytes(first.q_dtype));
    const std::int64_t cache_bytes =
        std::int64_t{p.num_blocks} * p.block_size * p.num_kv_heads *
        p.head_dim * static_cast<std::int64_t>(dtype_bytes(first.kv_dtype));
    q = upload<std::byte>(first.q, q_bytes);
    k = upload<std::byte>(first.k_cache, cache_bytes);
    v = upload<std::byte>(first.v_cache, cache_bytes);
    lens = upload<std::int32_t>(first.seq_lens, p.num_seqs);
    for (int set = 0; set < data.num_sets(); ++set) {
      tables.push_back(upload<std::int32_t>(
          data.args(set).block_table,
          std::int64_t{p.num_seqs} * p.max_blocks_per_seq));
    }
    out = Bytes(static_cast<std::size_t>(q_bytes));
    out.fill(0xff);  // NaN until it is written

    cuda::DecodeChoice choice = cuda::choose_decode_launch(
        p, first.q_dtype, first.kv_dtype, cuda::device_limits(0, true));
    workspace = Bytes(static_cast<std::size_t>(choice.launch.workspace_bytes));
    workspace.fill(0xff);
    launch = choice.launch;
    launch.args.q = q.data();
    launch.args.k_cache = k.data();
    launch.args.v_cache = v.data();
    launch.args.seq_lens = lens.data();
    launch.args.out = out.data();
    launch.args.mail = reinterpret_cast<float*>(workspace.data());
    // The last launch of a replay computes set 0.
    const int num_sets = data.num_sets();
    num_launches = replay_launches(data.total_kv_bytes() / num_sets, num_sets);
    replay = std::make_unique<GraphReplay>(
        num_launches, [&](int i, cudaStream_t stream) {
          cuda::DecodeLaunch l = launch;
          l.args.block_table =
              tables[static_cast<std::size_t>(num_sets - 1 - i % num_sets)]
                  .data();
          launch_decode(l, stream);
        });
  }

  Bytes q, k, v, out, workspace;
  DeviceBuffer<std::int32_t> lens;
  std::vector<DeviceBuffer<std::int32_t>> tables;
  cuda::DecodeLaunch launch;
  int num_launches = 0;
  std::unique_ptr<GraphReplay> replay;
  std::vector<std::byte> host_out;
};

/** Memory that is only read. */
struct ReadMemory {
  ReadMemory(std::int64_t size, std::int64_t smallest_half)
      : size_bytes(size),
        half_bytes(std::max(size / 2 / 16 * 16, smallest_half)),
        a(static_cast<std::size_t>(half_bytes)),
        b(static_cast<std::size_t>(half_bytes)),
        sink(16) {
    a.fill(1);
    b.fill(2);
  }

  std::int64_t size_bytes;  // as asked for
  std::int64_t half_bytes;
  Bytes a, b, sink;
};

class CudaDevice final : public Device {
 public:
  CudaDevice() {
    QUIRE_CHECK_CUDA(cudaGetDeviceProperties(&properties_, 0));
  }

  std::string fused_path() const override {
    return "fused_cuda";
  }
  // Tensor cores take weights of the cache's type, cuDNN's as well as ours.
  testing::Rounding rounding() const override {
    return {.weights_to_kv_dtype = true};
  }
  std::int64_t cache_bytes() const override {
    return properties_.l2CacheSize;
  }
  std::int64_t available_bytes() const override {
    std::size_t free_bytes = 0;
    std::size_t total_bytes = 0;
    QUIRE_CHECK_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
    return static_cast<std::int64_t>(free_bytes);
  }
  int num_pools() const override {
    return 2;  // KernelRun copies it
  }
  std::string why_not_fused(const Shape& shape) const override {
    return cuda::choose_decode_launch(
               decode_params(shape, 1),
               shape.q_dtype,
               shape.kv_dtype,
               cuda::device_limits(0, true))
        .reason;
  }

  Path make_kernel_path(const CacheData& data) override {
    const auto run = std::make_shared<KernelRun>(data);
    Path path;
    path.name = "fused";
    path.timing = "kernel";
    path.must_run = fused_path();
    path.uncounted = fused_path();  // the counters are the op's
    path.q_dtype = data.shape().q_dtype;
    path.kv_dtype = data.shape().kv_dtype;
    path.num_sets = 1;  // a replay rotates by itself
    path.steps = run->num_launches;
    path.run = [run](int) { run->replay->run(); };
    path.output = [run] {
      run->host_out = run->out.download();
      return static_cast<const void*>(run->host_out.data());
    };
    return path;
  }

  std::vector<Read> make_reads(std::int64_t size_bytes, std::int64_t num_bytes)
      override {
    const std::int64_t half =
        std::max<std::int64_t>(16, num_bytes / 2 / 16 * 16);
    if (memory_ == nullptr || memory_->half_bytes < half ||
        memory_->size_bytes != size_bytes) {
      memory_.reset();  // before the next one takes as much
      memory_ = std::make_shared<ReadMemory>(size_bytes, half);
    }
    const auto places = static_cast<int>(
        std::clamp<std::int64_t>(memory_->half_bytes / half, 1, kMostLaunches));
    const int num_launches = replay_launches(num_bytes, places);
    std::vector<Read> reads;
    for (int kernel = 0; kernel < num_read_kernels(); ++kernel) {
      const auto replay = std::make_shared<GraphReplay>(
          num_launches, [&](int i, cudaStream_t stream) {
            const std::int64_t at = i % places * half;
            launch_read(
                kernel,
                memory_->a.data() + at,
                memory_->b.data() + at,
                half,
                memory_->sink.data(),
                stream);
          });
      reads.push_back(
          {.run = [replay, memory = memory_] { replay->run(); },
           .steps = num_launches});
    }
    return reads;
  }

  // A decode step does some operations with each byte that it reads, a GPU some
  // hundred in the time: arithmetic is no roof of it.
  double multiply_add_rate() override {
    return std::numeric_limits<double>::infinity();
  }

 private:
  cudaDeviceProp properties_ = {};
  std::shared_ptr<ReadMemory> memory_;
};

}  // namespace

std::unique_ptr<Device> make_cuda_device() {
  return std::make_unique<CudaDevice>();
}

}  // namespace quire::bench
