// Between the public op and its backends.
//
// The op (paged_attention.cpp) validates and chooses a path. A fused path is
// the Primitive below, whose eval_cpu and eval_gpu live in one file a backend,
// together with that backend's answer to "is there a kernel for this case";
// a build has exactly one CPU file and one GPU file. Gather is a graph of
// MLX's ops and needs no backend.
#pragma once

#include <string>
#include <vector>

#include <mlx/mlx.h>
#include <mlx/primitives.h>

#include "kernels/decode_params.h"
#include "mlx/gate.h"
#include "quire/ops.h"

namespace quire {

namespace mx = mlx::core;

/** A case as the backends' predicates see it: shapes and dtypes, no data. */
struct DecodeSignature {
  DecodeParams params;
  DType q_dtype = DType::Float32;
  DType kv_dtype = DType::Float32;
};

/** In paged_attention_cpu.cpp, or _no_cpu.cpp in a build without kernels. */
KernelSupport cpu_supports_paged_attention(const DecodeSignature& c);

/** In the GPU backend's file, or paged_attention_no_gpu.cpp. */
KernelSupport gpu_supports_paged_attention(const DecodeSignature& c);

/** What `quire info` says of the CPU kernels; "" and 0 if there are none. */
struct CpuKernelInfo {
  std::string isa;
  int num_threads = 0;
};
CpuKernelInfo cpu_kernel_info();

/** "metal", "cuda", or "" for a build without a GPU backend. */
const char* gpu_kernel_name();

/**
 * The fused op. Inputs: q, k_cache, v_cache, block_table, seq_lens, of which
 * q, block_table and seq_lens are row contiguous. Members are constants of
 * the graph; whatever changes between steps is an input.
 */
class PagedAttention : public mx::Primitive {
 public:
  PagedAttention(
      mx::Stream stream,
      float scale,
      int num_splits,
      int max_seq_len)
      : mx::Primitive(stream),
        scale_(scale),
        num_splits_(num_splits),
        max_seq_len_(max_seq_len) {}

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  void eval_gpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;

  const char* name() const override {
    return "PagedAttention";
  }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }

 private:
  float scale_;
  int num_splits_;   // 0: the kernel chooses
  int max_seq_len_;  // 0: the table's width
};

/** The case that these arrays make; they have passed validation. */
DecodeSignature decode_signature(
    const mx::array& q,
    const mx::array& k_cache,
    const mx::array& block_table,
    float scale,
    int num_splits);

/**
 * The reference and fallback: gather-then-SDPA as a graph of MLX's ops.
 * Arguments have passed validation; fallback_reason is counted with each
 * evaluation, see count_path().
 */
mx::array gather_attention(
    const mx::array& q,
    const mx::array& k_cache,
    const mx::array& v_cache,
    const mx::array& block_table,
    const mx::array& seq_lens,
    float scale,
    int max_seq_len,
    const std::string& fallback_reason,
    mx::Stream s);

}  // namespace quire
