// How many cores an Apple GPU has. Metal does not say; the I/O registry does.
#pragma once

#include <string>

namespace quire {

/**
 * The count of the first GPU that the I/O registry lists, or a usual one for
 * the architecture's class ("applegpu_g15s") where it lists none.
 */
int gpu_core_count(const std::string& architecture);

}  // namespace quire
