#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "device_reference.h"
#include "kernels/cuda/launch.h"

namespace quire::bench {
namespace {

constexpr int kWarps = 8;
constexpr int kMaxHeadDim = 256;

__device__ double load(const void* p, int64_t i, DType dtype) {
  switch (dtype) {
    case DType::Float32:
      return static_cast<const float*>(p)[i];
    case DType::Float16:
      return __half2float(static_cast<const __half*>(p)[i]);
    default:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(p)[i]);
  }
}

/// One CTA a (sequence, query head); its warps take turns at the tokens.
__global__ void reference_kernel(DecodeArgs args, float* out) {
  __shared__ double max_of[kWarps], sum_of[kWarps];
  __shared__ double o_of[kWarps][kMaxHeadDim];
  const DecodeParams& p = args.params;
  const int seq = blockIdx.x;
  const int head = blockIdx.y;
  const int kv_head = head / (p.num_q_heads / p.num_kv_heads);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int len = args.seq_lens[seq];
  const int64_t row =
      (static_cast<int64_t>(seq) * p.num_q_heads + head) * p.head_dim;
  double max = -INFINITY;
  double sum = 0.0;
  double o[kMaxHeadDim / 32] = {};
  for (int token = warp; token < len; token += kWarps) {
    const int64_t block =
        args.block_table
            [static_cast<int64_t>(seq) * p.max_blocks_per_seq +
             token / p.block_size];
    const int64_t at =
        ((block * p.block_size + token % p.block_size) * p.num_kv_heads +
         kv_head) *
        p.head_dim;
    double logit = 0.0;
    for (int i = lane; i < p.head_dim; i += 32) {
      logit += load(args.q, row + i, args.q_dtype) *
               load(args.k_cache, at + i, args.kv_dtype);
    }
    for (int d = 16; d > 0; d /= 2) {
      logit += __shfl_xor_sync(0xffffffffu, logit, d);
    }
    logit *= static_cast<double>(p.scale);
    const double most = fmax(max, logit);
    const double keep = exp(max - most);
    const double weight = exp(logit - most);
    sum = sum * keep + weight;
    max = most;
    for (int i = lane, j = 0; i < p.head_dim; i += 32, ++j) {
      o[j] = o[j] * keep + weight * load(args.v_cache, at + i, args.kv_dtype);
    }
  }
  if (lane == 0) {
    max_of[warp] = max;
    sum_of[warp] = sum;
  }
  for (int i = lane, j = 0; i < p.head_dim; i += 32, ++j) {
    o_of[warp][i] = o[j];
  }
  __syncthreads();
  double most = -INFINITY;
  for (int w = 0; w < kWarps; ++w) {
    most = fmax(most, max_of[w]);
  }
  double total = 0.0;
  for (int w = 0; w < kWarps && len > 0; ++w) {
    total += sum_of[w] * exp(max_of[w] - most);
  }
  for (int i = threadIdx.x; i < p.head_dim; i += kWarps * 32) {
    double x = 0.0;
    for (int w = 0; w < kWarps && len > 0; ++w) {
      x += o_of[w][i] * exp(max_of[w] - most);
    }
    out[row + i] = len > 0 ? static_cast<float>(x / total) : 0.0f;
  }
}

__global__ void error_kernel(
    const void* out,
    DType dtype,
    const float* reference,
    int64_t n,
    unsigned* worst) {
  float most = 0.0f;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const float error =
        fabsf(static_cast<float>(load(out, i, dtype)) - reference[i]);
    most = error >= 0.0f ? fmaxf(most, error) : INFINITY;
  }
  atomicMax(worst, __float_as_uint(most));  // bits of floats >= 0 are ordered
}

}  // namespace

void launch_device_reference(
    const DecodeArgs& args,
    float* out,
    cudaStream_t stream) {
  const dim3 grid(
      static_cast<unsigned>(args.params.num_seqs),
      static_cast<unsigned>(args.params.num_q_heads));
  reference_kernel<<<grid, kWarps * 32, 0, stream>>>(args, out);
  cuda::check_cuda("launch_device_reference", cudaGetLastError());
}

double
max_abs_error(const void* out, DType dtype, const float* reference, int64_t n) {
  void* worst = nullptr;
  unsigned bits = 0;
  cuda::check_cuda("cudaMalloc", cudaMalloc(&worst, 4));
  cuda::check_cuda("cudaMemset", cudaMemset(worst, 0, 4));
  error_kernel<<<1, 1024>>>(
      out, dtype, reference, n, static_cast<unsigned*>(worst));
  cuda::check_cuda(
      "cudaMemcpy", cudaMemcpy(&bits, worst, 4, cudaMemcpyDefault));
  cuda::check_cuda("cudaFree", cudaFree(worst));
  float error;
  memcpy(&error, &bits, 4);
  return error;
}

}  // namespace quire::bench
