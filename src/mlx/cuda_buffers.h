// Device memory for arrays of the CUDA backend.
//
// MLX's stream-ordered allocator is not exported, and the public one hands out
// managed memory, moving cached device buffers there with a host
// synchronisation. So buffers of ours are allocated here and recycled, as MLX
// recycles its own, as soon as their array is gone: reuse on one stream is
// ordered by the stream, and across streams by whoever shared the array.
#pragma once

#include <cstdint>

#include <mlx/backend/cuda/device.h>
#include <mlx/mlx.h>

namespace quire {

namespace mx = mlx::core;

/** Gives `out` uninitialised device memory for its shape and dtype. */
void allocate_on_device(mx::array& out, mx::cu::CommandEncoder& encoder);

/**
 * The mail of a stream: at least `bytes` bytes of device memory, filled with
 * 0xff before their first use. One array for all launches of a stream; whoever
 * uses it names it as an output, which puts the launches of one graph in order.
 */
const mx::array& stream_workspace(
    mx::Stream stream,
    mx::cu::CommandEncoder& encoder,
    std::int64_t bytes);

}  // namespace quire
