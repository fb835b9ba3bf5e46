// Between kv_append and copy_blocks and their backends, in the same pattern
// as paged_attention.h: one file a backend, chosen by the build.
//
// Both outputs take over their cache's buffer without asking whether anybody
// else holds it (MLX would copy the pool when an earlier step's reader is in
// flight); ops.h says what that asks of the caller.
#pragma once

#include <vector>

#include <mlx/mlx.h>
#include <mlx/primitives.h>

#include "mlx/gate.h"

namespace quire {

namespace mx = mlx::core;

/** In the GPU backend's file, or cache_write_no_gpu.cpp. */
KernelSupport gpu_supports_cache_write();

/** Inputs: k_cache, v_cache, k, v, slot_mapping; the last three contiguous. */
class KvAppend : public mx::Primitive {
 public:
  explicit KvAppend(mx::Stream stream) : mx::Primitive(stream) {}
  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  void eval_gpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  const char* name() const override {
    return "KvAppend";
  }
  bool is_equivalent(const mx::Primitive&) const override {
    return true;
  }
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape(), inputs[1].shape()};
  }
};

/** Inputs: k_cache, v_cache, block_copies; the last one contiguous. */
class CopyBlocks : public mx::Primitive {
 public:
  explicit CopyBlocks(mx::Stream stream) : mx::Primitive(stream) {}
  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  void eval_gpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  const char* name() const override {
    return "CopyBlocks";
  }
  bool is_equivalent(const mx::Primitive&) const override {
    return true;
  }
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape(), inputs[1].shape()};
  }
};

}  // namespace quire
