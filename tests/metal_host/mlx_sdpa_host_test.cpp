// MLX's own dense vector attention, from its Metal wheel, through the same
// shim, runtime and counters as ours: right (so the shim is to be trusted), and
// what it loads and computes, beside what fused paged attention needs.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "host_case.h"
#include "lockstep.h"

using namespace quire;
using namespace quire::metal_host;

// Function constants of sdpa_vector.h.
extern bool has_mask, query_transposed, do_causal, bool_mask, float_mask;
extern bool has_sinks;
extern int blocks;

extern const lockstep::KernelEntry lockstep_kernels_mlx_sdpa[];

namespace {

lockstep::KernelFn mlx_kernel(const std::string& name) {
  for (auto entry = lockstep_kernels_mlx_sdpa; entry->name; ++entry) {
    if (name == entry->name) {
      return entry->run;
    }
  }
  FAIL("no kernel " << name);
  return nullptr;
}

// A dense decode step: one query token, K and V in a cache with room to spare.
struct Dense {
  int head_dim = 128;
  int num_q_heads = 8;
  int num_kv_heads = 2;
  int num_tokens = 256;
};

// A lane-wide operation counts once, not 32 times.
struct Cost {
  double kv_reads;  // of each byte
  double loads, narrow_loads;
  double reductions, shuffles;  // votes are counted as shuffles
  double products;              // of 8 x 8 matrices
  double exps;

  // A sum over 32 lanes takes five exchanges, whoever carries them out. In a
  // product each lane takes 8 elements of other lanes' rows and as many of
  // their columns.
  double exchanges() const {
    return 5 * reductions + shuffles + 8 * products;
  }
};

struct Run {
  Cost cost;
  double max_error;
};

Cost cost_since(
    const lockstep::Counters& before,
    double kv_bytes,
    double units) {
  const auto after = lockstep::counters();
  const auto k = lockstep::traffic("k");
  const auto v = lockstep::traffic("v");
  double loads = 0;
  for (int width = 1; width <= 16; ++width) {
    loads += static_cast<double>(k.loads[width] + v.loads[width]);
  }
  const double lanes = 32 * units;
  return {
      static_cast<double>(k.load_bytes + v.load_bytes) / kv_bytes,
      loads / lanes,
      static_cast<double>(k.loads[2] + v.loads[2]) / lanes,
      static_cast<double>(after.reductions - before.reductions) / lanes,
      static_cast<double>(
          after.shuffles - before.shuffles + after.votes - before.votes) /
          lanes,
      static_cast<double>(after.products - before.products) / lanes,
      static_cast<double>(after.exps - before.exps) / lanes};
}

Run run_mlx(const Dense& c, bool two_pass) {
  using T = _Float16;
  const auto dim = static_cast<std::size_t>(c.head_dim);
  const std::size_t capacity = static_cast<std::size_t>(c.num_tokens) + 9;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<T> q(static_cast<std::size_t>(c.num_q_heads) * dim);
  std::vector<T> k(
      static_cast<std::size_t>(c.num_kv_heads) * capacity * dim, T(NAN));
  std::vector<T> v = k;
  for (T& x : q) {
    x = T(normal(random));
  }
  for (std::size_t head = 0; head < static_cast<std::size_t>(c.num_kv_heads);
       ++head) {
    const std::size_t begin = head * capacity * dim;
    for (std::size_t i = begin;
         i < begin + static_cast<std::size_t>(c.num_tokens) * dim;
         ++i) {
      k[i] = T(normal(random));
      v[i] = T(normal(random));
    }
  }
  std::vector<T> out(q.size(), T(NAN));
  has_mask = bool_mask = float_mask = has_sinks = false;
  do_causal = query_transposed = false;
  blocks = 32;
  std::vector<T> partial(q.size() * static_cast<std::size_t>(blocks), T(NAN));
  std::vector<float> sums(
      static_cast<std::size_t>(c.num_q_heads * blocks), NAN);
  std::vector<float> maxs = sums;
  int group = c.num_q_heads / c.num_kv_heads;
  int num_tokens = c.num_tokens;
  int num_q_heads = c.num_q_heads;
  std::size_t head_stride = capacity * dim;
  std::size_t token_stride = dim;
  float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  int zero = 0;
  lockstep::forget_buffers();
  lockstep::watch_buffer("k", k.data(), k.size() * sizeof(T), false);
  lockstep::watch_buffer("v", v.data(), v.size() * sizeof(T), false);
  const auto before = lockstep::counters();
  const auto heads = static_cast<unsigned>(c.num_q_heads);
  const std::string suffix = std::to_string(c.head_dim);
  if (two_pass) {
    void* first[] = {
        q.data(),
        k.data(),
        v.data(),
        partial.data(),
        sums.data(),
        maxs.data(),
        nullptr,
        &num_tokens,
        &head_stride,
        &token_stride,
        &head_stride,
        &token_stride,
        &scale,
        nullptr,
        nullptr,
        &zero,
        &zero,
        &zero,
        nullptr};
    lockstep::dispatch(
        {static_cast<unsigned>(c.num_kv_heads),
         1,
         static_cast<unsigned>(blocks)},
        {32, static_cast<unsigned>(group), 1},
        mlx_kernel("sdpa_vector_2pass_1_" + suffix),
        first);
    void* second[] = {
        partial.data(), sums.data(), maxs.data(), out.data(), &blocks};
    lockstep::dispatch(
        {heads, 1, 1},
        {1024, 1, 1},
        mlx_kernel("sdpa_vector_2pass_2_" + suffix),
        second);
  } else {
    void* slots[] = {
        q.data(),
        k.data(),
        v.data(),
        out.data(),
        &group,
        &num_tokens,
        &head_stride,
        &token_stride,
        &head_stride,
        &token_stride,
        &scale,
        nullptr,
        nullptr,
        &zero,
        &zero,
        &zero,
        nullptr,
        &num_q_heads};
    lockstep::dispatch(
        {heads, 1, 1},
        {1024, 1, 1},
        mlx_kernel("sdpa_vector_" + suffix),
        slots);
  }
  const double units = static_cast<double>(c.num_tokens) * c.num_kv_heads;
  Run run{cost_since(before, units * c.head_dim * sizeof(T) * 2, units), 0.0};
  for (int head = 0; head < c.num_q_heads; ++head) {
    const T* kh =
        k.data() + static_cast<std::size_t>(head / group) * head_stride;
    const T* vh =
        v.data() + static_cast<std::size_t>(head / group) * head_stride;
    const T* qh = q.data() + static_cast<std::size_t>(head) * dim;
    std::vector<double> expected(dim, 0.0);
    double sum = 0.0;
    for (int token = 0; token < c.num_tokens; ++token) {
      double dot = 0.0;
      for (std::size_t d = 0; d < dim; ++d) {
        dot += double(float(qh[d])) *
               double(float(kh[static_cast<std::size_t>(token) * dim + d]));
      }
      const double weight = std::exp(dot * double(scale));
      sum += weight;
      for (std::size_t d = 0; d < dim; ++d) {
        expected[d] +=
            weight *
            double(float(vh[static_cast<std::size_t>(token) * dim + d]));
      }
    }
    for (std::size_t d = 0; d < dim; ++d) {
      const double actual =
          double(float(out[static_cast<std::size_t>(head) * dim + d]));
      const double error = std::fabs(actual - expected[d] / sum);
      run.max_error = error <= run.max_error ? run.max_error : error;
    }
  }
  lockstep::forget_buffers();
  return run;
}

Run run_ours(const Dense& c) {
  HostCase host{
      .head_dim = c.head_dim,
      .group_size = c.num_q_heads / c.num_kv_heads,
      .num_kv_heads = c.num_kv_heads};
  host.seq_lens = {c.num_tokens};
  host.num_splits = 4;
  HostProblem problem(host);
  const auto launch = make_launch(problem.args());
  problem.watch(launch);
  const auto before = lockstep::counters();
  problem.run(launch);
  const double units = static_cast<double>(c.num_tokens) * c.num_kv_heads;
  return {
      cost_since(before, units * c.head_dim * 2 * 2, units),
      problem.max_error()};
}

void print(const char* name, const Dense& c, const Run& run) {
  std::printf(
      "%-22s %4d %5d | %8.2fx %8.2f (%5.2f of 2 B) %6.2f %6.2f %6.2f %7.3f | "
      "%.1e\n",
      name,
      c.head_dim,
      c.num_q_heads / c.num_kv_heads,
      run.cost.kv_reads,
      run.cost.loads,
      run.cost.narrow_loads,
      run.cost.reductions,
      run.cost.shuffles,
      run.cost.products,
      run.cost.exps,
      run.max_error);
}

}  // namespace

TEST_CASE("MLX's fragments of a matrix lie where the host execution has them") {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> a(64);
  std::vector<float> b(64);
  for (std::size_t i = 0; i < 64; ++i) {
    a[i] = normal(random);
    b[i] = normal(random);
  }
  std::vector<float> out(64, NAN);
  void* slots[] = {a.data(), b.data(), out.data()};
  lockstep::dispatch(
      {1, 1, 1}, {32, 1, 1}, mlx_kernel("mlx_matrix_product"), slots);
  for (std::size_t row = 0; row < 8; ++row) {
    for (std::size_t column = 0; column < 8; ++column) {
      double expected = 0.0;
      for (std::size_t k = 0; k < 8; ++k) {
        expected += double(a[row * 8 + k]) * double(b[k * 8 + column]);
      }
      CHECK(std::fabs(double(out[row * 8 + column]) - expected) < 1e-5);
    }
  }
}

TEST_CASE("fused paged attention needs less of everything than MLX's dense") {
  std::printf(
      "f16, both launches        D group | K/V bytes  K/V loads            "
      "  sums  shuffles products exps | max error; a (token, KV head)\n");
  for (const int head_dim : {64, 128}) {
    for (const int group : {1, 4, 8}) {
      Dense c{.head_dim = head_dim, .num_q_heads = 2 * group};
      c.num_tokens = 2048;
      CAPTURE(head_dim);
      CAPTURE(group);
      const Run ours = run_ours(c);
      print("Quire, fused paged", c, ours);
      CHECK(ours.max_error < 6e-4);
      for (const bool two_pass : {false, true}) {
        const Run dense = run_mlx(c, two_pass);
        print(two_pass ? "MLX, dense two-pass" : "MLX, dense", c, dense);
        CHECK(dense.max_error < 4e-3);
        CHECK(ours.cost.kv_reads <= dense.cost.kv_reads);
        CHECK(ours.cost.loads < dense.cost.loads);
        CHECK(ours.cost.exchanges() < dense.cost.exchanges());
        CHECK(ours.cost.exps < dense.cost.exps);
        if (group > 1) {
          CHECK(ours.cost.kv_reads < dense.cost.kv_reads);
        }
      }
    }
  }
}
