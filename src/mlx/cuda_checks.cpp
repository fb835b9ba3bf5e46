#include "mlx/cuda_checks.h"

#include <stdexcept>
#include <string>
#include <vector>

#include <mlx/backend/cuda/utils.h>

#include "kernels/cuda/launch.h"
#include "mlx/decode_checks.h"

#define QUIRE_CHECK_CUDA(call) cuda::check_cuda(#call, call)

namespace quire {
namespace {

// Copies a device array once all work before it is done.
template <class T>
std::vector<T> download(const mx::array& a, mx::cu::CommandEncoder& encoder) {
  encoder.synchronize();
  std::vector<T> host(a.size());
  QUIRE_CHECK_CUDA(cudaMemcpy(
      host.data(),
      mx::gpu_ptr<T>(a),
      host.size() * sizeof(T),
      cudaMemcpyDefault));
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
    mx::cu::CommandEncoder& encoder) {
  const auto lens = download<std::int32_t>(seq_lens, encoder);
  const auto table = download<std::int32_t>(block_table, encoder);
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
    mx::cu::CommandEncoder& encoder) {
  for (const std::int64_t slot : download<std::int64_t>(slots, encoder)) {
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
    mx::cu::CommandEncoder& encoder) {
  for (const std::int32_t id : download<std::int32_t>(copies, encoder)) {
    if (id < 0 || id >= num_blocks) {
      fail(
          "[copy_blocks] Block ids must be below num_blocks, " +
          std::to_string(num_blocks) + "; got " + std::to_string(id) + ".");
    }
  }
}

}  // namespace quire
