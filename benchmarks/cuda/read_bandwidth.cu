// The yardstick: kernels that only read. The best of them over the bytes of a
// cell is 100 %.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "read_bandwidth.h"

namespace quire::bench {
namespace {

using cuda::check_cuda;

__device__ __forceinline__ uint4 load_once(const uint4* p) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p));
  return v;
}

__device__ __forceinline__ void mix(uint4& sum, const uint4& v) {
  sum.x ^= v.x;
  sum.y ^= v.y;
  sum.z ^= v.z;
  sum.w ^= v.w;
}

/// Random data never folds to this, but the compiler cannot know it.
__device__ __forceinline__ void keep_if_magic(const uint4& sum, uint4* sink) {
  if (sum.x == 0x9e3779b9u && sum.y == 0x7f4a7c15u && sum.z == 0xf39cc060u &&
      sum.w == 0x5cedc834u) {
    *sink = sum;
  }
}

/// Even CTAs stride over a, odd ones over b; kUnroll loads are in flight.
template <int kUnroll, int kThreads, int kCtasPerSm>
__global__ void __launch_bounds__(kThreads, kCtasPerSm)
    read_plain(const uint4* a, const uint4* b, int64_t n, uint4* sink) {
  const uint4* const data = blockIdx.x % 2 != 0 ? b : a;
  const int64_t step = static_cast<int64_t>(gridDim.x / 2) * kThreads;
  const uint4* const end = data + n;
  const uint4* p =
      data + static_cast<int64_t>(blockIdx.x / 2) * kThreads + threadIdx.x;
  uint4 sum = make_uint4(0, 0, 0, 0);
  for (; p + (kUnroll - 1) * step < end; p += kUnroll * step) {
    uint4 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      v[u] = load_once(p + u * step);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      mix(sum, v[u]);
    }
  }
  for (; p < end; p += step) {
    mix(sum, load_once(p));
  }
  keep_if_magic(sum, sink);
}

constexpr int kPieceLoads = 4;  // of a thread
constexpr int kPieceThreads = 256;

/// Even CTAs read pieces of K blocks, odd ones of V blocks.
__global__ void __launch_bounds__(kPieceThreads) read_blocks(
    const uint4* k,
    const uint4* v,
    const int32_t* block_ids,
    const int32_t* block_tokens,
    int pieces,  // of a block
    int64_t block_loads,
    int64_t token_loads,
    uint4* sink) {
  const int64_t piece = blockIdx.x / 2;
  const int64_t entry = piece / pieces;
  const int64_t end = block_tokens[entry] * token_loads;
  const uint4* const block =
      (blockIdx.x % 2 != 0 ? v : k) + block_ids[entry] * block_loads;
  const int64_t at =
      piece % pieces * (kPieceLoads * kPieceThreads) + threadIdx.x;
  uint4 loaded[kPieceLoads];
#pragma unroll
  for (int u = 0; u < kPieceLoads; ++u) {
    loaded[u] = make_uint4(0, 0, 0, 0);
    if (at + u * kPieceThreads < end) {
      loaded[u] = load_once(block + at + u * kPieceThreads);
    }
  }
  uint4 sum = make_uint4(0, 0, 0, 0);
#pragma unroll
  for (int u = 0; u < kPieceLoads; ++u) {
    mix(sum, loaded[u]);
  }
  keep_if_magic(sum, sink);
}

#if __CUDA_ARCH__ >= 900
/// Bulk copies into a ring in shared memory; one thread at a time issues them.
class BulkRing {
 public:
  __device__
  BulkRing(uint64_t* barriers, int stages, char* data, int slot_bytes)
      : barriers_(cuda::smem_address(barriers)),
        stages_(stages),
        data_(cuda::smem_address(data)),
        slot_bytes_(slot_bytes) {}

  __device__ void init() const {
    for (int s = 0; s < stages_; ++s) {
      cuda::mbarrier_init(barriers_ + s * 8, 1);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }

  /// Says how many bytes will be copied into a slot before its next wait().
  __device__ void expect(int slot, uint32_t bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     barriers_ + slot * 8),
                 "r"(bytes)
                 : "memory");
  }

  __device__ void
  copy(int slot, uint32_t offset, const void* from, uint32_t bytes) const {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1], %2, [%3];" ::"r"(data_ + slot * slot_bytes_ + offset),
        "l"(from),
        "r"(bytes),
        "r"(barriers_ + slot * 8)
        : "memory");
  }

  /// Waits for use `use` of a slot: 0, 1, ...
  __device__ void wait(int slot, int use) const {
    cuda::mbarrier_wait(barriers_ + slot * 8, use & 1);
  }

 private:
  const uint32_t barriers_;
  const int stages_;
  const uint32_t data_;
  const int slot_bytes_;
};
#endif

/// The bulk copy engine, one thread a CTA; the chunks are dealt out in turn.
template <int kChunk, int kStages>
__global__ void read_bulk(const char* a, const char* b, int64_t bytes) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char smem[];
  __shared__ __align__(8) uint64_t barriers[kStages];
  if (threadIdx.x != 0) {
    return;
  }
  const BulkRing ring(barriers, kStages, smem, kChunk);
  ring.init();
  const int64_t each = (bytes + kChunk - 1) / kChunk;
  const int64_t total = 2 * each;
  auto issue = [&](int64_t chunk, int slot) {
    const bool first = chunk < each;
    const int64_t offset = (first ? chunk : chunk - each) * kChunk;
    const auto size = static_cast<uint32_t>(
        bytes - offset < kChunk ? bytes - offset : kChunk);
    ring.expect(slot, size);
    ring.copy(slot, 0, (first ? a : b) + offset, size);
  };
  int64_t next = blockIdx.x;
  for (int s = 0; s < kStages && next < total; ++s, next += gridDim.x) {
    issue(next, s);
  }
  int turn = 0;
  for (int64_t chunk = blockIdx.x; chunk < total; chunk += gridDim.x, ++turn) {
    ring.wait(turn % kStages, turn / kStages);
    if (next < total) {
      issue(next, turn % kStages);
      next += gridDim.x;
    }
  }
#endif
}

constexpr int kShareWarps = 3;
constexpr int kShareStages = 2;
constexpr int kSharePiece = 16384;  // of K, and as much of V

/// One CTA an SM, each with an equal share of the list's pieces end to end; its
/// warps take turns at them, each with a ring of its own.
__global__ void __launch_bounds__(kShareWarps * 32) read_shares(
    const char* k,
    const char* v,
    const int32_t* block_ids,
    const int32_t* block_tokens,
    int64_t total,  // pieces
    int pieces,     // of a block
    int64_t block_bytes,
    int64_t token_bytes) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char smem[];
  __shared__ __align__(8) uint64_t barriers[kShareWarps * kShareStages];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int kSlot = 2 * kSharePiece;
  const BulkRing ring(
      barriers + warp * kShareStages,
      kShareStages,
      smem + warp * kShareStages * kSlot,
      kSlot);
  if (lane == 0) {
    ring.init();
  }
  __syncwarp();
  const int64_t share = (total + gridDim.x - 1) / gridDim.x;
  const int64_t begin = blockIdx.x * share + warp;
  const int64_t end = min(total, (blockIdx.x + 1) * share);
  const int count =
      static_cast<int>(max(end - begin + kShareWarps - 1, int64_t{0})) /
      kShareWarps;

  int id = 0;  // of the block of this lane's piece among the next 32
  int tokens = 0;
  auto issue = [&](int i, int slot) {
    if (i % 32 == 0 && i + lane < count) {
      const int64_t entry = (begin + (i + lane) * kShareWarps) / pieces;
      id = block_ids[entry];
      tokens = block_tokens[entry];
    }
    const int64_t of_block = __shfl_sync(0xffffffffu, id, i % 32);
    const int64_t valid =
        __shfl_sync(0xffffffffu, tokens, i % 32) * token_bytes;
    if (lane == 0) {
      const int64_t at = (begin + i * kShareWarps) % pieces * kSharePiece;
      const auto bytes = static_cast<uint32_t>(
          max(min(valid - at, int64_t{kSharePiece}), int64_t{0}));
      ring.expect(slot, 2 * bytes);
      if (bytes > 0) {
        ring.copy(slot, 0, k + of_block * block_bytes + at, bytes);
        ring.copy(slot, kSharePiece, v + of_block * block_bytes + at, bytes);
      }
    }
    __syncwarp();
  };
  for (int i = 0; i < kShareStages && i < count; ++i) {
    issue(i, i);
  }
  for (int i = 0; i < count; ++i) {
    ring.wait(i % kShareStages, i / kShareStages);
    if (i + kShareStages < count) {
      issue(i + kShareStages, i % kShareStages);
    }
  }
#endif
}

int num_sms() {
  return cuda::device_limits(0, false).num_sms;
}

template <int kUnroll, int kThreads, int kCtasPerSm, bool kOneShot = false>
void plain(
    const void* a,
    const void* b,
    int64_t bytes,
    void* sink,
    cudaStream_t stream) {
  const int64_t n = bytes / 16;
  const int64_t per_cta = static_cast<int64_t>(kThreads) * kUnroll;
  const int64_t needed = (n + per_cta - 1) / per_cta;
  int64_t half =
      kOneShot ? needed : static_cast<int64_t>(num_sms()) * kCtasPerSm / 2;
  half = half > needed ? needed : half;
  read_plain<kUnroll, kThreads, kCtasPerSm>
      <<<dim3(static_cast<unsigned>(half < 1 ? 2 : 2 * half)),
         kThreads,
         0,
         stream>>>(
          static_cast<const uint4*>(a),
          static_cast<const uint4*>(b),
          n,
          static_cast<uint4*>(sink));
}

template <int kChunk, int kStages>
void bulk(
    const void* a,
    const void* b,
    int64_t bytes,
    int per_sm,
    cudaStream_t stream) {
  check_cuda(
      "cudaFuncSetAttribute",
      cudaFuncSetAttribute(
          read_bulk<kChunk, kStages>,
          cudaFuncAttributeMaxDynamicSharedMemorySize,
          kChunk * kStages));
  read_bulk<kChunk, kStages>
      <<<num_sms() * per_sm, 32, kChunk * kStages, stream>>>(
          static_cast<const char*>(a), static_cast<const char*>(b), bytes);
}

template <class T>
__global__ void fill_normal(T* to, int64_t n, uint32_t seed) {
  const int64_t step = 2 * static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i =
           2 * (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
       i + 1 < n;
       i += step) {
    uint64_t x = static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15ull +
                 seed * 0xD1B54A32D192ED03ull + 1;
    x ^= x >> 30;
    x *= 0xBF58476D1CE4E5B9ull;
    x ^= x >> 27;
    x *= 0x94D049BB133111EBull;
    x ^= x >> 31;
    const float u =
        (static_cast<float>(static_cast<uint32_t>(x)) + 1.0f) * 2.3283064e-10f;
    const float angle = static_cast<float>(x >> 32) * 2.3283064e-10f;
    const float r = sqrtf(-2.0f * logf(fminf(u, 1.0f)));
    to[i] = T(r * cospif(2.0f * angle));
    to[i + 1] = T(r * sinpif(2.0f * angle));
  }
}

}  // namespace

bool has_bulk_copies() {
  return cuda::device_limits(0, false).compute_capability >= 90;
}

int num_read_kernels() {
  return has_bulk_copies() ? 11 : 8;
}

const char* read_kernel_name(int kernel) {
  static const char* const kNames[] = {
      "1024x2 u2",
      "512x4 u4",
      "1024x1 u4",
      "512x2 u8",
      "256x8 u4",
      "256x4 u8",
      "512x1 u16",
      "256 one-shot u4",
      "bulk 8K x24",
      "bulk 16K x12",
      "bulk 4K x24 x2"};
  return kNames[kernel];
}

void launch_read(
    int kernel,
    const void* a,
    const void* b,
    int64_t bytes,
    void* sink,
    cudaStream_t stream) {
  switch (kernel) {
    case 0:
      plain<2, 1024, 2>(a, b, bytes, sink, stream);
      break;
    case 1:
      plain<4, 512, 4>(a, b, bytes, sink, stream);
      break;
    case 2:
      plain<4, 1024, 1>(a, b, bytes, sink, stream);
      break;
    case 3:
      plain<8, 512, 2>(a, b, bytes, sink, stream);
      break;
    case 4:
      plain<4, 256, 8>(a, b, bytes, sink, stream);
      break;
    case 5:
      plain<8, 256, 4>(a, b, bytes, sink, stream);
      break;
    case 6:
      plain<16, 512, 1>(a, b, bytes, sink, stream);
      break;
    case 7:
      plain<4, 256, 8, true>(a, b, bytes, sink, stream);
      break;
    case 8:
      bulk<8192, 24>(a, b, bytes, 1, stream);
      break;
    case 9:
      bulk<16384, 12>(a, b, bytes, 1, stream);
      break;
    default:
      bulk<4096, 24>(a, b, bytes, 2, stream);
  }
  check_cuda("launch_read", cudaGetLastError());
}

void launch_read_blocks(
    const BlockList& list,
    void* sink,
    cudaStream_t stream) {
  const int64_t block_loads = list.block_size * list.token_bytes / 16;
  constexpr int kLoads = kPieceLoads * kPieceThreads;
  const int64_t pieces = (block_loads + kLoads - 1) / kLoads;
  read_blocks<<<
      static_cast<unsigned>(2 * pieces * list.num_blocks),
      kPieceThreads,
      0,
      stream>>>(
      static_cast<const uint4*>(list.k_cache),
      static_cast<const uint4*>(list.v_cache),
      list.block_ids,
      list.block_tokens,
      static_cast<int>(pieces),
      block_loads,
      list.token_bytes / 16,
      static_cast<uint4*>(sink));
  check_cuda("launch_read_blocks", cudaGetLastError());
}

void launch_read_shares(const BlockList& list, cudaStream_t stream) {
  constexpr int kSmemBytes = kShareWarps * kShareStages * 2 * kSharePiece;
  check_cuda(
      "cudaFuncSetAttribute",
      cudaFuncSetAttribute(
          read_shares,
          cudaFuncAttributeMaxDynamicSharedMemorySize,
          kSmemBytes));
  const int64_t block_bytes = list.block_size * list.token_bytes;
  const int64_t pieces = (block_bytes + kSharePiece - 1) / kSharePiece;
  read_shares<<<num_sms(), kShareWarps * 32, kSmemBytes, stream>>>(
      static_cast<const char*>(list.k_cache),
      static_cast<const char*>(list.v_cache),
      list.block_ids,
      list.block_tokens,
      list.num_blocks * pieces,
      static_cast<int>(pieces),
      block_bytes,
      list.token_bytes);
  check_cuda("launch_read_shares", cudaGetLastError());
}

void launch_fill_normal(
    void* data,
    int64_t n,
    uint32_t seed,
    int kind,
    cudaStream_t stream) {
  switch (kind) {
    case 0:
      fill_normal<<<2048, 256, 0, stream>>>(static_cast<float*>(data), n, seed);
      break;
    case 1:
      fill_normal<<<2048, 256, 0, stream>>>(
          static_cast<__half*>(data), n, seed);
      break;
    default:
      fill_normal<<<2048, 256, 0, stream>>>(
          static_cast<__nv_bfloat16*>(data), n, seed);
  }
  check_cuda("launch_fill_normal", cudaGetLastError());
}

}  // namespace quire::bench
