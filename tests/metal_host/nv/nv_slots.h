// How a Metal launch's buffers and constants reach a kernel on NVIDIA lanes.
#pragma once

namespace nv {

/// What is bound to one buffer slot: a device pointer, or constants by value.
struct alignas(16) Slot {
  unsigned char bytes[48];
};
struct Slots {
  Slot slot[20];
};

/// A kernel, or a function constant, under its name; a table ends with null.
struct Symbol {
  const char* name;
  const void* address;
};

}  // namespace nv
