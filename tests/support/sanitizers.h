#pragma once

namespace quire::testing {

/** Whether this build runs under a sanitizer: ten times slower, or more. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace quire::testing
