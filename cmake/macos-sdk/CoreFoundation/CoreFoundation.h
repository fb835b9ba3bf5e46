#pragma once

#include <stdint.h>

typedef double CFTimeInterval;
typedef signed long CFIndex;
typedef const struct __CFString* CFStringRef;
typedef uint32_t CFStringEncoding;
