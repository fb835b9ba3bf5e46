// MLX's attention on the CPU is as fast as its BLAS, and OpenBLAS as fast as
// the processor that it takes this one for.
#pragma once

#include <string>
#include <vector>

#include "tools/bench/shape.h"

namespace quire::bench {

/**
 * Where OPENBLAS_CORETYPE is preset, times the dense path of `shape` with it
 * and, in a child process, without it. If it is right and faster without, the
 * program starts again that way, so that the dense baseline is MLX at its best;
 * then this does not return. Else returns notes on what was compared.
 *
 * Call it once, before anything else is computed.
 */
std::vector<std::string> choose_blas_core(const Shape& shape);

}  // namespace quire::bench
