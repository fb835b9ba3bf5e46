#include "tools/bench/path.h"

#include <chrono>
#include <limits>
#include <utility>

namespace quire::bench {
namespace {

namespace mx = mlx::core;

constexpr const char* kEndToEnd = "end_to_end";

// An op built and evaluated anew at each run, as a decode loop does.
struct Step {
  std::function<mx::array(int set)> build;
  mx::array out = mx::array(0.0f);

  void run(int set) {
    out = build(set);
    mx::eval(out);
  }
  const void* output() {
    out = mx::contiguous(out);
    mx::eval(out);
    return out.data<void>();
  }
};

void set_step(Path& path, std::function<mx::array(int set)> build) {
  const auto step = std::make_shared<Step>(Step{std::move(build)});
  path.timing = kEndToEnd;
  path.run = [step](int set) { step->run(set); };
  path.output = [step] { return step->output(); };
}

Path make_paged_path(const CacheData& data, NativeKernel native) {
  const Shape& shape = data.shape();
  Path path;
  path.q_dtype = shape.q_dtype;
  path.kv_dtype = shape.kv_dtype;
  path.uncounted = "nothing";
  path.num_sets = data.num_sets();
  set_step(path, [&data, native](int set) {
    return paged_step(data, set, data.q(), native);
  });
  return path;
}

// MLX rounds scores and weights to the dtype, so its error is some roundings
// of values as large as the largest logit, not one of the result.
double dense_tolerance(DType dtype) {
  return dtype == DType::BFloat16 ? 5e-2 : testing::kRmsThreshold;
}

// [num_seqs, 1, 1, context]: true where a sequence has a token.
mx::array length_mask(const CacheData& data) {
  mx::array mask = mx::less(
      mx::reshape(
          mx::arange(data.shape().context, mx::int32),
          {1, 1, 1, data.shape().context}),
      mx::reshape(data.seq_lens(), {data.shape().num_seqs, 1, 1, 1}));
  mx::eval(mask);
  return mask;
}

}  // namespace

Path make_kernel_path(const CacheData& data, Kernel kernel) {
  const Shape& shape = data.shape();
  Path path;
  path.name = "fused";
  path.timing = "kernel";
  path.must_run = "fused_cpu";
  path.uncounted = "fused_cpu";  // the counters are the op's, above the kernel
  path.q_dtype = shape.q_dtype;
  path.kv_dtype = shape.kv_dtype;
  path.num_sets = data.num_sets();

  std::vector<DecodeArgs> sets;
  mx::array out = mx::full(
      data.q().shape(),
      std::numeric_limits<float>::quiet_NaN(),
      mlx_dtype(shape.q_dtype));
  mx::eval(out);
  for (int set = 0; set < data.num_sets(); ++set) {
    sets.push_back(data.args(set));
    sets.back().out = out.data<void>();
  }
  path.run = [kernel = std::move(kernel), sets = std::move(sets)](int set) {
    kernel(sets[static_cast<std::size_t>(set)]);
  };
  path.output = [out] { return out.data<void>(); };
  return path;
}

mx::array paged_step(
    const CacheData& data,
    int set,
    const mx::array& q,
    NativeKernel native) {
  return paged_attention(
      q,
      data.k_cache(),
      data.v_cache(),
      data.block_table(set),
      data.seq_lens(),
      data.scale(),
      {.use_native_paged_kernel = native});
}

Path make_fused_path(const CacheData& data, const std::string& must_run) {
  Path path = make_paged_path(data, NativeKernel::On);
  path.name = "fused";
  path.must_run = must_run;
  return path;
}

Path make_gather_path(const CacheData& data) {
  Path path = make_paged_path(data, NativeKernel::Off);
  path.name = "gather";
  path.must_run = "gather";
  return path;
}

Path make_dense_path(
    const CacheData& data,
    const std::string& name,
    const std::shared_ptr<const DenseSets>& sets) {
  const Shape& shape = data.shape();
  Path path;
  path.name = name;
  path.must_run = "dense";
  path.uncounted = "dense";
  path.q_dtype = sets->dtype;
  path.kv_dtype = sets->dtype;
  path.max_rms = dense_tolerance(sets->dtype);
  path.is_bounded = false;
  path.num_sets = static_cast<int>(sets->k.size());

  const mx::array q =
      mx::astype(mx::expand_dims(data.q(), 2), mlx_dtype(sets->dtype));
  mx::eval(q);
  const std::string mask_mode = shape.ragged ? "array" : "";
  const std::optional<mx::array> mask =
      shape.ragged ? std::optional(length_mask(data)) : std::nullopt;
  set_step(path, [=, scale = data.scale()](int set) {
    const auto i = static_cast<std::size_t>(set);
    return mx::fast::scaled_dot_product_attention(
        q, sets->k[i], sets->v[i], scale, mask_mode, mask);
  });
  return path;
}

DType fastest_dense_dtype(
    const CacheData& data,
    const std::function<void()>& poll) {
  // The minimum of as many runs as a little time holds, so that one busy moment
  // does not choose.
  constexpr int kMinRuns = 2;
  constexpr int kMaxRuns = 20;
  constexpr double kSeconds = 0.05;
  DType fastest = DType::Float32;
  double fastest_seconds = std::numeric_limits<double>::infinity();
  for (const DType dtype : {DType::Float32, DType::Float16, DType::BFloat16}) {
    const Path path = make_dense_path(
        data,
        "dense",
        std::make_shared<const DenseSets>(
            make_dense_sets(data, dtype, 0, poll)));
    path.run(0);  // the first run also pays for memory
    double total = 0.0;
    for (int i = 0; i < kMinRuns || (i < kMaxRuns && total < kSeconds); ++i) {
      poll();
      using Clock = std::chrono::steady_clock;
      const Clock::time_point begin = Clock::now();
      path.run(0);
      const double seconds =
          std::chrono::duration<double>(Clock::now() - begin).count();
      total += seconds;
      if (seconds < fastest_seconds) {
        fastest_seconds = seconds;
        fastest = dtype;
      }
    }
  }
  return fastest;
}

}  // namespace quire::bench
