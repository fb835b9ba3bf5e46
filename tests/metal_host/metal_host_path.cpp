#include "metal_host_path.h"

#include <cstdlib>
#include <cstring>

#include <mlx/allocator.h>

#include "host_launch.h"
#include "mlx/checks.h"
#include "mlx/path_counts.h"

namespace quire::metal_host {
namespace {

namespace mx = mlx::core;

// A copy of an array at the alignment of a Metal buffer: MLX's CPU allocator
// aligns to 8 bytes, the kernels load 16.
class Buffer {
 public:
  explicit Buffer(const mx::array& a) : num_bytes_(a.nbytes()) {
    mx::array dense = mx::contiguous(a);
    dense.eval();
    data_.reset(std::aligned_alloc(
        kAlignment, (num_bytes_ / kAlignment + 1) * kAlignment));
    std::memcpy(data_.get(), dense.data<void>(), num_bytes_);
  }
  void* data() const {
    return data_.get();
  }
  template <typename T>
  const T* data_as() const {
    return static_cast<const T*>(data());
  }
  void copy_to(const mx::array& a) const {
    mx::array handle = a;
    std::memcpy(handle.data<void>(), data(), num_bytes_);
  }

 private:
  static constexpr std::size_t kAlignment = 64;
  struct Free {
    void operator()(void* data) const {
      std::free(data);
    }
  };
  std::size_t num_bytes_;
  std::unique_ptr<void, Free> data_;
};

class MetalHostPath final : public testing::FusedPath {
 public:
  void append(
      KvCache& cache,
      const CacheStep& step,
      const mx::array& k,
      const mx::array& v) override {
    const mx::array& k_cache = cache.k_cache(0);
    const mx::array& v_cache = cache.v_cache(0);
    const Buffer k_memory(k_cache);
    const Buffer v_memory(v_cache);
    copy_blocks(
        {.num_copies = step.block_copies.shape(0),
         .num_blocks = k_cache.shape(0),
         .block_bytes = static_cast<std::int64_t>(
             k_cache.nbytes() / static_cast<std::size_t>(k_cache.shape(0))),
         .copies = Buffer(step.block_copies).data_as<std::int32_t>(),
         .k_cache = k_memory.data(),
         .v_cache = v_memory.data()});
    kv_append(
        {.num_tokens = k.shape(0),
         .num_slots =
             static_cast<std::int64_t>(k_cache.shape(0)) * k_cache.shape(1),
         .token_elems = static_cast<std::int64_t>(k.shape(1)) * k.shape(2),
         .dtype = require_float("metal_host", "k", k),
         .kv_dtype = require_float("metal_host", "k_cache", k_cache),
         .k = Buffer(k).data(),
         .v = Buffer(v).data(),
         .slots = Buffer(step.slot_mapping).data_as<std::int64_t>(),
         .k_cache = k_memory.data(),
         .v_cache = v_memory.data()});
    // In place, as the op does it: whoever holds the cache sees the tokens.
    k_memory.copy_to(k_cache);
    v_memory.copy_to(v_cache);
  }

  mx::array attend(
      const KvCache& cache,
      const CacheStep& step,
      const mx::array& q,
      float scale,
      int num_splits) override {
    const mx::array& k_cache = cache.k_cache(0);
    mx::array out(mx::allocator::malloc(q.nbytes()), q.shape(), q.dtype());
    const Buffer out_memory(out);
    paged_decode(
        {.params =
             {.num_seqs = q.shape(0),
              .num_q_heads = q.shape(1),
              .num_kv_heads = k_cache.shape(2),
              .head_dim = q.shape(2),
              .num_blocks = k_cache.shape(0),
              .block_size = k_cache.shape(1),
              .max_blocks_per_seq = step.block_table.shape(1),
              .num_splits = num_splits,
              .scale = scale},
         .q_dtype = require_float("metal_host", "q", q),
         .kv_dtype = require_float("metal_host", "k_cache", k_cache),
         .q = Buffer(q).data(),
         .k_cache = Buffer(k_cache).data(),
         .v_cache = Buffer(cache.v_cache(0)).data(),
         .block_table = Buffer(step.block_table).data_as<std::int32_t>(),
         .seq_lens = Buffer(step.seq_lens).data_as<std::int32_t>(),
         .out = out_memory.data()});
    out_memory.copy_to(out);
    count_path(Path::FusedMetalHost);
    return out;
  }
};

}  // namespace

std::unique_ptr<testing::FusedPath> make_metal_host_path() {
  return std::make_unique<MetalHostPath>();
}

}  // namespace quire::metal_host
