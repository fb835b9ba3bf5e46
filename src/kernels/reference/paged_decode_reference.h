#pragma once

#include "kernels/decode_params.h"

namespace quire::reference {

/**
 * The oracle: attention of one decode step, computed naively in double.
 *
 * `args.out` is ignored; `out` is [num_seqs, num_q_heads, head_dim] in double.
 * A row with seq_len 0 is zero. Reads exactly the tokens below seq_len.
 */
void paged_decode(const DecodeArgs& args, double* out);

}  // namespace quire::reference
