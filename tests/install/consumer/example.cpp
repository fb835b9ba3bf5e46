#include <quire/kv_cache.h>
#include <quire/runtime.h>
#include <iostream>

int main() {
  namespace mx = mlx::core;
  quire::KvCache cache(
      {.num_layers = 1, .num_kv_heads = 2, .head_dim = 64, .num_blocks = 8});
  quire::SequenceCache sequence = cache.make_sequence();
  for (int token = 0; token < 100; ++token) {
    const auto step = cache.begin_step({{&sequence}}, {{1}});
    if (!step)
      return 1;  // the pool is full: a value, not an exception
    const mx::array q = mx::random::normal({1, 8, 64});  // 4 heads share a KV
    const mx::array k = mx::random::normal({1, 2, 64});  // head: GQA
    const mx::array v = mx::random::normal({1, 2, 64});
    cache.append(0, *step, k, v);  // in place, float32 to the cache's float16
    mx::eval(quire::paged_attention(
        q,
        cache.k_cache(0),
        cache.v_cache(0),
        step->block_table,
        step->seq_lens,
        0.125f));
    cache.complete_step(*step);
  }
  std::cout << sequence.seq_len() << " tokens in "
            << sequence.block_ids().size() << " blocks, fused_cpu "
            << quire::path_counts().fused_cpu << '\n';
}
