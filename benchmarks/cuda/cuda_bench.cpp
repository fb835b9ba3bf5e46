// Device times of the CUDA kernels, without MLX: medians over replays of a
// graph of launches, inputs rotated past the L2, beside kernels that only read
// the same bytes in the same run.
//
//   quire_cuda_bench [--json FILE] [--only GEOMETRY] [--cells NAME,NAME]
//                    [--block-size N]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "device_reference.h"
#include "graph_replay.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/launch.h"
#include "read_bandwidth.h"

namespace quire::bench {
namespace {

using cuda::check_cuda;
using cuda::DecodeLaunch;
using cuda::DeviceBuffer;

struct Geometry {
  std::string name;  // q heads/KV heads/head dim
  int num_q_heads;
  int num_kv_heads;
  int head_dim;
  DType dtype;
  std::vector<std::string> cells;  // batch x context, or ragged64
};

// Grouped by what they ask: the table of the goals, its shape with group 8, the
// other models, then every group size and head dim at 268 MB and more.
const std::vector<Geometry>& geometries() {
  static const std::vector<std::string> main_cells = {
      "1x1k",
      "1x4k",
      "1x16k",
      "1x64k",
      "4x1k",
      "4x4k",
      "4x16k",
      "16x1k",
      "16x16k",
      "64x1k",
      "64x16k",
      "256x1k",
      "ragged64"};
  static const std::vector<std::string> few = {"4x16k"};
  static const std::vector<Geometry> list = [] {
    std::vector<Geometry> g = {
        {"32/8/128 f16", 32, 8, 128, DType::Float16, main_cells},
        {"64/8/128 bf16", 64, 8, 128, DType::BFloat16, main_cells},
        {"32/32/128 f16",
         32,
         32,
         128,
         DType::Float16,
         {"1x4k", "4x4k", "ragged64"}},
        {"9/3/64 f16",
         9,
         3,
         64,
         DType::Float16,
         {"1x16k", "64x16k", "ragged64"}},
        {"16/2/256 bf16",
         16,
         2,
         256,
         DType::BFloat16,
         {"1x16k", "64x16k", "ragged64"}}};
    for (const DType dtype :
         {DType::Float16, DType::BFloat16, DType::Float32}) {
      for (const int head_dim : {64, 96, 128, 256}) {
        for (const int group : {1, 4, 8, 16}) {
          Geometry x = {"", 8 * group, 8, head_dim, dtype, {"8x16k"}};
          x.name = std::to_string(x.num_q_heads) + "/8/" +
                   std::to_string(head_dim) + " " + dtype_name(dtype);
          g.push_back(x);
        }
      }
    }
    return g;
  }();
  return list;
}

std::vector<int> lengths_of(const std::string& cell) {
  if (cell == "ragged64") {  // 128 to 16k tokens, log-uniform
    std::vector<int> lens(64);
    for (int i = 0; i < 64; ++i) {
      lens[static_cast<std::size_t>(i)] =
          static_cast<int>(128 * std::pow(128.0, (i + 0.5) / 64) * 0.957);
    }
    std::shuffle(lens.begin(), lens.end(), std::mt19937(5));
    return lens;
  }
  int batch = 0;
  int context = 0;
  std::sscanf(cell.c_str(), "%dx%dk", &batch, &context);
  return std::vector<int>(static_cast<std::size_t>(batch), context * 1024);
}

struct Options {
  std::string json;
  std::string only;
  std::string cells;
  int block_size = 32;
};

struct Timing {
  double median = 0.0;  // seconds a launch
  double best = 0.0;
};

/** Times `run(i, stream)`, launched for i in [0, launches) in one graph. */
Timing time_launches(
    int launches,
    const std::function<void(int, cudaStream_t)>& run) {
  GraphReplay replay(launches, run);
  std::vector<float> ms;
  float spent = 0.0f;
  for (int i = 0; i < 60 && (i < 10 || spent < 40.0f); ++i) {
    const float t = replay.run();
    spent += t;
    if (i >= 2) {
      ms.push_back(t);
    }
  }
  std::sort(ms.begin(), ms.end());
  return {
      static_cast<double>(ms[ms.size() / 2]) * 1e-3 / launches,
      static_cast<double>(ms[0]) * 1e-3 / launches};
}

struct Row {
  std::string geometry;
  std::string cell;
  std::string order;   // of the blocks: permuted, in_order
  std::string launch;  // plain; overlapped; no_clusters: as MLX's graphs do it
  int block_size = 0;
  std::int64_t kv_bytes = 0;
  double read_seconds = 0.0;
  double read_blocks_seconds = 0.0;  // of the same blocks in the same order
  double read_shares_seconds = 0.0;  // these cut in equal shares; 0: cannot run
  Timing timing;
  double max_abs_error = 0.0;
};

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), sink_(16), reference_(0) {
    QUIRE_CHECK_CUDA(cudaGetDeviceProperties(&properties_, 0));
  }

  void run() {
    std::printf("%s\n", properties_.name);
    for (const Geometry& g : geometries()) {
      if (g.name.find(options_.only) == std::string::npos) {
        continue;
      }
      std::printf(
          "\n%s, block %d: us (%% of pure read)\n%-9s %8s %8s %7s %7s  %-16s "
          "%-16s %-16s  %7s %7s  %-16s %-16s\n",
          g.name.c_str(),
          options_.block_size,
          "cell",
          "MB",
          "read",
          "blocks",
          "shares",
          "plain",
          "overlapped",
          "no clusters",
          "blocks",
          "shares",
          "in order",
          "in order, ovl.");
      for (const std::string& cell : g.cells) {
        if (options_.cells.empty() ||
            ("," + options_.cells + ",").find("," + cell + ",") !=
                std::string::npos) {
          run_cell(g, cell);
        }
      }
    }
    time_append();
    if (!options_.json.empty()) {
      write_json();
    }
  }

 private:
  void run_cell(const Geometry& g, const std::string& cell) {
    const std::vector<int> lens = lengths_of(cell);
    const int num_seqs = static_cast<int>(lens.size());
    const int block_size = options_.block_size;
    const auto elem_bytes = static_cast<std::int64_t>(dtype_bytes(g.dtype));
    const std::int64_t row_bytes =
        std::int64_t{g.num_kv_heads} * g.head_dim * elem_bytes;
    const std::int64_t tokens =
        std::accumulate(lens.begin(), lens.end(), std::int64_t{0});
    int num_blocks = 0;
    int width = 0;
    for (const int len : lens) {
      num_blocks += (len + block_size - 1) / block_size;
      width = std::max(width, (len + block_size - 1) / block_size);
    }
    Row row;
    row.geometry = g.name;
    row.cell = cell;
    row.block_size = block_size;
    row.kv_bytes = tokens * row_bytes * 2;
    // Enough sets that a launch finds nothing of its inputs in the L2.
    const std::int64_t sets =
        std::max<std::int64_t>(3, (220000000 - 1) / row.kv_bytes + 2);
    const std::int64_t set_bytes =
        std::int64_t{num_blocks} * block_size * row_bytes;
    const auto pool_bytes = static_cast<std::size_t>(sets * set_bytes);
    if (k_.size() < pool_bytes) {
      k_ = DeviceBuffer<std::byte>();  // frees before it allocates
      v_ = DeviceBuffer<std::byte>();
      k_ = DeviceBuffer<std::byte>(pool_bytes);
      v_ = DeviceBuffer<std::byte>(pool_bytes);
      filled_ = -1;
    }
    const int kind = g.dtype == DType::Float32   ? 0
                     : g.dtype == DType::Float16 ? 1
                                                 : 2;
    const std::int64_t q_elems =
        std::int64_t{num_seqs} * g.num_q_heads * g.head_dim;
    if (filled_ != kind) {
      const auto n = static_cast<std::int64_t>(k_.size()) / elem_bytes;
      launch_fill_normal(k_.data(), n, 1, kind, nullptr);
      launch_fill_normal(v_.data(), n, 2, kind, nullptr);
      filled_ = kind;
    }
    DeviceBuffer<std::byte> q(
        static_cast<std::size_t>(q_elems * elem_bytes * sets));
    DeviceBuffer<std::byte> out(
        static_cast<std::size_t>(q_elems * elem_bytes * sets));
    launch_fill_normal(q.data(), q_elems * sets, 3, kind, nullptr);
    reference_ = DeviceBuffer<float>(static_cast<std::size_t>(q_elems));
    DeviceBuffer<std::int32_t> device_lens(lens);
    const int launches = static_cast<int>(
        row.kv_bytes < 1000000000 ? sets * ((24 + sets - 1) / sets)
                                  : std::max<std::int64_t>(sets, 6));

    row.read_seconds = 1.0;
    for (int kernel = 0; kernel < num_read_kernels(); ++kernel) {
      const Timing t = time_launches(launches, [&](int i, cudaStream_t stream) {
        launch_read(
            kernel,
            k_.data() + i % sets * set_bytes,
            v_.data() + i % sets * set_bytes,
            row.kv_bytes / 2,
            sink_.data(),
            stream);
      });
      row.read_seconds = std::min(row.read_seconds, t.median);
    }
    std::printf(
        "%-9s %8.1f %8.2f ",
        cell.c_str(),
        static_cast<double>(row.kv_bytes) * 1e-6,
        row.read_seconds * 1e6);

    DecodeArgs args;
    args.params = {
        .num_seqs = num_seqs,
        .num_q_heads = g.num_q_heads,
        .num_kv_heads = g.num_kv_heads,
        .head_dim = g.head_dim,
        .num_blocks = num_blocks,
        .block_size = block_size,
        .max_blocks_per_seq = width,
        .scale = 1.0f / std::sqrt(static_cast<float>(g.head_dim))};
    args.q_dtype = args.kv_dtype = g.dtype;
    args.q = q.data();
    args.k_cache = k_.data();
    args.v_cache = v_.data();
    args.seq_lens = device_lens.data();
    for (const bool permuted : {true, false}) {
      std::vector<std::int32_t> ids(static_cast<std::size_t>(num_blocks));
      std::iota(ids.begin(), ids.end(), 0);
      if (permuted) {
        std::shuffle(ids.begin(), ids.end(), std::mt19937(11));
      }
      std::vector<std::int32_t> table(
          static_cast<std::size_t>(num_seqs) * static_cast<std::size_t>(width),
          0);
      std::vector<std::int32_t> block_tokens;
      for (int s = 0; s < num_seqs; ++s) {
        const int len = lens[static_cast<std::size_t>(s)];
        for (int b = 0; b * block_size < len; ++b) {
          table[static_cast<std::size_t>(s * width + b)] =
              ids[block_tokens.size()];
          block_tokens.push_back(std::min(block_size, len - b * block_size));
        }
      }
      const DeviceBuffer<std::int32_t> device_ids(ids);
      const DeviceBuffer<std::int32_t> device_tokens(block_tokens);
      const auto list = [&](int i) -> BlockList {
        return {
            .k_cache = k_.data() + i % sets * set_bytes,
            .v_cache = v_.data() + i % sets * set_bytes,
            .block_ids = device_ids.data(),
            .block_tokens = device_tokens.data(),
            .num_blocks = num_blocks,
            .block_size = block_size,
            .token_bytes = row_bytes};
      };
      row.read_blocks_seconds =
          time_launches(launches, [&](int i, cudaStream_t stream) {
            launch_read_blocks(list(i), sink_.data(), stream);
          }).median;
      if (has_bulk_copies()) {
        row.read_shares_seconds =
            time_launches(launches, [&](int i, cudaStream_t stream) {
              launch_read_shares(list(i), stream);
            }).median;
      }
      std::printf(
          "%s%7.2f %7.2f ",
          permuted ? "" : " ",
          row.read_blocks_seconds * 1e6,
          row.read_shares_seconds * 1e6);
      DeviceBuffer<std::int32_t> device_table(table);
      args.block_table = device_table.data();
      launch_device_reference(args, reference_.data(), nullptr);
      row.order = permuted ? "permuted" : "in_order";
      for (const char* launch : {"plain", "overlapped", "no_clusters"}) {
        row.launch = launch;
        if (permuted || row.launch != "no_clusters") {
          time_decode(
              args, out, q_elems * elem_bytes, sets, set_bytes, launches, row);
        }
      }
    }
    std::printf("\n");
    std::fflush(stdout);
  }

  void time_decode(
      const DecodeArgs& args,
      const DeviceBuffer<std::byte>& out,
      std::int64_t q_bytes,
      std::int64_t sets,
      std::int64_t set_bytes,
      int launches,
      Row row) {
    const cuda::DecodeChoice choice = cuda::choose_decode_launch(
        args.params,
        args.q_dtype,
        args.kv_dtype,
        cuda::device_limits(0, row.launch != "no_clusters"),
        {.overlap = row.launch == "overlapped"});
    if (!choice) {
      std::printf(" %-16s", "-");
      return;
    }
    const DecodeLaunch& base = choice.launch;
    DeviceBuffer<std::byte> workspace(
        static_cast<std::size_t>(base.workspace_bytes));
    workspace.fill(0xff);
    QUIRE_CHECK_CUDA(cudaDeviceSynchronize());
    const auto run = [&](int i, cudaStream_t stream) {
      const std::int64_t set = i % sets;
      DecodeLaunch l = base;
      l.args.q = static_cast<const std::byte*>(args.q) + set * q_bytes;
      l.args.k_cache =
          static_cast<const std::byte*>(args.k_cache) + set * set_bytes;
      l.args.v_cache =
          static_cast<const std::byte*>(args.v_cache) + set * set_bytes;
      l.args.block_table = args.block_table;
      l.args.seq_lens = args.seq_lens;
      l.args.out = out.data() + set * q_bytes;
      l.args.mail = reinterpret_cast<float*>(workspace.data());
      launch_decode(l, stream);
    };
    row.timing = time_launches(launches, run);
    row.max_abs_error = max_abs_error(
        out.data(),
        args.q_dtype,
        reference_.data(),
        q_bytes / static_cast<std::int64_t>(dtype_bytes(args.q_dtype)));
    char text[64];
    std::snprintf(
        text,
        sizeof text,
        "%.2f (%.1f)%s",
        row.timing.median * 1e6,
        100.0 * row.read_seconds / row.timing.median,
        row.max_abs_error < 2e-2 ? "" : " WRONG");
    std::printf(" %-16s", text);
    rows_.push_back(row);
  }

  void time_append() {
    constexpr int kTokens = 64;
    constexpr int kTokenElems = 1024;
    DeviceBuffer<std::byte> k(kTokens * kTokenElems * 2);
    DeviceBuffer<std::byte> v(kTokens * kTokenElems * 2);
    std::vector<std::int64_t> slots(kTokens);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      slots[i] = static_cast<std::int64_t>(i) * 37;
    }
    DeviceBuffer<std::int64_t> device_slots(slots);
    DeviceBuffer<std::byte> cache(kTokens * 37 * kTokenElems * 2);
    DeviceBuffer<std::byte> other(kTokens * 37 * kTokenElems * 2);
    cuda::KvAppendArgs args;
    args.k = k.data();
    args.v = v.data();
    args.slots = device_slots.data();
    args.k_cache = cache.data();
    args.v_cache = other.data();
    args.num_slots = kTokens * 37;
    args.k_stride = args.v_stride = kTokenElems;
    args.token_elems = kTokenElems;
    args.num_tokens = kTokens;
    const auto launch =
        cuda::make_kv_append_launch(args, DType::Float16, DType::Float16);
    append_ = time_launches(200, [&](int, cudaStream_t stream) {
      launch_kv_append(launch, stream);
    });
    std::printf(
        "\nkv_append of 64 tokens, 8 heads of 128, f16: %.2f us\n",
        append_.median * 1e6);
  }

  void write_json() const {
    std::FILE* file = std::fopen(options_.json.c_str(), "w");
    if (file == nullptr) {
      throw std::runtime_error("cannot write " + options_.json);
    }
    std::fprintf(
        file,
        "{\"gpu\": \"%s\", \"kv_append_seconds\": %.4g,\n \"cells\": [",
        properties_.name,
        append_.median);
    const char* comma = "\n  ";
    for (const Row& r : rows_) {
      std::fprintf(
          file,
          "%s{\"geometry\": \"%s\", \"cell\": \"%s\", \"block_size\": %d, "
          "\"order\": \"%s\", \"launch\": \"%s\", \"kv_bytes\": %lld, "
          "\"read_seconds\": %.5g, \"read_blocks_seconds\": %.5g, "
          "\"read_shares_seconds\": %.5g, \"seconds_median\": %.5g, "
          "\"seconds_min\": %.5g, \"share_of_read_bandwidth\": %.4f, "
          "\"max_abs_error\": %.3g}",
          comma,
          r.geometry.c_str(),
          r.cell.c_str(),
          r.block_size,
          r.order.c_str(),
          r.launch.c_str(),
          static_cast<long long>(r.kv_bytes),
          r.read_seconds,
          r.read_blocks_seconds,
          r.read_shares_seconds,
          r.timing.median,
          r.timing.best,
          r.read_seconds / r.timing.median,
          r.max_abs_error);
      comma = ",\n  ";
    }
    std::fprintf(file, "\n ]}\n");
    std::fclose(file);
  }

  Options options_;
  cudaDeviceProp properties_ = {};
  DeviceBuffer<std::byte> k_, v_, sink_;
  DeviceBuffer<float> reference_;
  int filled_ = -1;
  std::vector<Row> rows_;
  Timing append_;
};

}  // namespace
}  // namespace quire::bench

int main(int argc, char** argv) {
  quire::bench::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--json") {
      options.json = argv[i + 1];
    } else if (name == "--only") {
      options.only = argv[i + 1];
    } else if (name == "--cells") {
      options.cells = argv[i + 1];
    } else if (name == "--block-size") {
      options.block_size = std::atoi(argv[i + 1]);
    } else {
      std::fprintf(stderr, "quire_cuda_bench: unknown option %s\n", argv[i]);
      return 2;
    }
  }
  try {
    quire::bench::Bench(options).run();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
