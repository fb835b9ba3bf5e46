#!/bin/sh
# neon_test.sh BUILD_DIR: compiles the CPU kernels for AArch64 and runs their
# tests, the NEON variant's among them, under qemu-user. Compiled by hand
# because the tree's other dependencies have no AArch64 build here.
# Needs Debian's g++-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user-static.
set -eu
build=$1
source=$(cd "$(dirname "$0")/../../.." && pwd)
kernels=$source/src/kernels
mkdir -p "$build"
aarch64-linux-gnu-g++ -std=c++20 -O1 -static -pthread \
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror \
  -DQUIRE_CPU_NEON -DQUIRE_QEMU_SUBSET \
  -I"$source/include" -I"$source/src" -idirafter /usr/include \
  "$source/tests/support/test_main.cpp" "$source/src/common/env.cpp" \
  "$kernels/reference/paged_decode_reference.cpp" \
  "$kernels"/cpu/cache_write.cpp "$kernels"/cpu/decode_engine.cpp \
  "$kernels"/cpu/isa.cpp "$kernels"/cpu/paged_decode.cpp \
  "$kernels"/cpu/step_neon.cpp "$kernels"/cpu/step_portable.cpp \
  "$kernels"/cpu/roofs.cpp "$kernels"/cpu/thread_pool.cpp \
  "$kernels"/cpu/cache_write_test.cpp "$kernels"/cpu/paged_decode_test.cpp \
  "$kernels"/cpu/thread_pool_test.cpp \
  -o "$build/neon_test"
qemu-aarch64-static "$build/neon_test"
