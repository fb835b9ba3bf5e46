// Launches timed without the host: all of them in one CUDA graph, replayed.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

#include "kernels/cuda/launch.h"

namespace quire::bench {

/** `num_launches` launches as one graph, on a stream of its own. */
class GraphReplay {
 public:
  /** Captures launch(i, stream) for i in [0, num_launches), after running the
   * first once: that loads the kernel, which a capture may not. */
  GraphReplay(
      int num_launches,
      const std::function<void(int launch, cudaStream_t stream)>& launch) {
    QUIRE_CHECK_CUDA(cudaStreamCreate(&stream_));
    QUIRE_CHECK_CUDA(cudaEventCreate(&begin_));
    QUIRE_CHECK_CUDA(cudaEventCreate(&end_));
    launch(0, stream_);
    QUIRE_CHECK_CUDA(cudaStreamSynchronize(stream_));
    QUIRE_CHECK_CUDA(
        cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < num_launches; ++i) {
      launch(i, stream_);
    }
    cudaGraph_t graph = nullptr;
    QUIRE_CHECK_CUDA(cudaStreamEndCapture(stream_, &graph));
    QUIRE_CHECK_CUDA(cudaGraphInstantiate(&replay_, graph, 0));
    QUIRE_CHECK_CUDA(cudaGraphDestroy(graph));
  }
  GraphReplay(const GraphReplay&) = delete;
  GraphReplay& operator=(const GraphReplay&) = delete;
  ~GraphReplay() {
    cudaGraphExecDestroy(replay_);
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    cudaStreamDestroy(stream_);
  }

  /** Replays the graph, waits for it and returns the GPU's milliseconds. */
  float run() {
    float ms = 0.0f;
    QUIRE_CHECK_CUDA(cudaEventRecord(begin_, stream_));
    QUIRE_CHECK_CUDA(cudaGraphLaunch(replay_, stream_));
    QUIRE_CHECK_CUDA(cudaEventRecord(end_, stream_));
    QUIRE_CHECK_CUDA(cudaEventSynchronize(end_));
    QUIRE_CHECK_CUDA(cudaEventElapsedTime(&ms, begin_, end_));
    return ms;
  }

 private:
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
  cudaGraphExec_t replay_ = nullptr;
};

}  // namespace quire::bench
