// Times the CPU kernel beside ggml's flash attention, which llama.cpp decodes
// with: one process, the same K and V, the same f32 queries, as many threads.
//
// ggml reads a set of K and V in order, its usual layout; the paged kernel
// reads the same bytes through a table that permutes the blocks within each
// sequence, which changes attention by rounding only. Both results are compared
// with the double-precision reference.
// Calls alternate, each on the next of many sets, so that no cache helps; the
// threads of one sleep while the other is timed. Medians.
//
//   ggml_benchmark [--repeats N]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <ggml-cpu.h>
#include <ggml.h>

#include "kernels/cpu/decode_engine.h"
#include "kernels/cpu/isa.h"
#include "kernels/reference/paged_decode_reference.h"
#include "kv_region.h"

namespace {

using namespace quire;
using bench::Cell;
using bench::kRegionBytes;
using bench::median;

constexpr DType kF32 = DType::Float32;
constexpr Cell kCells[] = {
    {kF32, DType::Float16, 1, 16384, 32, 8, 128},
    {kF32, DType::Float16, 4, 4096, 32, 8, 128},
    {kF32, DType::Float16, 16, 1024, 32, 8, 128},
    {kF32, DType::BFloat16, 1, 16384, 32, 8, 128},
    {kF32, DType::BFloat16, 4, 4096, 32, 8, 128},
    {kF32, DType::Float32, 1, 16384, 32, 8, 128},
    {kF32, DType::Float16, 1, 4096, 32, 32, 128},
    {kF32, DType::Float16, 1, 1024, 32, 8, 128},
};

ggml_type ggml_dtype(DType dtype) {
  return dtype == DType::Float32   ? GGML_TYPE_F32
         : dtype == DType::Float16 ? GGML_TYPE_F16
                                   : GGML_TYPE_BF16;
}

/** ggml's graph of one flash attention over memory that it does not own. */
class GgmlAttention {
 public:
  GgmlAttention(const Cell& c, const float* q, float scale, int num_threads)
      : context_(
            ggml_init(
                {.mem_size = std::size_t{1} << 20,
                 .mem_buffer = nullptr,
                 .no_alloc = true}),
            ggml_free),
        out_(c.q_size()) {
    ggml_context* ctx = context_.get();
    ggml_tensor* queries = ggml_new_tensor_4d(
        ctx, GGML_TYPE_F32, c.head_dim, 1, c.num_q_heads, c.num_seqs);
    queries->data = const_cast<float*>(q);
    const auto view = [&](ggml_tensor*& cache) {
      cache = ggml_new_tensor_4d(
          ctx,
          ggml_dtype(c.kv_dtype),
          c.head_dim,
          c.num_kv_heads,
          c.context,
          c.num_seqs);
      ggml_tensor* by_head = ggml_permute(ctx, cache, 0, 2, 1, 3);
      views_.push_back(by_head);
      return by_head;
    };
    ggml_tensor* k = view(k_);
    ggml_tensor* v = view(v_);
    ggml_tensor* out =
        ggml_flash_attn_ext(ctx, queries, k, v, nullptr, scale, 0, 0);
    out->data = out_.data();
    graph_ = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph_, out);

    ggml_threadpool_params params = ggml_threadpool_params_default(num_threads);
    threads_.reset(ggml_threadpool_new(&params));
    plan_ = ggml_graph_plan(graph_, num_threads, threads_.get());
    work_.resize(plan_.work_size);
    plan_.work_data = work_.data();
    ggml_threadpool_pause(threads_.get());
  }

  double seconds(const std::byte* k_cache, const std::byte* v_cache) {
    k_->data = views_[0]->data = const_cast<std::byte*>(k_cache);
    v_->data = views_[1]->data = const_cast<std::byte*>(v_cache);
    ggml_threadpool_resume(threads_.get());
    const auto start = std::chrono::steady_clock::now();
    if (ggml_graph_compute(graph_, &plan_) != GGML_STATUS_SUCCESS) {
      std::fprintf(stderr, "ggml_graph_compute failed\n");
      std::exit(1);
    }
    const std::chrono::duration<double> elapsed =
        std::chrono::steady_clock::now() - start;
    ggml_threadpool_pause(threads_.get());
    return elapsed.count();
  }

  const std::vector<float>& out() const {
    return out_;
  }

 private:
  struct FreeThreads {
    void operator()(ggml_threadpool* threads) const {
      ggml_threadpool_free(threads);
    }
  };
  std::unique_ptr<ggml_context, void (*)(ggml_context*)> context_;
  std::unique_ptr<ggml_threadpool, FreeThreads> threads_;
  std::vector<float> out_;
  std::vector<ggml_tensor*> views_;
  std::vector<std::uint8_t> work_;
  ggml_tensor* k_ = nullptr;
  ggml_tensor* v_ = nullptr;
  ggml_cgraph* graph_ = nullptr;
  ggml_cplan plan_{};
};

// A table whose sequences each own a contiguous run of blocks, permuted within.
std::vector<std::int32_t> permuted_table(int num_seqs, int blocks_per_seq) {
  std::vector<std::int32_t> table(
      static_cast<std::size_t>(num_seqs * blocks_per_seq));
  std::iota(table.begin(), table.end(), 0);
  std::mt19937 rng(3);
  for (auto row = table.begin(); row != table.end(); row += blocks_per_seq) {
    std::shuffle(row, row + blocks_per_seq, rng);
  }
  return table;
}

double rms_error(
    const std::vector<float>& out,
    const std::vector<double>& reference) {
  double sum = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const double error = out[i] - reference[i];
    sum += error * error;
  }
  return std::sqrt(sum / static_cast<double>(out.size()));
}

void run_cell(const Cell& c, const std::byte* data, int repeats) {
  cpu::DecodeEngine& engine = cpu::default_engine();
  const std::size_t cache_bytes = c.cache_bytes();
  const std::size_t num_sets = kRegionBytes / (2 * cache_bytes);

  std::mt19937 rng(5);
  std::normal_distribution<float> normal;
  std::vector<float> q(c.q_size());
  std::generate(q.begin(), q.end(), [&] { return normal(rng); });
  std::vector<float> out(q.size());
  const auto table = permuted_table(c.num_seqs, c.blocks_per_seq());
  const std::vector<std::int32_t> seq_lens(
      static_cast<std::size_t>(c.num_seqs), c.context);
  DecodeArgs args = c.args();
  args.q = q.data();
  args.block_table = table.data();
  args.seq_lens = seq_lens.data();
  args.out = out.data();
  GgmlAttention ggml(c, q.data(), args.params.scale, engine.num_threads());

  std::vector<double> ggml_times;
  std::vector<double> quire_times;
  double ggml_rms = 0;
  double quire_rms = 0;
  std::size_t set = 0;
  for (int repeat = -2; repeat < repeats; ++repeat) {
    const auto next_set = [&] {
      return data + set++ % num_sets * 2 * cache_bytes;
    };
    const std::byte* ggml_set = next_set();
    const std::byte* quire_set = next_set();
    const double ggml_seconds = ggml.seconds(ggml_set, ggml_set + cache_bytes);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    args.k_cache = quire_set;
    args.v_cache = quire_set + cache_bytes;
    const auto start = std::chrono::steady_clock::now();
    engine.paged_decode(args, cpu::selected_isa());
    const std::chrono::duration<double> elapsed =
        std::chrono::steady_clock::now() - start;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    if (repeat >= 0) {
      ggml_times.push_back(ggml_seconds);
      quire_times.push_back(elapsed.count());
    } else if (ggml_rms == 0) {  // every set holds the same values
      std::vector<double> reference(out.size());
      reference::paged_decode(args, reference.data());
      ggml_rms = rms_error(ggml.out(), reference);
      quire_rms = rms_error(out, reference);
    }
  }

  // ggml's own error is what it is; a mistake in its arguments shows as 1.
  if (!(quire_rms < 1e-6 && ggml_rms < 5e-3)) {
    std::fprintf(
        stderr, "wrong results: rms %g, ggml %g\n", quire_rms, ggml_rms);
    std::exit(1);
  }
  std::printf(
      "%4s %3dx%-6d %2d/%-2d d%-3d  ggml %9.1f us  quire %9.1f us  %5.2fx  "
      "(rms errors %.1e, %.1e)\n",
      dtype_name(c.kv_dtype),
      c.num_seqs,
      c.context,
      c.num_q_heads,
      c.num_kv_heads,
      c.head_dim,
      1e6 * median(ggml_times),
      1e6 * median(quire_times),
      median(ggml_times) / median(quire_times),
      ggml_rms,
      quire_rms);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  int repeats = 15;
  if (argc == 3 && std::string(argv[1]) == "--repeats") {
    repeats = std::max(1, std::atoi(argv[2]));
  } else if (argc != 1) {
    std::fprintf(stderr, "usage: %s [--repeats N]\n", argv[0]);
    return 2;
  }
  std::printf(
      "ggml %s, quire %s, %d threads each\n",
      ggml_version(),
      std::string(cpu::isa_name(cpu::selected_isa())).c_str(),
      cpu::default_engine().num_threads());
  bench::Region region(/*huge_pages=*/true);
  for (const Cell& cell : kCells) {
    run_cell(cell, region.fill(cell.kv_dtype), repeats);
  }
  return 0;
}
