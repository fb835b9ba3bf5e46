#include "tools/llama/prefill_attention.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace quire::tools {

namespace mx = mlx::core;

namespace {

// Scores of 9 heads over 1,024 tokens are then 2.4 MB: a core's L2 cache.
constexpr int kTileRows = 64;

// [num_rows, num_keys]: 0 where row r may see a key, -inf for the keys of the
// rows after it. The keys of the tile's own rows are the last.
mx::array causal_mask(int num_rows, int num_keys) {
  const auto none =
      mx::full({num_rows, num_keys}, -std::numeric_limits<float>::infinity());
  return mx::triu(none, num_keys - num_rows + 1);
}

}  // namespace

mx::array exp2(const mx::array& x) {
  return mx::power(mx::array(2.0f, x.dtype()), x);
}

mx::array prefill_attention(
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    float scale) {
  const int num_tokens = q.shape(0);
  const int num_q_heads = q.shape(1);
  const int head_dim = q.shape(2);
  const int num_kv_heads = k.shape(0);
  const int group_size = num_q_heads / num_kv_heads;
  const int num_before = k.shape(1) - num_tokens;

  // The query heads of a KV head and the rows of a tile are rows of one
  // product.
  const auto queries = mx::transpose(
      mx::reshape(
          mx::astype(q, mx::float32) * mx::array(scale * kLog2E),
          {num_tokens, num_kv_heads, group_size, head_dim}),
      {1, 2, 0, 3});
  const auto keys = mx::swapaxes(mx::astype(k, mx::float32), 1, 2);
  const auto values = mx::astype(v, mx::float32);

  std::vector<mx::array> tiles;
  for (int begin = 0; begin < num_tokens; begin += kTileRows) {
    const int end = std::min(begin + kTileRows, num_tokens);
    const int num_rows = end - begin;
    const int num_keys = num_before + end;
    const auto tile_queries = mx::reshape(
        mx::slice(
            queries,
            {0, 0, begin, 0},
            {num_kv_heads, group_size, end, head_dim}),
        {num_kv_heads, group_size * num_rows, head_dim});
    const auto scores = mx::reshape(
        mx::matmul(
            tile_queries,
            mx::slice(keys, {0, 0, 0}, {num_kv_heads, head_dim, num_keys})),
        {num_kv_heads, group_size, num_rows, num_keys});
    const auto logits = scores + causal_mask(num_rows, num_keys);
    const auto weights = mx::reshape(
        exp2(logits - mx::max(logits, -1, true)),
        {num_kv_heads, group_size * num_rows, num_keys});
    const auto sums = mx::matmul(
        weights,
        mx::slice(values, {0, 0, 0}, {num_kv_heads, num_keys, head_dim}));
    tiles.push_back(mx::reshape(
        sums / mx::sum(weights, -1, true),
        {num_kv_heads, group_size, num_rows, head_dim}));
  }
  const auto rows = tiles.size() == 1 ? tiles[0] : mx::concatenate(tiles, 2);
  return mx::astype(
      mx::reshape(
          mx::transpose(rows, {2, 0, 1, 3}),
          {num_tokens, num_q_heads * head_dim}),
      q.dtype());
}

}  // namespace quire::tools
