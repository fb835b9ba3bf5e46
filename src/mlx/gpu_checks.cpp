#include "mlx/gpu_checks.h"

#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/decode_checks.h"

namespace quire {
namespace {

template <class T>
std::vector<T> host_values(const mx::array& a, mx::Stream stream) {
  std::vector<T> host(a.size());
  download(a, host.data(), stream);
  return host;
}

[[noreturn]] void fail(const std::string& message) {
  throw std::runtime_error(message);
}

}  // namespace

void check_decode_step(
    const DecodeParams& params,
    int max_seq_len,
    const mx::array& block_table,
    const mx::array& seq_lens,
    mx::Stream stream) {
  const auto lens = host_values<std::int32_t>(seq_lens, stream);
  const auto table = host_values<std::int32_t>(block_table, stream);
  check_max_seq_len(lens.data(), params.num_seqs, max_seq_len);
  check_block_table(
      table.data(),
      lens.data(),
      {.num_seqs = params.num_seqs,
       .max_blocks_per_seq = params.max_blocks_per_seq,
       .num_blocks = params.num_blocks,
       .block_size = params.block_size});
}

void check_slots(
    const mx::array& slots,
    std::int64_t num_slots,
    mx::Stream stream) {
  for (const std::int64_t slot : host_values<std::int64_t>(slots, stream)) {
    if (slot < -1 || slot >= num_slots) {
      fail(
          "[kv_append] Slots must be -1 or below num_blocks * block_size, " +
          std::to_string(num_slots) + "; got " + std::to_string(slot) + ".");
    }
  }
}

void check_block_copies(
    const mx::array& copies,
    std::int32_t num_blocks,
    mx::Stream stream) {
  for (const std::int32_t id : host_values<std::int32_t>(copies, stream)) {
    if (id < 0 || id >= num_blocks) {
      fail(
          "[copy_blocks] Block ids must be below num_blocks, " +
          std::to_string(num_blocks) + "; got " + std::to_string(id) + ".");
    }
  }
}

}  // namespace quire
