#pragma once

#include "tools/llama/gguf.h"

namespace quire::tools {

/**
 * Writes the elements of one tensor to `out` as float32, in row-major order.
 * `out` has room for the product of the tensor's shape. Uses `num_threads`
 * threads. Formats as in ggml: a Q4_1 value is scale * q + minimum, a Q4_0
 * value scale * (q - 8), a Q8_0 value scale * q.
 */
void dequantize(const GgufTensor& tensor, float* out, int num_threads);

}  // namespace quire::tools
