// Times the CPU kernel's own entry against the machine's two roofs.
//
// A cell is one decode step over KV that no cache holds: every repetition runs
// each read loop and the kernel once, each on the next of many sets of K and V,
// so that all of them meet the same machine in the same state.
// share_of_limit = max(best pure read, multiply-adds / their peak) / kernel,
// medians.
//
//   cpu_decode_benchmark [--filter TEXT] [--repeats N] [--small-pages]
//                        [--linear | --cached]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/decode_engine.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/roofs.h"
#include "kv_region.h"

namespace {

using namespace quire;
using bench::Cell;
using bench::kBlockSize;
using bench::kRegionBytes;
using bench::median;
using bench::put;
using bench::Region;

constexpr DType kF32 = DType::Float32;
constexpr DType kF16 = DType::Float16;
constexpr DType kBF16 = DType::BFloat16;

const std::vector<Cell> kCells = {
    {kF16, kF16, 1, 16384, 32, 8, 128},
    {kF16, kF16, 4, 4096, 32, 8, 128},
    {kF16, kF16, 16, 1024, 32, 8, 128},
    {kF32, kF16, 1, 16384, 32, 8, 128},
    {kBF16, kBF16, 1, 16384, 32, 8, 128},
    {kBF16, kBF16, 4, 4096, 32, 8, 128},
    {kBF16, kBF16, 16, 1024, 32, 8, 128},
    {kF32, kF32, 1, 16384, 32, 8, 128},
    {kF16, kF16, 1, 4096, 32, 32, 128},
    {kF16, kF16, 1, 16384, 32, 2, 128},
    {kBF16, kBF16, 1, 16384, 32, 2, 128},
    {kF16, kF16, 1, 16384, 32, 8, 64},
    {kF16, kF16, 1, 16384, 32, 8, 80},
    {kF16, kF16, 1, 16384, 32, 8, 96},
    {kF16, kF16, 1, 8192, 32, 8, 256},
    {kF32, kF16, 1, 16384, 9, 3, 64},
    {kF16, kF16, 1, 128, 32, 8, 128},
};
const std::vector<Cell> kLinearCells = {
    {kF16, kF16, 1, 4096, 32, 8, 128},
    {kF16, kF16, 1, 16384, 32, 8, 128},
    {kF16, kF16, 1, 65536, 32, 8, 128},
    {kF16, kF16, 1, 131072, 32, 8, 128},
};

/** As much of a cell as stays in the L2 caches: what the arithmetic takes. */
Cell cached(Cell cell) {
  constexpr std::size_t kCachedBytes = std::size_t{1} << 20;
  const std::size_t token_bytes =
      2 * dtype_bytes(cell.kv_dtype) *
      static_cast<std::size_t>(cell.num_kv_heads * cell.head_dim);
  cell.num_seqs = 1;
  cell.context = std::min(
      cell.context, static_cast<int>(kCachedBytes / token_bytes) / 64 * 64);
  return cell;
}

void run_cell(
    const Cell& cell,
    Region& region,
    cpu::DecodeEngine& engine,
    cpu::Isa isa,
    int repeats,
    bool rotate) {
  const std::size_t cache_bytes = cell.cache_bytes();
  const std::size_t num_sets = rotate ? kRegionBytes / (2 * cache_bytes) : 1;
  std::byte* data = region.fill(cell.kv_dtype);

  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  std::vector<std::byte> q(cell.q_size() * dtype_bytes(cell.q_dtype));
  for (std::size_t i = 0; i < cell.q_size(); ++i) {
    put(q.data(), i, normal(rng), cell.q_dtype);
  }
  std::vector<std::byte> out(q.size());
  DecodeArgs args = cell.args();
  std::vector<std::int32_t> table(
      static_cast<std::size_t>(args.params.num_blocks));
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), rng);
  const std::vector<std::int32_t> seq_lens(
      static_cast<std::size_t>(cell.num_seqs), cell.context);

  args.q = q.data();
  args.block_table = table.data();
  args.seq_lens = seq_lens.data();
  args.out = out.data();

  std::vector<double> read_times[std::size(cpu::kReadLoops)];
  std::vector<double> kernel_times;
  std::size_t set = 0;
  const auto next_set = [&] {
    return data + (set++ % num_sets) * 2 * cache_bytes;
  };
  for (int repeat = -2; repeat < repeats; ++repeat) {
    for (std::size_t i = 0; i < std::size(cpu::kReadLoops); ++i) {
      const double seconds = cpu::time_read(
          engine, isa, cpu::kReadLoops[i], next_set(), 2 * cache_bytes);
      if (repeat >= 0) {
        read_times[i].push_back(seconds);
      }
    }
    args.k_cache = next_set();
    args.v_cache = static_cast<const std::byte*>(args.k_cache) + cache_bytes;
    const auto start = std::chrono::steady_clock::now();
    engine.paged_decode(args, isa);
    const std::chrono::duration<double> elapsed =
        std::chrono::steady_clock::now() - start;
    if (repeat >= 0) {
      kernel_times.push_back(elapsed.count());
    }
  }

  double read = std::numeric_limits<double>::infinity();
  for (const auto& times : read_times) {
    read = std::min(read, median(times));
  }
  const double multiply_adds =
      2.0 * cell.num_seqs * cell.context * cell.num_q_heads * cell.head_dim;
  const double arithmetic =
      multiply_adds / cpu::measure_multiply_add_rate(engine, isa);
  const double limit = std::max(read, arithmetic);
  const double kernel = median(kernel_times);
  const double fastest =
      *std::min_element(kernel_times.begin(), kernel_times.end());
  std::printf(
      "%4s over %4s %3dx%-6d %2d/%-2d d%-3d %8.1f MB  read %8.1f us (%4.1f "
      "GB/s)  mad %7.1f us  kernel %8.1f us (min %8.1f)  share %5.1f %%  limit "
      "%+.1f us\n",
      dtype_name(cell.q_dtype),
      dtype_name(cell.kv_dtype),
      cell.num_seqs,
      cell.context,
      cell.num_q_heads,
      cell.num_kv_heads,
      cell.head_dim,
      2e-6 * static_cast<double>(cache_bytes),
      1e6 * read,
      2e-9 * static_cast<double>(cache_bytes) / read,
      1e6 * arithmetic,
      1e6 * kernel,
      1e6 * fastest,
      100 * limit / kernel,
      1e6 * (kernel - limit));
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  std::string filter;
  int repeats = 21;
  bool huge_pages = true;
  bool linear = false;
  bool keep_cached = false;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--filter" && i + 1 < argc) {
      filter = argv[++i];
    } else if (arg == "--repeats" && i + 1 < argc) {
      repeats = std::max(1, std::atoi(argv[++i]));
    } else if (arg == "--small-pages") {
      huge_pages = false;
    } else if (arg == "--linear") {
      linear = true;
    } else if (arg == "--cached") {
      keep_cached = true;
    } else {
      std::fprintf(
          stderr,
          "usage: %s [--filter TEXT] [--repeats N] [--small-pages] "
          "[--linear | --cached]\n",
          argv[0]);
      return 2;
    }
  }
  const cpu::Isa isa = cpu::selected_isa();
  cpu::DecodeEngine& engine = cpu::default_engine();
  std::printf(
      "%s, %d threads, %s pages, block %d\n",
      std::string(cpu::isa_name(isa)).c_str(),
      engine.num_threads(),
      huge_pages ? "2 MiB" : "4 KiB",
      kBlockSize);
  Region region(huge_pages);
  for (const Cell& cell : linear ? kLinearCells : kCells) {
    const std::string name = std::string(dtype_name(cell.kv_dtype)) + " " +
                             std::to_string(cell.num_seqs) + "x" +
                             std::to_string(cell.context) + " " +
                             std::to_string(cell.num_q_heads) + "/" +
                             std::to_string(cell.num_kv_heads) + " d" +
                             std::to_string(cell.head_dim);
    if (name.find(filter) != std::string::npos) {
      const Cell timed = keep_cached ? cached(cell) : cell;
      const bool tiny = timed.context < 1000;
      run_cell(
          timed,
          region,
          engine,
          isa,
          tiny ? 40 * repeats : repeats,
          !keep_cached);
    }
  }
  return 0;
}
