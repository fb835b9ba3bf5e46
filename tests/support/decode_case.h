// The one table of decode cases that conformance tests, `quire validate` and
// `quire bench` share. Every backend must get every case right.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quire/types.h"

namespace quire::testing {

/** How the logits of a case are spread. */
enum class Logits : std::uint8_t {
  Normal,    // q, K ~ N(0, 1) with outliers
  Huge,      // logits of about +-1e4: a rescale that is missing shows here
  Dominant,  // one key takes nearly all the weight
  Equal,     // q is zero: the output is the plain mean of V
};

/** Where a case may run: the longer ones not under sanitizers. */
enum class Cost : std::uint8_t {
  Quick,   // some thousand tokens at most
  Long,    // 4k to 100k tokens
  Sparse,  // a pool of more than 2^31 elements, touched only where it is used
};

/** One decode step, all but the data; what a case does not say is usual. */
struct DecodeCase {
  std::string name = {};
  DType q_dtype = DType::Float32;
  DType kv_dtype = DType::Float32;
  int head_dim = 128;
  int num_q_heads = 8;
  int num_kv_heads = 2;
  int block_size = 16;
  std::vector<int> seq_lens = {};  // tokens; 0 is an empty or inactive sequence
  int num_splits = 0;              // 0: the kernel chooses
  Logits logits = Logits::Normal;
  bool share_blocks = false;  // full blocks of equal prefixes stand in several
                              // sequences' tables
  Cost cost = Cost::Quick;
};

/** All cases, in a fixed order; names are unique. */
const std::vector<DecodeCase>& decode_cases();

/**
 * The cases of the validation over many steps; seq_lens are the lengths before
 * the first step. Short ones that two cores finish in seconds; with
 * `long_context` also 4k and 16k tokens, for a GPU.
 */
std::vector<DecodeCase> validation_cases(bool long_context);

/** A case from its parts; the name is made from them. */
DecodeCase make_case(DecodeCase c);

}  // namespace quire::testing
