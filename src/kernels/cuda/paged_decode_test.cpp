#include <doctest/doctest.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>

#include "kernels/cpu/decode_test_inputs.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/launch.h"
#include "kernels/reference/paged_decode_reference.h"

namespace quire::cuda {
namespace {

using test::DecodeCase;
using test::DecodeInputs;
using test::Normal;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
// Kernels compiled for sm_90, of one 16-bit cache type and of float32.
constexpr std::size_t kNumKernels16Bit = 30;
constexpr std::size_t kNumKernelsFloat32 = 14;
constexpr DType kDTypes[] = {DType::Float16, DType::BFloat16, DType::Float32};

// Skips, visibly, where there is no GPU.
bool have_device() {
  static const bool have = [] {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  }();
  if (!have) {
    MESSAGE("SKIPPED: no CUDA device");
  }
  return have;
}

// How one launch of a case is made.
struct Mode {
  int num_splits = 0;
  bool clusters = true;
  int num_sms = 0;  // launched as for so many; 0: as many as there are
};
constexpr Mode kModes[] = {{0, true}, {0, false}, {1, false}, {3, false}};

std::string describe(const DecodeCase& c, const Mode& mode) {
  std::string text =
      std::string("q ") + dtype_name(c.q_dtype) + " cache " +
      dtype_name(c.kv_dtype) + " heads " + std::to_string(c.num_q_heads) + "/" +
      std::to_string(c.num_kv_heads) + " dim " + std::to_string(c.head_dim) +
      " block " + std::to_string(c.block_size) + " splits " +
      std::to_string(mode.num_splits) + (mode.clusters ? " clusters" : "") +
      (mode.num_sms > 0 ? " SMs " + std::to_string(mode.num_sms) : "") +
      " lens";
  for (const int len : c.seq_lens) {
    text += " " + std::to_string(len);
  }
  return text;
}

// A decode step in device memory.
class DeviceStep {
 public:
  DeviceStep(DecodeInputs& inputs, const Mode& mode)
      : args_(inputs.args(mode.num_splits)),
        q_(inputs.q),
        k_(inputs.k),
        v_(inputs.v),
        table_(inputs.table),
        lens_(std::vector<std::int32_t>(
            args_.seq_lens,
            args_.seq_lens + args_.params.num_seqs)),
        out_(inputs.q.size() + 2 * DecodeInputs::kCanaries) {
    DeviceLimits limits = device_limits(0, mode.clusters);
    if (mode.num_sms > 0) {
      limits.num_sms = mode.num_sms;
    }
    DecodeChoice choice = choose_decode_launch(
        args_.params, args_.q_dtype, args_.kv_dtype, limits);
    REQUIRE_MESSAGE(choice, choice.reason);
    launch = choice.launch;
    workspace_ = DeviceBuffer<std::byte>(
        static_cast<std::size_t>(launch.workspace_bytes));
    workspace_.fill(0xff);
    launch.args.q = q_.data();
    launch.args.k_cache = k_.data();
    launch.args.v_cache = v_.data();
    launch.args.block_table = table_.data();
    launch.args.seq_lens = lens_.data();
    launch.args.out = out_.data() + DecodeInputs::kCanaries;
    launch.args.mail = reinterpret_cast<float*>(workspace_.data());
    out_.fill(0xa5);
  }

  std::vector<std::byte> run() {
    out_.fill(0xa5);
    launch_decode(launch, nullptr);
    QUIRE_CHECK_CUDA(cudaDeviceSynchronize());
    return output();
  }

  std::vector<std::byte> output() const {
    const std::vector<std::byte> all = out_.download();
    const auto alive = [](std::byte b) { return b == std::byte{0xa5}; };
    CHECK(
        std::all_of(all.begin(), all.begin() + DecodeInputs::kCanaries, alive));
    CHECK(std::all_of(all.end() - DecodeInputs::kCanaries, all.end(), alive));
    return {
        all.begin() + DecodeInputs::kCanaries,
        all.end() - DecodeInputs::kCanaries};
  }

  bool mail_is_empty() const {
    const std::vector<std::byte> words = workspace_.download();
    return std::all_of(words.begin(), words.end(), [](std::byte b) {
      return b == std::byte{0xff};
    });
  }

  void set_lens(const std::vector<std::int32_t>& lens) {
    lens_.upload(lens);
  }
  void set_table(const std::vector<std::int32_t>& table) {
    table_.upload(table);
  }

  DecodeLaunch launch;

 private:
  DecodeArgs args_;
  DeviceBuffer<std::byte> q_, k_, v_;
  DeviceBuffer<std::int32_t> table_, lens_;
  DeviceBuffer<std::byte> out_, workspace_;
};

std::vector<double> reference_of(DecodeInputs& inputs) {
  std::vector<double> reference(static_cast<std::size_t>(inputs.out_size()));
  quire::reference::paged_decode(inputs.args(), reference.data());
  return reference;
}

// How far a 16-bit cache's result may be off: besides what test::tolerance
// derives, softmax weights are rounded to the cache's type on their way into
// the tensor cores. They sum to 1, so an output moves by at most that rounding
// times the largest |v|, 4.5 in these inputs.
double weight_rounding(DType kv_dtype) {
  return kv_dtype == DType::Float32   ? 0.0
         : kv_dtype == DType::Float16 ? 4.5 * 0x1p-12
                                      : 4.5 * 0x1p-9;
}

double worst_error(
    const std::vector<std::byte>& out,
    const std::vector<double>& reference,
    const DecodeCase& c,
    double logit = 1.0) {
  double worst = 0.0;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    const double x = test::get(out, static_cast<std::int64_t>(i), c.q_dtype);
    const double bound = test::tolerance(c.q_dtype, reference[i], logit) +
                         weight_rounding(c.kv_dtype);
    const double error = std::abs(x - reference[i]) / bound;
    worst = std::isnan(error) ? std::numeric_limits<double>::infinity()
                              : std::max(worst, error);
  }
  return worst;
}

// Runs a case twice; one line of the table if it is wanted
// (QUIRE_TEST_TABLE=1). Returns the kernel that served it.
DecodeVariant check_step(
    const DecodeCase& c,
    DecodeInputs& inputs,
    const std::vector<double>& reference,
    const Mode& mode) {
  DeviceStep step(inputs, mode);
  const std::vector<std::byte> out = step.run();
  const double worst = worst_error(out, reference, c);
  const std::string name = describe(c, mode);
  CHECK_MESSAGE(worst <= 1.0, name);
  CHECK_MESSAGE(step.run() == out, name);  // same bits, mail reused
  CHECK_MESSAGE(step.mail_is_empty(), name);
  static const bool print = std::getenv("QUIRE_TEST_TABLE") != nullptr;
  if (print) {
    std::printf("%-110s %.3f\n", name.c_str(), worst);
  }
  return step.launch.variant;
}

// Runs a case with every split and merge.
void check_case(const DecodeCase& c) {
  DecodeInputs inputs(c, kNaN);
  const std::vector<double> reference = reference_of(inputs);
  for (const Mode& mode : kModes) {
    check_step(c, inputs, reference, mode);
  }
}

constexpr std::array<std::pair<int, int>, 8> kHeads = {
    {{4, 2}, {3, 3}, {9, 3}, {8, 2}, {7, 1}, {16, 2}, {32, 2}, {71, 1}}};
constexpr std::array<int, 5> kBlockSizes = {8, 16, 32, 64, 128};

std::vector<std::vector<int>> lengths(int block_size) {
  return {
      {0, 1, block_size - 1, block_size, block_size + 1, 0, 333, 65, 0},
      {700},
      {17, 0, 0, 2000}};
}

// Tables so wide that a launch is made for sequences of 28 thousand tokens, or
// of 262 thousand.
constexpr int kMedium = 1760;
constexpr int kWide = 1 << 14;

// Short enough for the slowest of compute-sanitizer's tools.
TEST_CASE("every kernel agrees with the double reference, one step each") {
  if (!have_device()) {
    return;
  }
  std::vector<DecodeVariant> seen;
  for (const DType kv : kDTypes) {
    for (const int head_dim : kHeadDims) {
      const auto check = [&](int q_heads,
                             int kv_heads,
                             const std::vector<int>& lens,
                             int extra_width,
                             DType q) {
        const DecodeCase c = {
            .q_dtype = q,
            .kv_dtype = kv,
            .num_q_heads = q_heads,
            .num_kv_heads = kv_heads,
            .head_dim = head_dim,
            .block_size = 16,
            .seq_lens = lens,
            .extra_width = extra_width};
        DecodeInputs inputs(c, kNaN);
        const DecodeVariant v = check_step(c, inputs, reference_of(inputs), {});
        if (std::find(seen.begin(), seen.end(), v) == seen.end()) {
          seen.push_back(v);
        }
      };
      const std::vector<int> few = {33, 0, 130};
      check(32, 8, {300}, 2, kv);  // clusters
      check(64, 8, {300}, 2, kv);
      check(9, 3, few, 2, kv);
      check(9, 3, few, kWide, kv);
      check(7, 1, few, kWide, kv);
      check(8, 2, few, kMedium, kv);
      check(8, 2, few, kWide, kv);
      check(16, 2, few, kWide, kv);
      check(22, 2, few, kWide, kv);
      check(12, 1, few, 2, kv);
      check(
          6, 2, few, 2, kv == DType::Float32 ? DType::Float16 : DType::Float32);
    }
  }
  if (device_limits(0, true).compute_capability == 90) {
    CHECK(seen.size() == 2 * kNumKernels16Bit + kNumKernelsFloat32);
  }
}

// One test case a cache type, so that they can be run side by side.
void check_table(DType kv) {
  std::size_t turn = static_cast<std::size_t>(kv);
  for (const DType q : kDTypes) {
    for (const int head_dim : kHeadDims) {
      for (int variant = 0; variant < 3; ++variant, ++turn) {
        const auto [q_heads, kv_heads] = kHeads[turn % kHeads.size()];
        const int block_size = kBlockSizes[turn % kBlockSizes.size()];
        for (const std::vector<int>& lens : lengths(block_size)) {
          check_case(
              {.q_dtype = q,
               .kv_dtype = kv,
               .num_q_heads = q_heads,
               .num_kv_heads = kv_heads,
               .head_dim = head_dim,
               .block_size = block_size,
               .seq_lens = lens,
               .extra_width = variant == 2 ? kWide : 2,
               .seed = static_cast<std::uint32_t>(turn + 1)});
        }
      }
    }
  }
}

TEST_CASE("table, f16 cache: query types, head dims, groups and blocks agree") {
  if (have_device()) {
    check_table(DType::Float16);
  }
}

TEST_CASE(
    "table, bf16 cache: query types, head dims, groups and blocks agree") {
  if (have_device()) {
    check_table(DType::BFloat16);
  }
}

TEST_CASE("table, f32 cache: query types, head dims, groups and blocks agree") {
  if (have_device()) {
    check_table(DType::Float32);
  }
}

TEST_CASE("many heads and long sequences agree") {
  if (!have_device()) {
    return;
  }
  std::vector<int> ragged(77);
  std::mt19937 rng(7);
  for (int& len : ragged) {
    len = rng() % 5 == 0 ? 0 : static_cast<int>(rng() % 400);
  }
  for (const DType dtype : kDTypes) {
    DecodeCase c = {
        .q_dtype = dtype,
        .kv_dtype = dtype,
        .num_q_heads = 32,
        .num_kv_heads = 8,
        .head_dim = 128,
        .block_size = 32,
        .seq_lens = ragged};
    check_case(c);
    c.seq_lens = {3000};
    check_case(c);
    c.num_q_heads = 9;
    c.num_kv_heads = 3;
    c.head_dim = 64;
    c.seq_lens = {40000, 9, 25000};
    check_case(c);
    c.num_q_heads = 2;
    c.num_kv_heads = 1;
    c.seq_lens = {100000};
    check_case(c);
  }
}

// With the ranges of one or two multiprocessors a warp has hundreds of units:
// it fetches ids many times for a sequence, and a range begins and ends inside
// one. The lengths end within a unit.
TEST_CASE("long ranges of permuted blocks agree, whatever the block size") {
  if (!have_device()) {
    return;
  }
  for (const DType dtype : kDTypes) {
    for (const int block_size : {8, 16, 32, 64, 128, 256}) {
      const DecodeCase c = {
          .q_dtype = dtype,
          .kv_dtype = dtype,
          .num_q_heads = 2,
          .num_kv_heads = 1,
          .block_size = block_size,
          .seq_lens = {24007, 0, 333, 7689, 9001}};
      DecodeInputs inputs(c, kNaN);
      const std::vector<double> reference = reference_of(inputs);
      for (const Mode& mode : {Mode{0, false, 1}, Mode{0, false, 2}}) {
        check_step(c, inputs, reference, mode);
      }
    }
  }
}

TEST_CASE("long ranges of permuted blocks agree in every kernel") {
  if (!have_device()) {
    return;
  }
  int block_size = 16;
  for (const DType kv : kDTypes) {
    for (const int head_dim : kHeadDims) {
      const auto check = [&](int q_heads, int kv_heads, DType q) {
        const DecodeCase c = {
            .q_dtype = q,
            .kv_dtype = kv,
            .num_q_heads = q_heads,
            .num_kv_heads = kv_heads,
            .head_dim = head_dim,
            .block_size = block_size,
            .seq_lens = {5003, 700, 3057}};
        DecodeInputs inputs(c, kNaN);
        check_step(c, inputs, reference_of(inputs), {0, true, 1});
        block_size = block_size == 256 ? 16 : 2 * block_size;
      };
      check(3, 3, kv);
      check(4, 2, kv);
      check(8, 1, kv);
      check(16, 1, kv);
      check(22, 2, kv);
      check(2, 1, kv == DType::Float32 ? DType::Float16 : DType::Float32);
    }
  }
}

// One sequence and several, whole ranges and parts of a sequence that are
// merged by mail; blocks of half a unit.
TEST_CASE("two warps that share a ring agree") {
  if (!have_device()) {
    return;
  }
  for (const DType dtype : {DType::Float16, DType::BFloat16}) {
    for (const int block_size : {8, 64}) {
      for (const std::vector<int>& lens :
           {std::vector<int>{9001}, {5003, 0, 700, 17, 3057}}) {
        const DecodeCase c = {
            .q_dtype = dtype,
            .kv_dtype = dtype,
            .num_q_heads = 52,
            .num_kv_heads = 4,
            .head_dim = 96,
            .block_size = block_size,
            .seq_lens = lens};
        DecodeInputs inputs(c, kNaN);
        const std::vector<double> reference = reference_of(inputs);
        for (const int num_sms : {1, 2, 4}) {
          const DecodeVariant v =
              check_step(c, inputs, reference, {0, true, num_sms});
          CHECK(v.kv_heads == 2);
          CHECK(v.max_heads == 16);
        }
      }
    }
  }
}

// The same tokens in other blocks: block i has become the i-th last.
DecodeInputs in_other_blocks(DecodeInputs inputs) {
  const std::int32_t num_blocks = inputs.args().params.num_blocks;
  const auto reverse = [&](std::vector<std::byte>& cache) {
    const std::size_t bytes =
        cache.size() / static_cast<std::size_t>(num_blocks);
    std::vector<std::byte> reversed;
    for (std::size_t end = cache.size(); end > 0; end -= bytes) {
      reversed.insert(
          reversed.end(),
          cache.begin() + static_cast<std::ptrdiff_t>(end - bytes),
          cache.begin() + static_cast<std::ptrdiff_t>(end));
    }
    cache = reversed;
  };
  reverse(inputs.k);
  reverse(inputs.v);
  for (std::int32_t& id : inputs.table) {
    id = id == DecodeInputs::kUnusedId ? id : num_blocks - 1 - id;
  }
  return inputs;
}

TEST_CASE("a row does not depend on where its blocks lie") {
  if (!have_device()) {
    return;
  }
  for (const DType dtype : {DType::Float16, DType::Float32}) {
    const DecodeCase c = {
        .q_dtype = DType::Float32, .kv_dtype = dtype, .seq_lens = {9001, 4003}};
    DecodeInputs inputs(c, kNaN);
    DecodeInputs moved = in_other_blocks(inputs);
    const auto same_bits = [&](const Mode& mode) {
      return DeviceStep(inputs, mode).run() == DeviceStep(moved, mode).run();
    };
    CHECK(same_bits({1, false}));
    CHECK(same_bits({2, false}));
    CHECK(same_bits({0, false}));
    CHECK(same_bits({0, false, 1}));
  }
}

TEST_CASE("extreme logits stay finite and right") {
  if (!have_device()) {
    return;
  }
  for (const DType dtype : kDTypes) {
    DecodeCase c = {
        .q_dtype = dtype,
        .kv_dtype = dtype,
        .num_q_heads = 4,
        .num_kv_heads = 2,
        .head_dim = 64,
        .block_size = 16,
        .seq_lens = {300, 5}};
    for (const float gain : {0.0f, 1000.0f}) {
      DecodeInputs inputs(c, kNaN);
      for (std::int64_t i = 0; i < inputs.out_size(); ++i) {
        test::put(inputs.q, i, gain * test::get(inputs.q, i, dtype), dtype);
      }
      const std::vector<double> reference = reference_of(inputs);
      DeviceStep step(inputs, {0, true});
      CHECK(worst_error(step.run(), reference, c, 4.0 * gain) <= 1.0);
    }
  }
}

TEST_CASE("a captured launch follows lengths and tables that change") {
  if (!have_device()) {
    return;
  }
  for (const int num_seqs : {1, 5}) {
    DecodeCase c = {
        .q_dtype = DType::Float16,
        .kv_dtype = DType::Float16,
        .num_q_heads = 32,
        .num_kv_heads = 8,
        .head_dim = 128,
        .block_size = 32,
        .seq_lens = std::vector<int>(static_cast<std::size_t>(num_seqs), 5000)};
    DecodeInputs inputs(c, kNaN);
    DeviceStep step(inputs, {0, num_seqs > 1});
    const std::vector<std::int32_t> zeros(
        static_cast<std::size_t>(num_seqs), 0);
    step.set_lens(zeros);
    cudaStream_t stream;
    QUIRE_CHECK_CUDA(cudaStreamCreate(&stream));
    decode_function(step.launch);  // loads: not allowed while capturing
    QUIRE_CHECK_CUDA(
        cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    launch_decode(step.launch, stream);
    cudaGraph_t graph;
    QUIRE_CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
    cudaGraphExec_t replay;
    QUIRE_CHECK_CUDA(cudaGraphInstantiate(&replay, graph, 0));

    std::mt19937 rng(3);
    for (int i = 0; i < 100; ++i) {
      DecodeCase now = c;
      std::vector<std::int32_t> lens = zeros;
      for (std::size_t s = 0; s < lens.size() && i % 10 != 0; ++s) {
        lens[s] = static_cast<std::int32_t>(rng() % (i % 10 == 9 ? 5001 : 200));
      }
      // The second half of the blocks trade places: another table.
      std::vector<std::int32_t> table = inputs.table;
      for (int s = 0; s < num_seqs && i % 2 == 1; ++s) {
        std::swap(
            table[static_cast<std::size_t>(s * inputs.width())],
            table[static_cast<std::size_t>(s * inputs.width() + 3)]);
      }
      step.set_lens(lens);
      step.set_table(table);
      QUIRE_CHECK_CUDA(cudaGraphLaunch(replay, stream));
      QUIRE_CHECK_CUDA(cudaStreamSynchronize(stream));
      DecodeArgs args = inputs.args();
      args.seq_lens = lens.data();
      args.block_table = table.data();
      std::vector<double> reference(
          static_cast<std::size_t>(inputs.out_size()));
      quire::reference::paged_decode(args, reference.data());
      CAPTURE(i);
      CHECK(worst_error(step.output(), reference, now) <= 1.0);
    }
    QUIRE_CHECK_CUDA(cudaGraphExecDestroy(replay));
    QUIRE_CHECK_CUDA(cudaGraphDestroy(graph));
    QUIRE_CHECK_CUDA(cudaStreamDestroy(stream));
  }
}

TEST_CASE("with forced splits a row does not depend on its batch") {
  if (!have_device()) {
    return;
  }
  for (const DType dtype : kDTypes) {
    for (const int num_splits : {1, 2, 4, 64}) {
      DecodeCase c = {
          .q_dtype = dtype,
          .kv_dtype = dtype,
          .num_q_heads = 8,
          .num_kv_heads = 2,
          .head_dim = 128,
          .block_size = 16,
          .seq_lens = {1100, 3, 0, 517, 64}};
      DecodeInputs inputs(c, kNaN);
      DeviceStep all(inputs, {num_splits, true});
      const std::vector<std::byte> out = all.run();
      const std::size_t row = out.size() / c.seq_lens.size();
      for (std::size_t s = 0; s < c.seq_lens.size(); ++s) {
        DeviceStep alone(inputs, {num_splits, true});
        alone.launch.args.num_seqs = 1;
        alone.launch.grid /= static_cast<std::int64_t>(c.seq_lens.size());
        alone.launch.args.num_ranges = Divider(alone.launch.args.num_splits);
        alone.launch.args.num_mail_slots /=
            static_cast<std::int64_t>(c.seq_lens.size());
        alone.launch.args.q =
            static_cast<const std::byte*>(alone.launch.args.q) + s * row;
        alone.launch.args.block_table +=
            static_cast<std::int64_t>(s) * inputs.width();
        alone.launch.args.seq_lens += s;
        std::vector<std::byte> result = alone.run();
        result.resize(row);
        CAPTURE(num_splits);
        CAPTURE(s);
        CHECK(std::equal(
            result.begin(),
            result.end(),
            out.begin() + static_cast<std::ptrdiff_t>(s * row)));
      }
    }
  }
}

TEST_CASE("batches beyond 65,535 are right") {
  if (!have_device()) {
    return;
  }
  for (const auto& [num_seqs, q_heads, kv_heads] :
       {std::array{70000, 8, 1}, std::array{8200, 8, 8}}) {
    for (const int num_splits : {0, 2}) {
      DecodeCase c = {
          .q_dtype = DType::Float16,
          .kv_dtype = DType::Float16,
          .num_q_heads = q_heads,
          .num_kv_heads = kv_heads,
          .head_dim = 64,
          .block_size = 8,
          .seq_lens = std::vector<int>(static_cast<std::size_t>(num_seqs), 1),
          .extra_width = 1};
      DecodeInputs inputs(c, kNaN);
      DeviceStep step(inputs, {num_splits, true});
      CHECK(worst_error(step.run(), reference_of(inputs), c) <= 1.0);
    }
  }
}

TEST_CASE("offsets beyond 2^31 elements reach the top blocks") {
  if (!have_device()) {
    return;
  }
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  QUIRE_CHECK_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
  // 20 GB of K and of V where the card has them, else 5 GB.
  const std::size_t cache_bytes =
      free_bytes > 44ull << 30 ? 20ull << 30 : 5ull << 30;
  if (free_bytes < 2 * cache_bytes + (1ull << 30)) {
    MESSAGE("SKIPPED: not enough memory");
    return;
  }
  DecodeCase c = {
      .q_dtype = DType::Float16,
      .kv_dtype = DType::Float16,
      .num_q_heads = 32,
      .num_kv_heads = 8,
      .head_dim = 128,
      .block_size = 32,
      .seq_lens = {96, 70}};
  DecodeInputs inputs(c, kNaN);
  DeviceStep small(inputs, {0, true});
  const std::vector<std::byte> expected = small.run();
  DeviceBuffer<std::byte> k(cache_bytes);
  DeviceBuffer<std::byte> v(cache_bytes);
  const std::size_t offset =
      cache_bytes / (64 << 10) * (64 << 10) - inputs.k.size();
  QUIRE_CHECK_CUDA(cudaMemcpy(
      k.data() + offset, inputs.k.data(), inputs.k.size(), cudaMemcpyDefault));
  QUIRE_CHECK_CUDA(cudaMemcpy(
      v.data() + offset, inputs.v.data(), inputs.v.size(), cudaMemcpyDefault));
  DeviceStep large(inputs, {0, true});
  std::vector<std::int32_t> table = inputs.table;
  for (std::int32_t& id : table) {
    id = id == DecodeInputs::kUnusedId
             ? id
             : id + static_cast<std::int32_t>(offset / (64 << 10));
  }
  large.set_table(table);
  large.launch.args.k_cache = k.data();
  large.launch.args.v_cache = v.data();
  CHECK(large.run() == expected);
}

// Runs without a GPU and without a driver too.
TEST_CASE("a device that is not there is an error that says so") {
  std::string message;
  try {
    device_limits(99, false);
  } catch (const std::runtime_error& e) {
    message = e.what();
  }
  CHECK(message.find("[cuda] No CUDA device 99: ") == 0);
}

TEST_CASE("memory that is not there is an error, after which all is well") {
  if (!have_device()) {
    return;
  }
  std::string message;
  try {
    DeviceBuffer<std::byte> too_large(std::size_t{1} << 50);
  } catch (const std::runtime_error& e) {
    message = e.what();
  }
  CHECK(message.find("out of memory") != std::string::npos);
  cudaGetLastError();
  check_case({.num_q_heads = 4, .num_kv_heads = 2, .seq_lens = {40}});
}

// Under memcheck: nothing is read past a table row or through a foreign id.
TEST_CASE("lengths outside the table's row are cut to it") {
  if (!have_device()) {
    return;
  }
  DecodeCase c = {
      .q_dtype = DType::Float16,
      .kv_dtype = DType::Float16,
      .seq_lens = {40, 33},
      .extra_width = 0};
  DecodeInputs inputs(c, 1.0f);
  DeviceStep step(inputs, {0, true});
  const int widest = inputs.width() * c.block_size;
  std::vector<std::int32_t> table = inputs.table;
  std::replace(table.begin(), table.end(), DecodeInputs::kUnusedId, 0);
  step.set_table(table);
  step.set_lens({40, widest});
  const std::vector<std::byte> full = step.run();
  step.set_lens({40, widest + 1});
  CHECK(step.run() == full);
  step.set_lens({40, std::numeric_limits<std::int32_t>::max()});
  CHECK(step.run() == full);

  step.set_lens({-1, 33});
  const std::vector<std::byte> out = step.run();
  CHECK(std::all_of(
      out.begin(),
      out.begin() + static_cast<std::ptrdiff_t>(out.size() / 2),
      [](std::byte b) { return b == std::byte{0}; }));
}

}  // namespace
}  // namespace quire::cuda
