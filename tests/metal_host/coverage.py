#!/usr/bin/env python3
"""Lines and branches of the Metal source that the tests run, over all
instantiations: a branch that no case takes may hide a wrong one. Exits 1 if
there is a line or a side of a branch that never runs. What is evaluated when
the kernel is compiled does not count.

  coverage.py BUILD_DIR

BUILD_DIR is a tree configured with QUIRE_METAL_HOST=ON in which the targets
metal_host_planted_errors, _decode_traced and _cache_write_traced are built and
no older than the sources: counts of code that is no more would be no counts. On
demand: some minutes of one core.
"""
import collections
import json
import os
import pathlib
import re
import subprocess
import sys

from planted_errors import CLANG, HERE, ROOT

TABLES = ("decode_*", "combine", "cache_write")
TESTS = ("decode_host_test", "cache_write_host_test", "conformance_host_test")
COVER = "-fprofile-instr-generate -fcoverage-mapping".split()
OURS = ("kernels/metal/", "kernels/attention_state.h")
# Of a header that all backends share: Metal merges more than two states at once.
NOT_IN_METAL = ("merge_factors",)


def run(*command, **options):
    return subprocess.run(list(map(str, command)), check=True, **options)


def require_built(tree):
    targets = ("metal_host_planted_errors", "metal_host_decode_traced",
               "metal_host_cache_write_traced")  # fmt: skip
    todo = run("ninja", "-n", "-C", tree, *targets,
               capture_output=True, text=True).stdout  # fmt: skip
    if "no work to do" not in todo:
        sys.exit(
            f"coverage.py: {tree} is older than the sources; build it first:\n"
            f"  cmake --build {tree} --target {' '.join(targets)}"
        )


def newest_header():
    folders = (HERE, ROOT / "src", ROOT / "include", ROOT / "tests/support")
    headers = [p for f in folders for p in f.rglob("*") if p.suffix in (".h", "")]
    return max(p.stat().st_mtime for p in headers if p.is_file())


def compile_newer(source, flags, out):
    """The object of a source, compiled if it is older than that or any header:
    what was done when the script was stopped is not done again."""
    made = out / f"{source.stem}.o"
    newest = max(source.stat().st_mtime, newest_header())
    if not made.exists() or made.stat().st_mtime < newest:
        partial = out / "partial.o"
        run(CLANG, *flags, "-c", source, "-o", partial)
        partial.rename(made)
    return made


def origins(path):
    """Line of a generated file -> (source file, line), by its #line marks."""
    found, name, line = {}, None, 0
    for number, text in enumerate(path.read_text().splitlines(), 1):
        mark = re.match(r'#line (\d+) "([^"]*)"', text)
        if mark:
            line, name = int(mark[1]), mark[2]
            continue
        counted = not any(word in text for word in ("constexpr", *NOT_IN_METAL))
        if name and name.startswith(OURS) and counted:
            found[number] = name, line
        line += 1
    return found


def build(gen, harness, out):
    shards = sorted(p for t in TABLES for p in gen.glob(f"{t}.cpp"))
    objects, declarations, entries = [], "", ""
    for shard in shards:
        flags = ["-std=c++14", "-x", "c++", "-w", "-march=native", "-O1", *COVER,
                 f"-I{HERE / 'shim'}", f"-I{HERE}"]  # fmt: skip
        objects.append(compile_newer(shard, flags, out))
        declarations += (
            f"extern const lockstep::KernelEntry lockstep_kernels_{shard.stem}[];\n"
        )
        entries += f"lockstep_kernels_{shard.stem}, "
    table = out / "tables.cpp"
    table.write_text(
        f'#include "lockstep.h"\n{declarations}'
        "extern const lockstep::KernelEntry* const quire_metal_host_tables[];\n"
        "const lockstep::KernelEntry* const quire_metal_host_tables[] = "
        f"{{{entries}nullptr}};\n"
    )
    includes = [f"-I{ROOT / p}" for p in ("src", "include", "tests")] + [f"-I{HERE}"]
    tests = [HERE / f"{test}.cpp" for test in TESTS]
    for source in (table, *tests):
        flags = ["-std=c++20", "-O1", "-DQUIRE_METAL_HOST_FULL=0", *includes]
        objects.append(compile_newer(source, flags, out))
    others = [
        p for p in harness.glob("harness_*.o")
        if not p.stem.endswith(("_host_test", "counters_test"))
    ]  # fmt: skip
    program = out / "covered"
    run(CLANG, *COVER, *objects, *others, harness / "lockstep.o", "-o", program)
    return program, shards


def export(program, out):
    run(program, env=dict(os.environ, LLVM_PROFILE_FILE=str(out / "raw")),
        stdout=subprocess.DEVNULL)  # fmt: skip
    run("llvm-profdata-19", "merge", "-sparse", out / "raw", "-o", out / "profile")
    text = run("llvm-cov-19", "export", program, f"-instr-profile={out / 'profile'}",
               capture_output=True, text=True).stdout  # fmt: skip
    return json.loads(text)["data"][0]["functions"]


def main():
    require_built(pathlib.Path(sys.argv[1]).resolve())
    tree = pathlib.Path(sys.argv[1]).resolve() / "tests/metal_host"
    lines = collections.Counter()
    branches = collections.defaultdict(lambda: [0, 0])
    out = tree / "coverage"
    out.mkdir(exist_ok=True)
    program, shards = build(tree / "gen", tree / "traced", out)
    where = {str(s): origins(s) for s in shards}
    for function in export(program, out):
        places = [where.get(name, {}) for name in function["filenames"]]
        for region in function["regions"]:
            begin, column, _, _, count, file, _, kind = region
            at = places[file].get(begin)
            if at and kind == 0:
                lines[(*at, column)] += count
        for branch in function["branches"]:
            at = places[branch[6]].get(branch[0])
            if at:
                sides = branches[(*at, branch[1])]
                sides[0] += branch[4]
                sides[1] += branch[5]
    never = [
        f"{name}:{line}:{column}: never runs"
        for (name, line, column), count in sorted(lines.items()) if count == 0
    ]  # fmt: skip
    for (name, line, column), sides in sorted(branches.items()):
        # A condition that is a constant in every instantiation has no counts;
        # what it guards is a region of its own.
        if any(sides) and not all(sides):
            never.append(f"{name}:{line}:{column}: never {'false' if sides[0] else 'true'}")
    for name in sorted({key[0] for key in lines}):
        regions = [c for key, c in lines.items() if key[0] == name]
        sides = [s for key, s in branches.items() if key[0] == name and any(s)]
        taken = sum((s[0] > 0) + (s[1] > 0) for s in sides)
        print(
            f"{name}: {sum(c > 0 for c in regions)} of {len(regions)} regions run, "
            f"{taken} of {2 * len(sides)} sides of branches taken"
        )
    print("\n".join(never))
    sys.exit(bool(never))


if __name__ == "__main__":
    main()
