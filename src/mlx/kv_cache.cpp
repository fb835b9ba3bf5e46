#include "quire/kv_cache.h"

#include <bit>
#include <limits>
#include <stdexcept>

#include "common/error.h"
#include "mlx/checks.h"
#include "mlx/memory_limit.h"
#include "mlx/step_tables.h"

namespace quire {
namespace {

constexpr const char* kOp = "KvCache";

mx::Shape cache_shape(const KvCacheOptions& o) {
  return {o.num_blocks, o.block_size, o.num_kv_heads, o.head_dim};
}

const KvCacheOptions& validated(const KvCacheOptions& o) {
  const auto positive = [](int value, const char* name) {
    require(value >= 1, kOp, name, " must be at least 1; got ", value, ".");
  };
  positive(o.num_layers, "num_layers");
  positive(o.num_kv_heads, "num_kv_heads");
  positive(o.head_dim, "head_dim");
  positive(o.num_blocks, "num_blocks");
  require_block_size(kOp, o.block_size);
  require_float_dtype(kOp, "dtype", o.dtype);
  return o;
}

// Before anything is allocated, the pool's own lists included.
const KvCacheOptions& require_room(
    const KvCacheOptions& options,
    mx::StreamOrDevice s) {
  const std::int64_t bytes = kv_cache_bytes(options);
  const std::optional<MemoryRoom> room = memory_room(s);
  if (room && bytes > room->bytes) {
    throw std::runtime_error(
        "[KvCache] The cache must fit into memory; got a cache of " +
        format_bytes(bytes) + ", and " + room->limit + " is " +
        format_bytes(room->bytes) + ". Ask for fewer blocks.");
  }
  return options;
}

// Memory whose contents are unspecified.
mx::array allocate(const mx::Shape& shape, mx::Dtype dtype, mx::Stream s) {
  if (s.device == mx::Device::cpu) {
    std::size_t bytes = mx::size_of(dtype);
    for (const int dim : shape) {
      bytes *= static_cast<std::size_t>(dim);
    }
    return mx::array(mx::allocator::malloc(bytes), shape, dtype);
  }
  // A GPU's memory is handed out by its own stream.
  mx::array a = mx::zeros(shape, dtype, s);
  mx::eval(a);
  return a;
}

mx::array int32_array(const std::vector<std::int32_t>& v, mx::Shape shape) {
  return mx::array(v.begin(), std::move(shape), mx::int32);
}

}  // namespace

std::int64_t kv_cache_bytes(const KvCacheOptions& options) {
  const KvCacheOptions& o = validated(options);
  std::int64_t bytes = 2 * static_cast<std::int64_t>(mx::size_of(o.dtype));
  for (const int factor :
       {o.num_layers, o.num_blocks, o.block_size, o.num_kv_heads, o.head_dim}) {
    require(
        bytes <= std::numeric_limits<std::int64_t>::max() / factor,
        kOp,
        "The cache must have fewer than 2^63 bytes; got ",
        o.num_layers,
        " layers of ",
        o.num_blocks,
        " blocks.");
    bytes *= factor;
  }
  return bytes;
}

std::optional<MemoryRoom> memory_room(mx::StreamOrDevice s) {
  std::optional<MemoryRoom> room = host_memory_room();
  if (mx::to_stream(s).device == mx::Device::gpu) {
    const std::size_t limit = mx::get_memory_limit();
    const std::size_t active = mx::get_active_memory();
    const auto left =
        static_cast<std::int64_t>(limit > active ? limit - active : 0);
    if (!room || left < room->bytes) {
      room = MemoryRoom{left, "what MLX's memory limit leaves"};
    }
  }
  return room;
}

KvCache::KvCache(const KvCacheOptions& options, mx::StreamOrDevice s)
    : options_(require_room(options, s)),
      pool_(options.num_blocks),
      tables_(std::make_unique<StepTables>()) {
  const mx::Stream stream = mx::to_stream(s);
  for (int layer = 0; layer < options_.num_layers; ++layer) {
    k_caches_.push_back(
        allocate(cache_shape(options_), options_.dtype, stream));
    v_caches_.push_back(
        allocate(cache_shape(options_), options_.dtype, stream));
  }
}

KvCache::~KvCache() = default;

const KvCacheOptions& KvCache::options() const {
  return options_;
}

std::int64_t KvCache::memory_bytes() const {
  return kv_cache_bytes(options_);
}

BlockPool& KvCache::pool() {
  return pool_;
}

SequenceCache KvCache::make_sequence() {
  return SequenceCache(pool_, options_.block_size);
}

std::optional<CacheStep> KvCache::begin_step(
    std::span<SequenceCache* const> sequences,
    std::span<const int> num_new_tokens) {
  for (const SequenceCache* sequence : sequences) {
    require(
        &sequence->pool() == &pool_,
        "begin_step",
        "Every sequence must be of this cache's pool; got one of another.");
  }
  const std::optional<std::vector<AppendResult>> appended =
      append_all(sequences, num_new_tokens);
  if (!appended) {
    return std::nullopt;
  }

  std::vector<std::int32_t> seq_lens;
  std::vector<std::int64_t> slots;
  std::vector<std::int32_t> copies;
  int max_seq_len = 0;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const SequenceCache& sequence = *sequences[i];
    const AppendResult& result = (*appended)[i];
    const int seq_len = sequence.seq_len();
    seq_lens.push_back(seq_len);
    max_seq_len = std::max(max_seq_len, seq_len);
    for (int token = result.begin_token; token < seq_len; ++token) {
      slots.push_back(sequence.slot(token));
    }
    if (result.copy) {
      copies.push_back(result.copy->source);
      copies.push_back(result.copy->destination);
    }
  }
  const int num_seqs = static_cast<int>(seq_lens.size());
  const int num_slots = static_cast<int>(slots.size());
  const int num_copies = static_cast<int>(copies.size() / 2);
  return CacheStep{
      .id = pool_.begin_step(),
      .block_table = tables_->make(sequences),
      .seq_lens = int32_array(seq_lens, {num_seqs}),
      .slot_mapping = mx::array(slots.begin(), {num_slots}, mx::int64),
      .block_copies = int32_array(copies, {num_copies, 2}),
      .max_seq_len = max_seq_len,
  };
}

void KvCache::require_layer(const char* op, int layer) const {
  require(
      layer >= 0 && layer < options_.num_layers,
      op,
      "layer must be from 0 to ",
      options_.num_layers - 1,
      "; got ",
      layer,
      ".");
}

void KvCache::append(
    int layer,
    const CacheStep& step,
    const mx::array& k,
    const mx::array& v,
    mx::StreamOrDevice s) {
  require_layer("append", layer);
  const auto idx = static_cast<std::size_t>(layer);
  const auto [k_copied, v_copied] =
      copy_blocks(k_caches_[idx], v_caches_[idx], step.block_copies, s);
  std::tie(k_caches_[idx], v_caches_[idx]) =
      kv_append(k_copied, v_copied, k, v, step.slot_mapping, s);
}

const mx::array& KvCache::k_cache(int layer) const {
  require_layer("k_cache", layer);
  return k_caches_[static_cast<std::size_t>(layer)];
}

const mx::array& KvCache::v_cache(int layer) const {
  require_layer("v_cache", layer);
  return v_caches_[static_cast<std::size_t>(layer)];
}

std::vector<mx::array> KvCache::arrays() const {
  std::vector<mx::array> out = k_caches_;
  out.insert(out.end(), v_caches_.begin(), v_caches_.end());
  return out;
}

void KvCache::complete_step(const CacheStep& step) {
  pool_.complete_step(step.id);
}

}  // namespace quire
