// Times of the Metal kernels on NVIDIA lanes, each instantiation worth trying,
// beside MLX's dense two-pass kernel through the same shim and beside kernels
// that only read the same bytes, all in one run. Medians over replays of a
// graph of launches; inputs are rotated past the L2.
//
// A warp is not an Apple simdgroup: such times order designs, they predict
// none of an Apple GPU.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device_reference.h"
#include "cuda/graph_replay.h"
#include "cuda/read_bandwidth.h"
#include "kernels/cuda/device_buffer.h"
#include "nv_launch.h"

namespace quire::metal_nv {
namespace {

using cuda::DeviceBuffer;
using Bytes = DeviceBuffer<std::byte>;

constexpr int kBlockSize = 32;
constexpr int kHeadDim = 128;
constexpr int kNumKvHeads = 8;
constexpr double kTolerance = 1e-3;  // of the largest |out - reference|

// Median seconds of run(i, stream), i counting up over `launches`.
double seconds_of(
    int launches,
    const std::function<void(int, cudaStream_t)>& run) {
  bench::GraphReplay replay(launches, run);
  std::vector<float> ms;
  for (int i = 0; i < 17; ++i) {
    const float t = replay.run();
    if (i >= 2) {
      ms.push_back(t);
    }
  }
  std::sort(ms.begin(), ms.end());
  return static_cast<double>(ms[ms.size() / 2]) * 1e-3 / launches;
}

struct Best {
  double seconds = 1.0;
  std::string what;
};

// One cell: `num_seqs` sequences of `seq_len` tokens, f16. The same bytes are
// K and V of the pool and of the dense cache.
class Cell {
 public:
  Cell(int num_seqs, int seq_len, int num_cores)
      : num_seqs_(num_seqs),
        seq_len_(seq_len),
        num_cores_(num_cores),
        set_bytes_(
            std::int64_t{num_seqs} * seq_len * kNumKvHeads * kHeadDim * 2),
        sets_(static_cast<int>(
            std::max<std::int64_t>(3, 220000000 / (2 * set_bytes_) + 2))),
        launches_(sets_ * ((23 + sets_) / sets_)),
        k_(static_cast<std::size_t>(sets_ * set_bytes_)),
        v_(static_cast<std::size_t>(sets_ * set_bytes_)),
        lens_(std::vector<std::int32_t>(
            static_cast<std::size_t>(num_seqs),
            seq_len)),
        host_lens_(static_cast<std::size_t>(num_seqs), seq_len) {
    bench::launch_fill_normal(k_.data(), sets_ * set_bytes_ / 2, 1, 1, nullptr);
    bench::launch_fill_normal(v_.data(), sets_ * set_bytes_ / 2, 2, 1, nullptr);
    Bytes sink(16);
    for (int kernel = 0; kernel < bench::num_read_kernels(); ++kernel) {
      const double t = seconds_of(launches_, [&](int i, cudaStream_t stream) {
        bench::launch_read(
            kernel, k_set(i), v_set(i), set_bytes_, sink.data(), stream);
      });
      read_ = std::min(read_, t);
    }
  }

  void run(int group_size) {
    const int num_q_heads = group_size * kNumKvHeads;
    const std::int64_t q_elems =
        std::int64_t{num_seqs_} * num_q_heads * kHeadDim;
    Bytes q(static_cast<std::size_t>(q_elems * 2));
    Bytes out(static_cast<std::size_t>(q_elems * 2));
    bench::launch_fill_normal(q.data(), q_elems, 3, 1, nullptr);
    const Best paged = time_paged(group_size, q, out);
    std::printf(
        "%d/%d/%d  %d x %-6d %7.1f MB  read %7.2f us  paged %7.2f us %5.1f %% "
        "(%s)\n",
        num_q_heads,
        kNumKvHeads,
        kHeadDim,
        num_seqs_,
        seq_len_,
        static_cast<double>(2 * set_bytes_) * 1e-6,
        read_ * 1e6,
        paged.seconds * 1e6,
        100 * read_ / paged.seconds,
        paged.what.c_str());
    for (const bool merged : {false, true}) {
      const Best dense = time_dense(group_size, merged, q, out);
      std::printf(
          "    dense two-pass%s %7.2f us %5.1f %% (%s): paged is %.2f times as "
          "fast\n",
          merged ? ", loads merged" : "              ",
          dense.seconds * 1e6,
          100 * read_ / dense.seconds,
          dense.what.c_str(),
          dense.seconds / paged.seconds);
    }
    std::fflush(stdout);
  }

 private:
  std::byte* k_set(int i) const {
    return k_.data() + i % sets_ * set_bytes_;
  }
  std::byte* v_set(int i) const {
    return v_.data() + i % sets_ * set_bytes_;
  }

  // The largest error of `out` against a reference over set 0.
  void check(const DecodeArgs& args, const Bytes& out, std::int64_t n) const {
    DeviceBuffer<float> reference(static_cast<std::size_t>(n));
    bench::launch_device_reference(args, reference.data(), nullptr);
    const double error =
        bench::max_abs_error(out.data(), DType::Float16, reference.data(), n);
    if (!(error <= kTolerance)) {
      throw std::runtime_error("wrong by " + std::to_string(error));
    }
  }

  Best time_paged(int group_size, const Bytes& q, Bytes& out) {
    const int width = seq_len_ / kBlockSize;
    std::vector<std::int32_t> ids(static_cast<std::size_t>(num_seqs_ * width));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(11));
    DeviceBuffer<std::int32_t> table(ids);
    DecodeArgs args;
    args.params = {
        .num_seqs = num_seqs_,
        .num_q_heads = group_size * kNumKvHeads,
        .num_kv_heads = kNumKvHeads,
        .head_dim = kHeadDim,
        .num_blocks = num_seqs_ * width,
        .block_size = kBlockSize,
        .max_blocks_per_seq = width,
        .scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim))};
    args.q_dtype = args.kv_dtype = DType::Float16;
    args.seq_lens = host_lens_.data();
    Best best;
    for (const metal::DecodeVariant& variant : metal::decode_variants(
             DType::Float16, DType::Float16, kHeadDim, group_size)) {
      // What fills the lanes once, and multiples of it.
      const int wave = std::max(
          1,
          num_cores_ * 16 /
              (variant.simdgroups * num_seqs_ *
               metal::groups_per_split(args.params, variant)));
      for (const int num_splits :
           {0,
            wave / 2,
            wave * 3 / 4,
            wave,
            wave * 3 / 2,
            wave * 2,
            wave * 3,
            wave * 4}) {
        args.params.num_splits = num_splits;
        const metal::DecodeLaunch launch =
            make_launch(args, variant, num_cores_);
        if (!is_compiled_in(launch)) {
          continue;
        }
        Bytes workspace(static_cast<std::size_t>(launch.workspace_bytes));
        workspace.fill(0xff);
        const auto enqueue_set = [&](int i, cudaStream_t stream) {
          Operands operands{};
          const auto set = [&](metal::Operand operand, void* data) {
            operands[static_cast<std::size_t>(operand)] = data;
          };
          set(metal::Operand::Q, q.data());
          set(metal::Operand::KCache, k_set(i));
          set(metal::Operand::VCache, v_set(i));
          set(metal::Operand::BlockTable, table.data());
          set(metal::Operand::SeqLens, lens_.data());
          set(metal::Operand::Out, out.data());
          set(metal::Operand::Workspace, workspace.data());
          for (const metal::KernelLaunch& kernel : launch.kernels) {
            enqueue(kernel, operands, stream);
          }
        };
        out.fill(0xff);
        enqueue_set(0, nullptr);
        DecodeArgs device_args = args;
        device_args.q = q.data();
        device_args.k_cache = k_set(0);
        device_args.v_cache = v_set(0);
        device_args.block_table = table.data();
        device_args.seq_lens = lens_.data();
        check(
            device_args,
            out,
            std::int64_t{num_seqs_} * args.params.num_q_heads * kHeadDim);
        const double t = seconds_of(launches_, enqueue_set);
        if (t < best.seconds) {
          const int made = launch.kernels.size() > 1
                               ? launch.kernels[0].num_threadgroups[1]
                               : 1;
          best = {
              t,
              std::to_string(variant.lanes) + " lanes, " +
                  std::to_string(variant.rows) +
                  (variant.matrix ? " rows, matrices, " : " rows, ") +
                  std::to_string(variant.simdgroups) + " simdgroups, " +
                  std::to_string(made) + " splits"};
        }
      }
    }
    return best;
  }

  Best time_dense(int group_size, bool merged, const Bytes& q, Bytes& out) {
    const std::string prefix = merged ? "mlx_merged_" : "mlx_";
    const int num_q_heads = group_size * kNumKvHeads;
    Best best;
    for (const int num_blocks : {32, 64, 128, 256, 512, 1024}) {
      set_function_constant(prefix + "blocks", num_blocks);
      const auto rows =
          static_cast<std::size_t>(num_seqs_ * num_q_heads * num_blocks);
      Bytes partial(rows * kHeadDim * 2);
      DeviceBuffer<float> sums(rows);
      DeviceBuffer<float> maxs(rows);
      const auto enqueue_set = [&](int i, cudaStream_t stream) {
        nv::Slots first{};
        const auto set = [](nv::Slots& slots, int slot, auto value) {
          static_assert(sizeof value <= sizeof(nv::Slot), "fits");
          std::memcpy(slots.slot[slot].bytes, &value, sizeof value);
        };
        set(first, 0, q.data());
        set(first, 1, k_set(i));
        set(first, 2, v_set(i));
        set(first, 3, partial.data());
        set(first, 4, sums.data());
        set(first, 5, maxs.data());
        set(first, 7, seq_len_);
        const std::size_t head_stride =
            static_cast<std::size_t>(seq_len_) * kHeadDim;
        set(first, 8, head_stride);
        set(first, 9, std::size_t{kHeadDim});
        set(first, 10, head_stride);
        set(first, 11, std::size_t{kHeadDim});
        set(first, 12, 1.0f / std::sqrt(static_cast<float>(kHeadDim)));
        enqueue(
            find_kernel(prefix + "sdpa_vector_2pass_1"),
            {kNumKvHeads, num_seqs_, num_blocks},
            {32, group_size, 1},
            first,
            stream);
        nv::Slots second{};
        set(second, 0, partial.data());
        set(second, 1, sums.data());
        set(second, 2, maxs.data());
        set(second, 3, out.data());
        set(second, 4, num_blocks);
        enqueue(
            find_kernel(prefix + "sdpa_vector_2pass_2"),
            {num_seqs_ * num_q_heads, 1, 1},
            {1024, 1, 1},
            second,
            stream);
      };
      out.fill(0xff);
      enqueue_set(0, nullptr);
      check_dense(group_size, q, out);
      const double t = seconds_of(launches_, enqueue_set);
      if (t < best.seconds) {
        best = {t, std::to_string(num_blocks) + " blocks"};
      }
    }
    return best;
  }

  // A KV head of a dense cache is a sequence of whole blocks of its own.
  void check_dense(int group_size, const Bytes& q, const Bytes& out) const {
    const int num_rows = num_seqs_ * kNumKvHeads;
    const int width = seq_len_ / kBlockSize;
    std::vector<std::int32_t> ids(static_cast<std::size_t>(num_rows * width));
    std::iota(ids.begin(), ids.end(), 0);
    DeviceBuffer<std::int32_t> table(ids);
    DeviceBuffer<std::int32_t> lens(std::vector<std::int32_t>(
        static_cast<std::size_t>(num_rows), seq_len_));
    DecodeArgs args;
    args.params = {
        .num_seqs = num_rows,
        .num_q_heads = group_size,
        .num_kv_heads = 1,
        .head_dim = kHeadDim,
        .num_blocks = num_rows * width,
        .block_size = kBlockSize,
        .max_blocks_per_seq = width,
        .scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim))};
    args.q_dtype = args.kv_dtype = DType::Float16;
    args.q = q.data();
    args.k_cache = k_set(0);
    args.v_cache = v_set(0);
    args.block_table = table.data();
    args.seq_lens = lens.data();
    check(args, out, std::int64_t{num_rows} * group_size * kHeadDim);
  }

  int num_seqs_;
  int seq_len_;
  int num_cores_;
  std::int64_t set_bytes_;  // of K, and of V
  int sets_;
  int launches_;
  Bytes k_;
  Bytes v_;
  DeviceBuffer<std::int32_t> lens_;
  std::vector<std::int32_t> host_lens_;
  double read_ = 1.0;
};

void run() {
  cudaDeviceProp properties;
  QUIRE_CHECK_CUDA(cudaGetDeviceProperties(&properties, 0));
  const int num_cores = properties.multiProcessorCount;
  std::printf(
      "%s, %d multiprocessors; f16, block %d\n",
      properties.name,
      num_cores,
      kBlockSize);
  for (const auto& [num_seqs, seq_len] :
       {std::pair{1, 4096}, {1, 16384}, {4, 4096}, {4, 16384}}) {
    Cell cell(num_seqs, seq_len, num_cores);
    for (const int group_size : {4, 8, 16}) {
      if (group_size == 4 || (num_seqs == 4 && seq_len == 16384)) {
        cell.run(group_size);
      }
    }
  }
}

}  // namespace
}  // namespace quire::metal_nv

int main() {
  try {
    quire::metal_nv::run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "quire_metal_nv_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
