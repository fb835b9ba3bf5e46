// What this program and machine are: for `quire info` and for the envelope of
// every JSON file.
#pragma once

#include <string>

namespace quire::tools {

std::string quire_version();
std::string quire_commit();  // of the source, as configured; "unknown" if none
std::string mlx_version_text();
std::string cpu_name();
std::string gpu_name();  // "none" if MLX has none
/** The BLAS that MLX's CPU matrix products call, and the core it chose. */
std::string blas_name();

/**
 * Restarts the program, once, with OPENBLAS_CORETYPE set, if OpenBLAS took a
 * processor that it does not know for one without AVX: Debian 12's 0.3.21 does
 * so with newer Intel processors, and is then three to five times slower. What
 * the user has set is left alone. Call it before there are threads.
 */
void restart_with_fast_blas(char** argv);

}  // namespace quire::tools
