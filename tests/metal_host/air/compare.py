#!/usr/bin/env python3
"""Is the host execution what Apple's compiler means? Runs MLX's attention
kernels twice on the CPU and compares every bit of the results:

 1. their source, through our shim, as our own kernels are tested;
 2. the code that Apple's compiler made of the same source: the Metal wheel
    holds it as machine-independent bitcode (AIR), which LLVM turns into x86
    code once address spaces and target are rewritten. Ten functions that the
    GPU's compiler would supply are in air_functions.cpp.

  compare.py [WHEEL_DIR]     default: build/deps/mlx-metal-*/mlx, unpacked

On demand, 8 seconds and more of one core. Needs clang++-19, llvm-dis-19 and llc-19. A
control with every exponential scaled by 1.00001 must differ.
"""
import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
HOST = HERE.parent
ROOT = HOST.parent.parent
CLANG = os.environ.get("CLANGXX", "clang++-19")
X86_LAYOUT = (
    "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-i128:128-f80:128-"
    "n8:16:32:64-S128"
)
TYPES = {"float": "float", "float16_t": "half", "bfloat16_t": "bfloat"}
CONSTANTS = {
    "has_mask": "b", "query_transposed": "b", "do_causal": "b",
    "bool_mask": "b", "float_mask": "b", "has_sinks": "b", "blocks": "i",
}  # fmt: skip
VECTOR_IDS = {
    "threadgroup_position_in_grid": "threadgroup_position",
    "threadgroups_per_grid": "threadgroups_per_grid",
    "threads_per_threadgroup": "threads_per_threadgroup",
    "thread_position_in_threadgroup": "position_in_threadgroup",
}
SCALAR_IDS = {
    "simdgroup_index_in_threadgroup": "simdgroup_index",
    "thread_index_in_simdgroup": "simd_lane",
}


def run(*command, **options):
    return subprocess.run(list(map(str, command)), check=True, **options)


def kernels():
    """Name in the metallib -> instantiation of MLX's source."""
    found = {}
    for name, msl in TYPES.items():
        for dim in (64, 128):
            found[f"sdpa_vector_{name}_{dim}_{dim}"] = f"sdpa_vector<{msl}, {dim}>"
            found[f"sdpa_vector_2pass_1_{name}_{dim}_{dim}"] = (
                f"sdpa_vector_2pass_1<{msl}, {dim}>"
            )
            found[f"sdpa_vector_2pass_2_{name}_{dim}"] = (
                f"sdpa_vector_2pass_2<{msl}, {dim}>"
            )
        found[f"sdpa_vector_2pass_1_gqa_8_{name}_128_128"] = (
            f"sdpa_vector_2pass_1_gqa<{msl}, 128, 128, 8, 4>"
        )
    return found


def functions_of(metallib):
    """(name, bitcode) of each function. A metallib is a header, a list of
    tagged records, and the functions' bitcode, one after another."""
    data = metallib.read_bytes()
    if data[:4] != b"MTLB":
        sys.exit(f"{metallib} is no Metal library")
    list_at, _, _, _, _, _, code_at = struct.unpack_from("<7Q", data, 24)
    (count,) = struct.unpack_from("<I", data, list_at)
    at = list_at + 4
    for _ in range(count):
        (size,) = struct.unpack_from("<I", data, at)
        fields, field = {}, at + 4
        while data[field : field + 4] != b"ENDT":
            tag = data[field : field + 4].decode()
            (length,) = struct.unpack_from("<H", data, field + 4)
            fields[tag] = data[field + 6 : field + 6 + length]
            field += 6 + length
        (code_size,) = struct.unpack("<Q", fields["MDSZ"])
        begin = code_at + struct.unpack("<3Q", fields["OFFT"])[2]
        yield fields["NAME"].rstrip(b"\0").decode(), data[begin : begin + code_size]
        at += size


def to_x86(name, text):
    """Apple's IR for another target: one address space, function constants
    from outside, their initialiser under a name of its own."""
    def line(pattern, to):
        nonlocal text
        text = re.sub(pattern, to, text, flags=re.M)

    line(r"^target datalayout.*$", f'target datalayout = "{X86_LAYOUT}"')
    line(r"^target triple.*$", 'target triple = "x86_64-pc-linux-gnu"')
    line(r"^(@\S*MTL_FC_INIT\S*) = .*?(i8|i32) undef.*$", r"\1 = external global \2")
    line(r"^@llvm\.(global_ctors|compiler\.used).*$", "")
    line(
        r'define internal void @_GLOBAL__sub_I_\S+\(\)(.*?) section "[^"]*"',
        rf"define void @init_{name}()\1",
    )
    text = re.sub(r" ?addrspace\(\d\)", "", text)
    text = text.replace("addrspacecast", "bitcast")
    # Arguments that function constants switch off are null here.
    return re.sub(
        r"ptr noundef align (\d) dereferenceable\(\d\)", r"ptr noundef align \1", text
    )


def launcher(name, text):
    """Binds a kernel's arguments as the metadata of its AIR says."""
    nodes = dict(re.findall(r"^!(\d+) = (?:distinct )?!\{(.*)\}$", text, re.M))
    kernel = re.search(r"^!air.kernel = !\{!(\d+)\}", text, re.M)[1]
    values, types = [], []
    for node in re.findall(r"!(\d+)", nodes[re.findall(r"!(\d+)", nodes[kernel])[-1]]):
        slot = re.search(r'!"air.location_index", i32 (\d+)', nodes[node])
        kind = re.search(r'!"air\.([a-z_]+)"', nodes[node])[1]
        if slot:
            values.append(f"buffers[{slot[1]}]")
            types.append("void*")
        elif kind in VECTOR_IDS:
            v = f"ids.{VECTOR_IDS[kind]}"
            values.append(f"Uint3{{{v}.x, {v}.y, {v}.z}}")
            types.append("Uint3")
        else:
            values.append(f"ids.{SCALAR_IDS[kind]}")
            types.append("unsigned")
    has_init = f"@init_{name}()" in to_x86(name, text)
    init = f'extern "C" void init_{name}();\n' if has_init else ""
    call = f"set_constants(); init_{name}(); " if has_init else ""
    return (
        f'extern "C" void {name}({", ".join(types)});\n{init}'
        f"static void launch_{name}(const lockstep::ThreadIds& ids, "
        f"void* const* buffers) {{ {call}{name}({', '.join(values)}); }}\n"
    )


def constants():
    """The AIR's function constants, set from the shim's."""
    text, assignments = "", ""
    for index, (name, kind) in enumerate(CONSTANTS.items()):
        cpp = "bool" if kind == "b" else "int"
        symbol = f"_Z{len(name)}{name}.MTL_FC_INIT_{20 + index}_{kind}"
        air = "unsigned char" if kind == "b" else "int"
        text += f'extern {cpp} {name};\n{air} air_{name} asm("{symbol}");\n'
        assignments += f"air_{name} = {name}; "
    return text + f"static void set_constants() {{ {assignments}}}\n"


def build_air(metallib, out):
    wrapper = (
        '#include "lockstep.h"\n'
        "typedef unsigned Uint3 __attribute__((ext_vector_type(3)));\n" + constants()
    )
    objects, wanted = [], kernels()
    for name, code in functions_of(metallib):
        if name not in wanted:
            continue
        bitcode, ir = out / f"{name}.air", out / f"{name}.ll"
        bitcode.write_bytes(code)
        run("llvm-dis-19", bitcode, "-o", ir)
        text = ir.read_text()
        wrapper += launcher(name, text)
        ir.write_text(to_x86(name, text))
        objects.append(out / f"{name}.o")
        run("llc-19", "-O1", "-relocation-model=pic", "-filetype=obj", ir,
            "-o", objects[-1])  # fmt: skip
        wanted.pop(name)
    if wanted:
        sys.exit(f"not in {metallib}: {', '.join(wanted)}")
    entries = "".join(f'{{"{name}", launch_{name}}}, ' for name in kernels())
    (out / "air.cpp").write_text(
        f"{wrapper}extern const lockstep::KernelEntry lockstep_kernels_air[] = "
        f"{{{entries}{{nullptr, nullptr}}}};\n"
    )
    return objects


def build_shim(include, out):
    text = (include / "mlx/backend/metal/kernels/sdpa_vector.h").read_text()
    for name, call in kernels().items():
        text += (
            f'template [[host_name("{name}")]] [[kernel]] decltype({call}) {call};\n'
        )
    (out / "sdpa.metal").write_text(text)
    run(sys.executable, HOST / "msl_to_host.py", out / "sdpa.metal", "-o",
        out / "shim.cpp", "--table", "shim", "--include", "metal_stdlib",
        "--include", "mlx/backend/metal/kernels/utils.h")  # fmt: skip


def main():
    wheels = sorted(ROOT.glob("build/deps/mlx-metal-*/mlx"))
    if len(sys.argv) > 1:
        wheels = [pathlib.Path(sys.argv[1])]
    if not wheels:
        sys.exit("no Metal wheel of MLX; run cmake --preset macos first")
    wheel = wheels[-1].resolve()
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch)
        objects = build_air(wheel / "lib/mlx.metallib", out)
        build_shim(wheel / "include", out)
        kernel_flags = ["-std=c++17", "-w", "-O1", f"-I{HOST}"]
        shim_flags = [*kernel_flags, "-x", "c++", f"-I{HOST / 'shim'}",
                      f"-I{HOST / 'mlx_stubs'}", f"-I{wheel / 'include'}"]  # fmt: skip
        run(CLANG, *shim_flags, "-c", out / "shim.cpp", "-o", out / "shim.o")
        run(CLANG, *kernel_flags, "-c", out / "air.cpp", "-o", out / "air.o")
        for source in (HOST / "lockstep.cpp", HERE / "air_compare.cpp"):
            run(CLANG, "-std=c++20", "-O1", f"-I{HOST}", "-c", source, "-o",
                out / f"{source.stem}.o")  # fmt: skip
        objects += [out / f"{s}.o" for s in ("shim", "air", "lockstep", "air_compare")]
        wrong = 0
        for control in (False, True):
            functions = out / "air_functions.o"
            run(CLANG, "-std=c++20", "-O1", f"-I{HOST}",
                f"-DEXP_SCALE={1.00001 if control else 1.0}f", "-c",
                HERE / "air_functions.cpp", "-o", functions)  # fmt: skip
            run(CLANG, *objects, functions, "-o", out / "compare")
            if control:
                print("control, exponentials scaled by 1.00001:")
            done = subprocess.run([out / "compare", "quiet" if control else ""])
            wrong += done.returncode != int(control)  # 1: they differ
    print(wheel.parent.name, "FAILED" if wrong else "passed")
    sys.exit(wrong)


if __name__ == "__main__":
    main()
