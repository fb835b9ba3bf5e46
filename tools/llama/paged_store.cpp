#include "tools/llama/paged_store.h"

#include <algorithm>
#include <cmath>

#include "tools/llama/prefill_attention.h"

namespace quire::tools {

PagedStore::PagedStore(
    const KvCacheOptions& options,
    NativeKernel native_kernel)
    : cache_(options), native_kernel_(native_kernel) {}

int PagedStore::add_sequence() {
  sequences_.push_back(cache_.make_sequence());
  return static_cast<int>(sequences_.size()) - 1;
}

int PagedStore::seq_len(int sequence) const {
  return sequences_[static_cast<std::size_t>(sequence)].seq_len();
}

bool PagedStore::begin_step(std::span<const int> sequences, int num_tokens) {
  std::vector<SequenceCache*> caches;
  for (const int sequence : sequences) {
    caches.push_back(&sequences_[static_cast<std::size_t>(sequence)]);
  }
  const std::vector<int> num_new_tokens(caches.size(), num_tokens);
  step_ = cache_.begin_step(caches, num_new_tokens);
  step_sequences_.assign(sequences.begin(), sequences.end());
  blocks_used_peak_ = std::max(blocks_used_peak_, cache_.pool().num_used());
  return step_.has_value();
}

mx::array PagedStore::attend(
    int layer,
    const mx::array& q,
    const mx::array& k,
    const mx::array& v) {
  const int num_tokens = q.shape(0) * q.shape(1);
  const int num_q_heads = q.shape(2);
  const int head_dim = q.shape(3);
  const auto by_token = [&](const mx::array& x) {
    return mx::reshape(x, {num_tokens, x.shape(2), head_dim});
  };
  cache_.append(layer, *step_, by_token(k), by_token(v));
  if (q.shape(1) > 1) {
    return attend_prompt(layer, q);
  }
  const auto out = paged_attention(
      by_token(q),
      cache_.k_cache(layer),
      cache_.v_cache(layer),
      step_->block_table,
      step_->seq_lens,
      1.0f / std::sqrt(static_cast<float>(head_dim)),
      {.use_native_paged_kernel = native_kernel_,
       .max_seq_len = step_->max_seq_len});
  return mx::reshape(out, {q.shape(0), 1, num_q_heads * head_dim});
}

mx::array PagedStore::attend_prompt(int layer, const mx::array& q) const {
  const SequenceCache& sequence =
      sequences_[static_cast<std::size_t>(step_sequences_.front())];
  const auto ids = sequence.block_ids();
  const auto id_array =
      mx::array(ids.data(), {static_cast<int>(ids.size())}, mx::int32);
  const auto gather = [&](const mx::array& cache) {
    const int num_kv_heads = cache.shape(2);
    const int head_dim = cache.shape(3);
    const auto tokens =
        mx::reshape(mx::take(cache, id_array, 0), {-1, num_kv_heads, head_dim});
    return mx::transpose(
        mx::slice(
            tokens, {0, 0, 0}, {sequence.seq_len(), num_kv_heads, head_dim}),
        {1, 0, 2});
  };
  return mx::expand_dims(
      prefill_attention(
          mx::squeeze(q, 0),
          gather(cache_.k_cache(layer)),
          gather(cache_.v_cache(layer)),
          1.0f / std::sqrt(static_cast<float>(q.shape(3)))),
      0);
}

void PagedStore::end_step() {
  cache_.complete_step(*step_);
  step_.reset();
}

CacheReport PagedStore::report() const {
  const KvCacheOptions& options = cache_.options();
  return {
      .kind = "paged",
      .kv_dtype = options.dtype,
      .block_size = options.block_size,
      .blocks_used_peak = blocks_used_peak_,
      .blocks_shared_peak = 0,  // one sequence a block until prompts are shared
      .blocks_total = options.num_blocks,
      .bytes = cache_.memory_bytes()};
}

}  // namespace quire::tools
