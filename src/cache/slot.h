#pragma once

#include <cstdint>

#include "quire/types.h"

namespace quire {

/** Position in the cache of the token at `offset` of a block, in tokens. 64
 * bits: a cache of more than 2^31 tokens has slots beyond an int. */
constexpr std::int64_t make_slot(BlockId block, int block_size, int offset) {
  return static_cast<std::int64_t>(block) * block_size + offset;
}

}  // namespace quire
