#include "tools/bench/cache_data.h"

#include <cstring>
#include <set>
#include <vector>

#include <doctest/doctest.h>

namespace quire::bench {
namespace {

namespace mx = mlx::core;

Shape small_shape() {
  return {
      .num_seqs = 2,
      .context = 37,
      .ragged = false,
      .block_size = 16,
      .head_dim = 64,
      .num_q_heads = 4,
      .num_kv_heads = 2,
      .q_dtype = DType::Float32,
      .kv_dtype = DType::Float16,
  };
}

TEST_CASE("Bytes and multiply-adds are those of the tokens alone") {
  Shape shape = small_shape();
  CHECK(kv_bytes(shape, DType::Float16) == 2 * 2 * 37 * 2 * 64 * 2);
  CHECK(kv_bytes(shape, DType::Float32) == 2 * kv_bytes(shape, DType::Float16));
  CHECK(multiply_adds(shape) == 2.0 * 2 * 37 * 4 * 64);
  shape.ragged = true;
  CHECK(seq_lens(shape) == std::vector<int>{17, 37});
  CHECK(kv_bytes(shape, DType::Float16) == 2 * (17 + 37) * 2 * 64 * 2);
  shape.num_seqs = 1;
  CHECK(seq_lens(shape) == std::vector<int>{37});
}

TEST_CASE("The tables of all sets are one permutation of the pool") {
  const Shape shape = small_shape();
  const CacheData data(shape, 7 * kv_bytes(shape, shape.kv_dtype) - 1);
  CHECK(data.num_sets() == 7);
  CHECK(data.total_kv_bytes() == 7 * kv_bytes(shape, shape.kv_dtype));
  std::vector<BlockId> ids;
  for (int set = 0; set < data.num_sets(); ++set) {
    const mx::array& table = data.block_table(set);
    CHECK(table.shape() == mx::Shape{2, 3});
    ids.insert(
        ids.end(),
        table.data<std::int32_t>(),
        table.data<std::int32_t>() + table.size());
  }
  CHECK_FALSE(std::is_sorted(ids.begin(), ids.end()));
  CHECK(std::set<BlockId>(ids.begin(), ids.end()).size() == ids.size());
  CHECK(static_cast<int>(ids.size()) == data.k_cache().shape(0));
}

TEST_CASE("No two blocks hold the same, and K is not V") {
  const CacheData data(small_shape(), 1 << 20);
  std::set<std::vector<std::uint16_t>> blocks;
  const int num_blocks = data.k_cache().shape(0);
  const std::size_t block = 16 * 2 * 64;
  for (const mx::array* cache : {&data.k_cache(), &data.v_cache()}) {
    const auto* bits = cache->data<std::uint16_t>();
    for (int i = 0; i < num_blocks; ++i, bits += block) {
      blocks.emplace(bits, bits + block);
    }
  }
  CHECK(blocks.size() == 2 * static_cast<std::size_t>(num_blocks));
}

TEST_CASE("A dense set holds the tokens that the table leads to") {
  const Shape shape = small_shape();
  const CacheData data(shape, 1 << 20);
  const DenseSets sets = make_dense_sets(
      data, DType::Float16, 3 * kv_bytes(shape, DType::Float16), [] {});
  REQUIRE(sets.k.size() == 3);
  const int set = 2;
  const DecodeArgs args = data.args(set);
  const auto* k_cache = static_cast<const std::uint16_t*>(args.k_cache);
  const auto* v_cache = static_cast<const std::uint16_t*>(args.v_cache);
  CHECK(sets.k[set].shape() == mx::Shape{2, 2, 37, 64});
  const auto* k = sets.k[set].data<std::uint16_t>();
  const auto* v = sets.v[set].data<std::uint16_t>();
  for (int seq = 0; seq < 2; ++seq) {
    for (int head = 0; head < 2; ++head) {
      for (int token = 0; token < 37; ++token, k += 64, v += 64) {
        const std::int64_t block = args.block_table[seq * 3 + token / 16];
        const std::int64_t row = ((block * 16 + token % 16) * 2 + head) * 64;
        CHECK(std::memcmp(k, k_cache + row, 128) == 0);
        CHECK(std::memcmp(v, v_cache + row, 128) == 0);
      }
    }
  }
}

}  // namespace
}  // namespace quire::bench
