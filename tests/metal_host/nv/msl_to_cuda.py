#!/usr/bin/env python3
"""Rewrites Metal source to CUDA that nv_metal_stdlib.cuh can compile: a warp is
a simdgroup, a CTA a threadgroup.

As msl_to_host.py, line for line, with the same launchers: a __global__ function
for each instantiation, whose arguments come from the kernel's own attributes. A
macro cannot do what is done here by text, because CUDA spells __device__ as
__attribute__((device)). They are offered as `nv_kernels_TABLE`.

--merge-loads rewrites loops that load the adjacent elements of an array one by
one, as MLX's kernels do, to one load of all of them: whether Apple's compiler
does that is unknown.
"""
import argparse
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from msl_to_host import (  # noqa: E402
    INSTANTIATION, THREADGROUP_ARRAY, bind, blank, fail, find_kernels,
    without_comments,
)  # fmt: skip

# Boolean function constants are false: no mask, no sinks. An integer one is
# set by the host.
FUNCTION_CONSTANT = re.compile(
    r"constant (bool|int) (\w+) \[\[function_constant\(\d+\)\]\];"
)
LOAD_LOOP = re.compile(
    r"for \(int j = 0; j < (\w+_per_thread); j\+\+\) \{\s*"
    r"([kv]_reg\[t\])\[j\] = (\w+)\[j\];\s*\}"
)


def function_constant(match):
    if match[1] == "bool":
        return f"static constexpr bool {match[2]} = false;"
    return f"__constant__ int {match[2]};"


def to_cuda(text):
    text = FUNCTION_CONSTANT.sub(function_constant, text)
    text = INSTANTIATION.sub(blank, text)
    text = THREADGROUP_ARRAY.sub(r"\1__shared__\2\3\4", text)
    text = re.sub(r"\[\[kernel[^\]]*\]\]", "__device__ __forceinline__", text)
    text = re.sub(r"\[\[[^\]]*\]\]", "", text)
    text = re.sub(r"\b(device|constant|threadgroup|thread)\b ?", "", text)
    return text.replace('"clang loop unroll(full)"', '"unroll"')


def launcher(name, call, parameters, threads):
    kernel = call.split("<")[0].strip()
    arguments = bind(name, parameters)
    for parameter in parameters:
        slot = re.search(r"\[\[buffer\((\d+)\)", parameter)
        if slot:
            kind = "constant" if "constant" in parameter.split("[[")[0] else "pointer"
            arguments = arguments.replace(
                f"Argument{{buffers[{slot[1]}]}}",
                f"nv::{kind}(slots.slot[{slot[1]}])",
            )
    # Threads of a multiprocessor: a matrix takes twice the registers here.
    resident = 384 if "_matrix_s4" in name else 512
    bounds = f"__launch_bounds__({threads}, {resident // threads}) " if threads else ""
    return (
        f"__global__ void {bounds}launch_{name}(const __grid_constant__ nv::Slots slots)"
        f" {{ const nv::ThreadIds ids; {kernel}{call[len(kernel):]}({arguments}); }}\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--table", required=True)
    parser.add_argument("--prefix", default="", help="of the kernels' names")
    parser.add_argument("--merge-loads", action="store_true")
    options = parser.parse_args()
    with open(options.source) as file:
        source = without_comments(file.read())
    source = re.sub(r'#include [<"][^\n]*|#pragma once|using namespace metal;', "", source)
    if options.merge_loads:
        source, count = LOAD_LOOP.subn(r"nv::load_adjacent(\2, \3);", source)
        if count != 2:
            fail(f"{count} loops that load K or V; 2 were expected")
    kernels = find_kernels(source)
    launchers = [(m[1], m[2]) for m in INSTANTIATION.finditer(source)]
    launchers += [(n, n) for n, (template, _) in kernels.items() if not template]
    body, entries = "", ""
    for name, call in launchers:
        kernel = call.split("<")[0].strip()
        simdgroups = re.search(r"_s(\d+)_p\d+$", name)
        threads = int(simdgroups[1]) * 32 if simdgroups else 0
        full = options.prefix + name
        body += launcher(full, call, kernels[kernel][1], threads)
        entries += (
            f'{{"{full}", reinterpret_cast<const void*>(&msl_{options.table}::launch_{full})}}, '
        )
    integers = [m[2] for m in FUNCTION_CONSTANT.finditer(source) if m[1] == "int"]
    constants = "".join(
        f'{{"{options.prefix}{name}", '
        f"static_cast<const void*>(&msl_{options.table}::{name})}}, "
        for name in integers
    )
    with open(options.output, "w") as file:
        file.write(
            '#include "nv_metal_stdlib.cuh"\n'
            f"namespace msl_{options.table} {{\nusing namespace metal;\n"
            "using metal::max;\nusing metal::min;\nusing metal::log2;\n"
            "typedef nv::Half half;\ntypedef nv::BFloat bfloat;\n"
            "typedef metal::vec<float, 2> float2;\n"
            "typedef metal::vec<float, 4> float4;\ntypedef metal::vec<uint, 2> uint2;\n"
            "typedef metal::vec<uint, 4> uint4;\ntypedef nv::Id3 uint3;\n"
            f"{to_cuda(source)}\n{body}}}\n"
            f"extern const nv::Symbol nv_kernels_{options.table}[] = "
            f"{{{entries}{{nullptr, nullptr}}}};\n"
            f"extern const nv::Symbol nv_constants_{options.table}[] = "
            f"{{{constants}{{nullptr, nullptr}}}};\n"
        )


if __name__ == "__main__":
    main()
