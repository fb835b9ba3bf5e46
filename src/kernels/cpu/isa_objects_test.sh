#!/bin/sh
# isa_objects_test.sh OBJECT...: no instruction of a wide set may be reachable
# on a CPU without it. Two ways in: generic objects compiled with its flags, and
# inline functions that a wide object shares with the others (the linker keeps
# one copy for all).
set -eu
bad=0
wide=0
for object in "$@"; do
  case $(basename "$object") in
    step_avx*)
      wide=$((wide + 1))
      # Weak symbols may only be templates over that instruction set.
      shared=$(nm -C --defined-only "$object" | grep -E ' [WVu] ' |
        grep -v 'Avx' || true)
      if [ -n "$shared" ]; then
        echo "$object shares with other objects:"
        echo "$shared"
        bad=1
      fi
      ;;
    *)
      found=$(objdump -d --no-show-raw-insn "$object" |
        grep -E '%[yz]mm|[[:space:]]v[a-z0-9]+ .*%xmm' | head -3 || true)
      if [ -n "$found" ]; then
        echo "$object has instructions beyond the baseline:"
        echo "$found"
        bad=1
      fi
      ;;
  esac
done
if [ "$wide" -eq 0 ]; then
  echo "no step_avx* object among the arguments: nothing was checked"
  bad=1
fi
exit $bad
