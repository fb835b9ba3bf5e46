// The text of the shipped .metal files, self-contained: MLX compiles one
// string.
#pragma once

namespace quire::metal {

/** paged_decode and paged_combine, templates without instantiations. */
const char* paged_decode_source();

/** kv_append (a template) and copy_blocks. */
const char* cache_write_source();

}  // namespace quire::metal
