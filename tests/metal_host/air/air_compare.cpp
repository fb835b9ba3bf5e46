// Runs each case with the code that Apple's compiler made and with the source
// through the shim, and compares the outputs bit for bit. See compare.py.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "lockstep.h"

// Function constants of MLX's sdpa_vector.h; the AIR gets the same values.
extern bool has_mask, query_transposed, do_causal, bool_mask, float_mask;
extern bool has_sinks;
extern int blocks;

extern const lockstep::KernelEntry lockstep_kernels_air[];
extern const lockstep::KernelEntry lockstep_kernels_shim[];

namespace {

enum class Kernel { OnePass, TwoPass, TwoPassGqa };
enum class Mask { None, Bool, Float };

struct Case {
  Kernel kernel;
  int head_dim, batch, num_q_heads, num_kv_heads, q_len, num_tokens;
  bool causal;
  Mask mask;
  bool sinks;
};

constexpr Case kCases[] = {
    {Kernel::OnePass, 64, 2, 4, 2, 1, 37, false, Mask::None, false},
    {Kernel::OnePass, 128, 1, 4, 2, 3, 300, true, Mask::None, false},
    {Kernel::OnePass, 64, 1, 4, 2, 2, 45, false, Mask::Bool, true},
    {Kernel::OnePass, 64, 1, 4, 2, 2, 45, false, Mask::Float, false},
    {Kernel::TwoPass, 128, 1, 8, 2, 1, 300, false, Mask::None, false},
    {Kernel::TwoPass, 64, 2, 4, 2, 2, 517, true, Mask::None, true},
    {Kernel::TwoPassGqa, 128, 2, 16, 2, 1, 300, false, Mask::None, false},
};

lockstep::KernelFn find(
    const lockstep::KernelEntry* entries,
    const std::string& name) {
  for (; entries->name; ++entries) {
    if (name == entries->name) {
      return entries->run;
    }
  }
  throw std::runtime_error("no kernel " + name);
}

template <class T>
std::vector<T> normals(std::size_t size, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<T> values(size);
  for (T& x : values) {
    x = T(normal(random));
  }
  return values;
}

// The arrays of a case. K and V lie in a larger cache, the rest of it NaN.
template <class T>
class Problem {
 public:
  explicit Problem(const Case& c)
      : c_(c), rows_(std::size_t(c.batch) * c.num_q_heads * c.q_len) {
    std::mt19937 random(unsigned(c.num_tokens * 7 + c.head_dim));
    const auto dim = std::size_t(c.head_dim);
    q_ = normals<T>(rows_ * dim, random);
    k_.assign(std::size_t(c.batch) * c.num_kv_heads * head_stride(), T(NAN));
    v_ = k_;
    for (std::size_t head = 0; head < k_.size(); head += head_stride()) {
      for (std::size_t i = 0; i < std::size_t(c.num_tokens) * dim; ++i) {
        k_[head + i] = normals<T>(1, random)[0];
        v_[head + i] = normals<T>(1, random)[0];
      }
    }
    float_mask_ = normals<T>(rows_ * std::size_t(c.num_tokens), random);
    sinks_ = normals<T>(std::size_t(c.num_q_heads), random);
    for (std::size_t i = 0; i < float_mask_.size(); ++i) {
      bool_mask_.push_back(random() % 4 != 0);
    }
  }

  std::vector<T> run(
      const lockstep::KernelEntry* entries,
      const std::string& type) {
    Case c = c_;
    has_mask = c.mask != Mask::None;
    bool_mask = c.mask == Mask::Bool;
    float_mask = c.mask == Mask::Float;
    has_sinks = c.sinks;
    do_causal = c.causal;
    query_transposed = false;
    blocks = 32;
    std::vector<T> out(q_.size(), T(NAN));
    std::size_t strides[] = {head_stride(), std::size_t(c.head_dim)};
    float scale = 1.0f / std::sqrt(float(c.head_dim));
    int group = c.num_q_heads / c.num_kv_heads;
    int mask_strides[] = {1, c.num_tokens, c.q_len * c.num_tokens};
    const std::string dim = std::to_string(c.head_dim);
    const std::string types = type + "_" + dim + "_" + dim;
    const auto u = [](int x) { return unsigned(x); };
    // Both kernels that read K and V name the same, behind their outputs.
    const auto slots_with = [&](const std::vector<void*>& outputs) {
      std::vector<void*> slots = {q_.data(), k_.data(), v_.data()};
      slots.insert(slots.end(), outputs.begin(), outputs.end());
      slots.insert(
          slots.end(),
          {&c.num_tokens,
           &strides[0],
           &strides[1],
           &strides[0],
           &strides[1],
           &scale,
           bool_mask_.data(),
           float_mask_.data(),
           &mask_strides[0],
           &mask_strides[1],
           &mask_strides[2],
           sinks_.data()});
      return slots;
    };
    if (c.kernel == Kernel::OnePass) {
      std::vector<void*> slots = slots_with({out.data(), &group});
      slots.push_back(&c.num_q_heads);
      lockstep::dispatch(
          {u(c.batch * c.num_q_heads), u(c.q_len), 1},
          {1024, 1, 1},
          find(entries, "sdpa_vector_" + types),
          slots.data());
      return out;
    }
    const std::size_t num_partials = rows_ * std::size_t(blocks);
    std::vector<T> partials(num_partials * std::size_t(c.head_dim), T(NAN));
    std::vector<float> sums(num_partials, NAN);
    std::vector<float> maxs = sums;
    std::vector<void*> first =
        slots_with({partials.data(), sums.data(), maxs.data(), nullptr});
    const bool gqa = c.kernel == Kernel::TwoPassGqa;
    lockstep::dispatch(
        {u(c.num_kv_heads), u(c.batch), u(blocks)},
        {32, u(group), gqa ? 1 : u(c.q_len)},
        find(
            entries,
            std::string("sdpa_vector_2pass_1_") + (gqa ? "gqa_8_" : "") +
                types),
        first.data());
    void* second[] = {
        partials.data(), sums.data(), maxs.data(), out.data(), &blocks};
    lockstep::dispatch(
        {u(c.batch * c.num_q_heads), u(c.q_len), 1},
        {1024, 1, 1},
        find(entries, "sdpa_vector_2pass_2_" + type + "_" + dim),
        second);
    return out;
  }

 private:
  std::size_t head_stride() const {
    return (std::size_t(c_.num_tokens) + 9) * std::size_t(c_.head_dim);
  }

  Case c_;
  std::size_t rows_;
  std::vector<T> q_, k_, v_, float_mask_, sinks_;
  std::vector<char> bool_mask_;
};

struct Count {
  std::size_t same = 0;
  std::size_t all = 0;
};

template <class T>
Count compare(const std::string& type, bool print) {
  Count total;
  for (const Case& c : kCases) {
    Problem<T> problem(c);
    const std::vector<T> air = problem.run(lockstep_kernels_air, type);
    const std::vector<T> shim = problem.run(lockstep_kernels_shim, type);
    std::size_t same = 0;
    for (std::size_t i = 0; i < air.size(); ++i) {
      // Finite, so that two arrays of NaN are no agreement.
      same += std::isfinite(float(air[i])) &&
              std::memcmp(&air[i], &shim[i], sizeof(T)) == 0;
    }
    total.same += same;
    total.all += air.size();
    if (print) {
      constexpr const char* kNames[] = {"one pass", "two pass", "two pass gqa"};
      std::printf(
          "%-10s %-12s D %3d batch %d heads %2d/%d q_len %d tokens %3d: %zu of "
          "%zu outputs are the same\n",
          type.c_str(),
          kNames[int(c.kernel)],
          c.head_dim,
          c.batch,
          c.num_q_heads,
          c.num_kv_heads,
          c.q_len,
          c.num_tokens,
          same,
          air.size());
    }
  }
  return total;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const bool print = argc < 2 || std::string(argv[1]) != "quiet";
    Count sum;
    for (const Count& count :
         {compare<float>("float", print),
          compare<_Float16>("float16_t", print),
          compare<__bf16>("bfloat16_t", print)}) {
      sum.same += count.same;
      sum.all += count.all;
    }
    std::printf(
        "Apple's compiler and the shim: %zu of %zu outputs are the same\n",
        sum.same,
        sum.all);
    return sum.same == sum.all ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "air_compare: %s\n", error.what());
    return 2;
  }
}
