#!/bin/sh
# neon_test.sh BUILD_DIR: cross-compiles the CPU kernels for AArch64 and runs
# their tests, the NEON variant's among them, under qemu-user.
# Needs Debian's g++-aarch64-linux-gnu and qemu-user-static.
set -eu
build=$1
source=$(cd "$(dirname "$0")/../../.." && pwd)
cmake -S "$source" -B "$build" -G Ninja \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  -DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64-static;-L;/usr/aarch64-linux-gnu" \
  -DCMAKE_BUILD_TYPE=Release -DQUIRE_WITH_MLX=OFF -DQUIRE_INSTALL=OFF \
  -DQUIRE_QEMU_SUBSET=ON -DQUIRE_WERROR=ON >/dev/null
cmake --build "$build" --target quire_cpu_decode_test quire_cpu_parts_test
for test in quire_cpu_decode_test quire_cpu_parts_test; do
  qemu-aarch64-static -L /usr/aarch64-linux-gnu "$build/bin/$test"
done
