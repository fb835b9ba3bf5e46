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
    check("cudaStreamCreate", cudaStreamCreate(&stream_));
    check("cudaEventCreate", cudaEventCreate(&begin_));
    check("cudaEventCreate", cudaEventCreate(&end_));
    launch(0, stream_);
    check("cudaStreamSynchronize", cudaStreamSynchronize(stream_));
    check(
        "cudaStreamBeginCapture",
        cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < num_launches; ++i) {
      launch(i, stream_);
    }
    cudaGraph_t graph = nullptr;
    check("cudaStreamEndCapture", cudaStreamEndCapture(stream_, &graph));
    check("cudaGraphInstantiate", cudaGraphInstantiate(&replay_, graph, 0));
    check("cudaGraphDestroy", cudaGraphDestroy(graph));
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
    check("cudaEventRecord", cudaEventRecord(begin_, stream_));
    check("cudaGraphLaunch", cudaGraphLaunch(replay_, stream_));
    check("cudaEventRecord", cudaEventRecord(end_, stream_));
    check("cudaEventSynchronize", cudaEventSynchronize(end_));
    check("cudaEventElapsedTime", cudaEventElapsedTime(&ms, begin_, end_));
    return ms;
  }

 private:
  static void check(const char* call, cudaError_t status) {
    cuda::check_cuda(call, status);
  }

  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
  cudaGraphExec_t replay_ = nullptr;
};

}  // namespace quire::bench
