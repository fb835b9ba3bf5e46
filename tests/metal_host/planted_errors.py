#!/usr/bin/env python3
"""Plants one error at a time in the Metal source or its launch: which layer of
evidence notices first? Exits 1 if one goes unnoticed, or none was planted.

  planted_errors.py BUILD_DIR [NAME_PART...] [--table FILE]

BUILD_DIR is a tree in which the targets metal_host_decode_traced,
_decode_asan, _cache_write_traced and _counters are built: the mutated kernels
are linked with its objects. Several minutes; two errors are tried at a time.
"""
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SRC = ROOT / "src/kernels/metal"
DECODE, LAYOUT = SRC / "paged_decode.metal", SRC / "row_layout.h"
WRITE, LAUNCH = SRC / "cache_write.metal", SRC / "launch.cpp"
VARIANTS, PLAN = SRC / "variants.cpp", ROOT / "src/plan/decode_plan.cpp"
STATE = ROOT / "src/kernels/attention_state.h"
KERNELS = (
    "decode_f16_f16_d128|decode_bf16_bf16_d80_h4|decode_f32_f32_d96|combine"
)
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
CLANG = os.environ.get("CLANGXX", "clang++-19")
TRACE = (
    "-fsanitize-coverage=func,trace-pc-guard,trace-loads,trace-stores "
    "-mllvm -disable-loop-idiom-all -mllvm -disable-vector-combine"
).split()
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all".split()

# (name, file, old, new[, which occurrence: 0 all, n the n-th])
ERRORS = [
    ("no barrier before the merge", DECODE, "    " + BARRIER + "\n    constexpr", "    constexpr"),
    ("no barrier between passes", DECODE, "    if (g0 > 0) {\n      " + BARRIER + "\n    }\n", ""),
    ("barrier orders device memory only", DECODE, "mem_threadgroup", "mem_device", 0),
    ("barrier in simdgroup 0 only", DECODE, "    " + BARRIER + "\n    constexpr", "    if (simdgroup == 0) " + BARRIER + "\n    constexpr"),
    ("combine without barrier", DECODE, "  " + BARRIER + "\n  if (thread_idx", "  if (thread_idx"),
    ("idle simdgroups return early", DECODE, "  while (step < end_step) {", "  if (step >= end_step) return;\n  while (step < end_step) {"),
    ("vote in a divergent branch", DECODE, "if (simd_any(step_max > m + kLazyMax)) {", "if (step_max > m + kLazyMax && simd_any(true)) {"),
    ("tail of a block is read", LAYOUT, "if (num_left >= NumRows * kRowGroups) {", "if (num_left >= 1) {"),
    ("rows past the end not zeroed", LAYOUT, "        words[i][w] = 0;", "        words[i][w] = 0xffffffff;"),
    ("scores past the end kept", DECODE, "        x[c] = -INFINITY;", "        x[c] = 0.0f;"),
    ("mask one token off", DECODE, "row * kRowGroups + row_group >= left", "row * kRowGroups + row_group > left"),
    ("table one entry off", DECODE, "next_block = table[(next + kTokenSimdgroups) >> step_shift];", "next_block = table[(next + kTokenSimdgroups + 1) >> step_shift];"),
    ("first entry of the wrong split", DECODE, "    block = table[step >> step_shift];", "    block = table[0];"),
    ("table row too short", DECODE, "size_t(seq) * p.max_blocks_per_seq;", "size_t(seq) * (p.max_blocks_per_seq - 1);"),
    ("first entry past the table", DECODE, "if (step >> step_shift < p.max_blocks_per_seq) {", "if (true) {"),
    ("step inside the block wrong", DECODE, "(next & step_mask) * kStep", "(step & step_mask) * kStep"),
    ("wrong KV head", DECODE, "row_group * token_stride + kv_head * HeadDim", "row_group * token_stride"),
    ("every simdgroup takes every step", DECODE, "const int next = step + kTokenSimdgroups;", "const int next = step + 1;"),
    ("next K loaded past the split", DECODE, "if (c == kScores - 1 && next < end_step) {", "if (c == kScores - 1) {"),
    ("K loaded as well as V", DECODE, "    if (next < end_step) {\n      Layout::template load_rows<Rows>(\n          v_cache", "    if (next < end_step) {\n      Layout::template load_rows<Rows>(\n          k_cache + next_at, token_stride, row_group, lane, next_left, v_words);\n      acc[0][0] += 0.0f * float(v_words[0][0] & 1);\n      Layout::template load_rows<Rows>(\n          v_cache"),
    ("last split stops at its size", DECODE, "if (split + 1 < p.num_splits) {", "if (true) {"),
    ("rows one too far apart", LAYOUT, "row + i * kRowGroups * row_stride", "row + (i * kRowGroups + 1) * row_stride", 0),
    ("scatter misses a step", DECODE, "int width = Lanes / 2;", "int width = Lanes / 4;"),
    ("token halves swapped", DECODE, "const float keep = upper ? s[i + h][0] : s[i][0];", "const float keep = upper ? s[i][0] : s[i + h][0];"),
    ("query heads not in xor order", DECODE, "part * Heads + (g ^ own_head)", "part * Heads + g"),
    ("weight from the wrong lane", DECODE, "i % kCount * kCopies", "i % kCount"),
    ("accumulators not rescaled", DECODE, "acc[g][j] *= rg;", "acc[g][j] *= 1.0f;"),
    ("sum not rescaled", DECODE, "      d *= r;\n      QUIRE", "      QUIRE"),
    ("never rescaled again", DECODE, "simd_any(step_max > m + kLazyMax)", "simd_any(m < -1e29f)"),
    ("padded head written", DECODE, "if (head >= p.group_size) {\n        continue;  // padding\n      }", ""),
    ("sum not initialised", DECODE, "float d = 0.0f;\n\n  const int token_stride", "float d;\n\n  const int token_stride"),
    ("accumulators not initialised", DECODE, "      acc[g][j] = 0.0f;", "      ;"),
    ("threadgroup array too small", DECODE, "tg_out[Simdgroups * kPass * HeadDim]", "tg_out[Simdgroups * kPass * HeadDim - 4]"),
    ("log-sum-exp in natural log", STATE, "max_log2 + QUIRE_STATE_LOG2(d)", "max_log2 + 0.6931f * QUIRE_STATE_LOG2(d)"),
    ("empty state gets a factor", STATE, "from_max == -QUIRE_STATE_INF ? 0.0f", "from_max == -QUIRE_STATE_INF ? 1.0f"),
    ("one split: not divided", DECODE, "y[c] = static_cast<Q>(o[c]);\n        }\n        *re", "y[c] = static_cast<Q>(o[c] * total);\n        }\n        *re"),
    ("one split: partials too", DECODE, "        continue;\n      }\n      if (column == 0)", "      }\n      if (column == 0)"),
    ("two threads write the lse", DECODE, "if (column == 0) {\n        partial_lse", "if (column <= 4) {\n        partial_lse"),
    ("out past its end", DECODE, "(out + row * HeadDim + column) = y", "(out + row * HeadDim + column + 4) = y"),
    ("combine drops the last split", DECODE, "s0 < p.num_splits;\n", "s0 < p.num_splits - 1;\n"),
    ("combine adds empty splits", DECODE, "(w > 0.0f ? x[i] : float4(0.0f))", "x[i]"),
    ("pointer without thread", LAYOUT, "load_words(const device uint* from, thread uint* words)", "load_words(const device uint* from, uint* words)"),
    ("device dropped", LAYOUT, "load_words(const device uint* from", "load_words(const uint* from"),
    ("threadgroup pointer as device", DECODE, "threadgroup float* row =", "device float* row ="),
    ("C-style cast", DECODE, "static_cast<Q>(o[c])", "(Q)(o[c])"),
    ("a double", DECODE, "float total = 0.0f;", "double total = 0.0f;"),
    ("standard library", DECODE, "total_max = kNoMax;", "total_max = std::min(0.0f, kNoMax);"),
    ("misspelt attribute", DECODE, "[[simdgroup_index_in_threadgroup]]", "[[simdgroup_index]]"),
    ("buffer index twice", DECODE, "[[buffer(6)]]", "[[buffer(5)]]"),
    ("16-byte load 4 bytes off", LAYOUT, "const device uint4*>(from + w)", "const device uint4*>(from + w + 1)"),
    ("32-bit row offset", DECODE, "(size_t(block) << p.block_size_log2)", "(block << p.block_size_log2)"),
    ("32-bit row offset of the next step", DECODE, "(size_t(next_block) << p.block_size_log2)", "(next_block << p.block_size_log2)"),
    ("append writes the next slot", WRITE, "(size_t(slot) * p.num_pieces + piece) * Piece;", "(size_t(slot + 1) * p.num_pieces + piece) * Piece;"),
    ("append follows slot -1", WRITE, "if (slot < 0 || slot >= p.num_slots)", "if (slot >= p.num_slots)"),
    ("append writes K into V", WRITE, "device T* to = (pos.z == 0 ? k_cache : v_cache)", "device T* to = (pos.z == 1 ? k_cache : v_cache)"),
    ("copy swaps source and target", WRITE, "const int source = copies[2 * pos.y];", "const int source = copies[2 * pos.y + 1];"),
    ("launch: partials' offset forgotten", LAUNCH, "partials(lse_offset),", "partials(0),"),
    ("launch: scale not in base 2", LAUNCH, "params.scale * std::numbers::log2e_v<float>", "params.scale"),
    ("launch: caches swapped", LAUNCH, "{Operand::KCache},\n      {Operand::VCache},", "{Operand::VCache},\n      {Operand::KCache},"),
    ("launch: one slice too few", LAUNCH, "groups_per_split(params, variant), plan.num_splits", "params.num_kv_heads, plan.num_splits"),
    ("launch: workspace too small", LAUNCH, "lse_offset + num_partials * static_cast<std::int64_t>(sizeof(float))", "lse_offset"),
    ("launch: half the threads", LAUNCH, "launch.num_threads = {32, v.simdgroups, 1};", "launch.num_threads = {32, v.simdgroups / 2, 1};"),
    ("launch: append covers half the rows", LAUNCH, "(num_pieces + threads - 1) / threads, num_rows, 2}", "(num_pieces + threads - 1) / threads, num_rows, 1}"),
    ("variants: a slice too few", SRC / "variants.h", "(group_size + heads * head_parts - 1) / (heads * head_parts)", "group_size / (heads * head_parts)"),
]  # fmt: skip


def run(command, **options):
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        errors="replace",
        **options,
    )


def mutate(text, error):
    old, new = error[2], error[3]
    if old not in text:
        sys.exit(f"{error[0]}: the text to replace is gone: {old!r}")
    return text.replace(old, new, -1 if len(error) > 4 else 1)


class Trial:
    """A copy of the sources with one error, and what the layers say of it."""

    def __init__(self, build, error, scratch):
        self.build, self.error = build, error
        self.dir = pathlib.Path(scratch)
        self.tree = self.dir / "tree"
        for part in ("src", "include", "tests"):
            shutil.copytree(ROOT / part, self.tree / part)
        path = self.tree / error[1].relative_to(ROOT)
        path.write_text(mutate(path.read_text(), error))
        self.on_host = error[1].suffix in (".cpp", ".h") and error[1] not in (
            LAYOUT,
            STATE,
        )

    def text(self, name, regex):
        """The embedded text, from the mutated sources."""
        script = ROOT / "cmake/QuireEmbedMetal.cmake"
        out = self.dir / f"{name}.metal"
        run(
            ["cmake", "-D", f"ROOT={self.tree / 'src'}",
             "-D", f"INPUT={self.tree / 'src/kernels/metal' / name}.metal",
             "-D", f"TEXT={out}", "-D", f"CODE={self.dir / name}.cpp",
             "-D", f"FUNCTION={name}_source", "-P", script]
        )  # fmt: skip
        kernel_list = self.build / "bin/metal_kernel_list"
        which = ["decode", regex] if name == "paged_decode" else ["write"]
        listed = run([kernel_list, *which]).stdout
        listed = re.findall(r"^template \[\[host_name.*\n", listed, re.M)
        with open(out, "a") as file:
            file.writelines(listed)
        return out

    def compile(self, source, flags, *more):
        out = self.dir / (pathlib.Path(source).stem + "".join(more) + ".o")
        done = run([CLANG, *flags, "-c", source, "-o", out])
        return (out, None) if done.returncode == 0 else (None, done.stderr)

    def kernel_flags(self):
        host = HERE
        return ["-std=c++14", "-x", "c++", "-w", "-march=native", "-g1", "-O1",
                "-fno-vectorize", "-fno-slp-vectorize",
                f"-I{host / 'shim'}", f"-I{host}"]  # fmt: skip

    def layers(self):
        """(layer, what it said) until one objects."""
        generated = {}
        for name in ("paged_decode", "cache_write"):
            text = self.text(name, KERNELS)
            for table in (None, name):
                out = self.dir / f"{name}{'_run' if table else ''}.cpp"
                command = [sys.executable, HERE / "msl_to_host.py", text, "-o", out]
                done = run(command + (["--table", table] if table else []))
                if done.returncode:
                    return "address spaces", done.stderr
                generated[name, bool(table)] = out
        for name in ("paged_decode", "cache_write"):
            source = generated[name, False]
            as_flags = ["-DQUIRE_SHIM_ADDRESS_SPACES", *self.kernel_flags()]
            done = run([CLANG, "-fsyntax-only", *as_flags, source])
            if done.returncode:
                return "address spaces", done.stderr
            lint = ["/usr/bin/python3", HERE / "metal_lint.py", source]
            done = run(lint + [f for f in as_flags if f[:2] in ("-I", "-D")])
            if done.returncode:
                return "lint", done.stdout + done.stderr
        for flavour, flags in (("traced", TRACE), ("asan", SANITIZE + TRACE)):
            said = self.run_flavour(flavour, flags, generated)
            if said:
                return flavour, said
        return None, None

    def run_flavour(self, flavour, flags, generated):
        objects = []
        for name in ("paged_decode", "cache_write"):
            source = generated[name, True]
            made, errors = self.compile(
                source, [*self.kernel_flags(), *flags], flavour
            )
            if errors:
                return "build: " + errors
            objects.append(made)
        table = self.dir / "tables.cpp"
        table.write_text(
            '#include "lockstep.h"\n'
            "extern const lockstep::KernelEntry lockstep_kernels_paged_decode[];\n"
            "extern const lockstep::KernelEntry lockstep_kernels_cache_write[];\n"
            "extern const lockstep::KernelEntry* const quire_metal_host_tables[];\n"
            "const lockstep::KernelEntry* const quire_metal_host_tables[] = {"
            "lockstep_kernels_paged_decode, lockstep_kernels_cache_write, "
            "nullptr};\n"
        )
        harness_flags = ["-std=c++20", f"-I{HERE}", *flags[: 2 * (flavour == "asan")]]
        made, errors = self.compile(table, harness_flags, flavour)
        if errors:
            return "build: " + errors
        objects.append(made)
        built = self.build / "tests/metal_host" / flavour
        harness = {p.stem: p for p in built.glob("harness_*.o")}
        for test in list(harness):
            if test.endswith("_host_test") or test.endswith("counters_test"):
                harness.pop(test)
        if self.on_host:
            for stem in ("launch", "variants", "decode_plan", "host_launch"):
                where = {"decode_plan": "src/plan", "host_launch": "tests/metal_host"}
                source = self.tree / where.get(stem, "src/kernels/metal") / f"{stem}.cpp"
                includes = [f"-I{self.tree / p}" for p in ("src", "include", "tests", "tests/metal_host")]
                made, errors = self.compile(
                    source,
                    ["-std=c++20", "-O1", "-g1", *includes, *flags[: 2 * (flavour == "asan")]],
                    flavour,
                )
                if errors:
                    return "build: " + errors
                harness[f"harness_{stem}"] = made
        common = [*objects, *harness.values(), built / "lockstep.o"]
        tests = ["decode_host_test", "cache_write_host_test"]
        if flavour == "traced":
            tests.append("counters_test")
        for test in tests:
            program = self.dir / f"{test}_{flavour}"
            linked = run(
                [CLANG, *flags[: 2 * (flavour == "asan")], *common,
                 built / f"harness_{test}.o", "-o", program]
            )  # fmt: skip
            if linked.returncode:
                return "link: " + linked.stderr
            try:
                done = run([program, "--abort-after=1"], timeout=300)
            except subprocess.TimeoutExpired:
                return "does not end"
            if done.returncode:
                return done.stdout + done.stderr
        return None


def first_line(said):
    for pattern in (
        r"threw exception: ([^\n]*)", r"threw: ([^\n]*)",
        r"(AddressSanitizer: [\w-]+)", r"runtime error: ([^\n]*)",
        r"error: ([^\n]*)", r"values: ([^\n]*)",
    ):  # fmt: skip
        found = re.search(pattern, said)
        if found:
            return found[1].strip()[:100]
    return said.strip().split("\n")[-1][:100]


def attempt(build, error):
    with tempfile.TemporaryDirectory() as scratch:
        layer, said = Trial(build, error, scratch).layers()
    return error[0], layer, first_line(said) if said else ""


def main():
    arguments = sys.argv[1:]
    table = None
    if "--table" in arguments:
        at = arguments.index("--table")
        table = arguments[at + 1]
        del arguments[at : at + 2]
    build = pathlib.Path(arguments[0]).resolve()
    wanted = [
        e for e in ERRORS
        if not arguments[1:] or any(part in e[0] for part in arguments[1:])
    ]  # fmt: skip
    none = ("no error at all", DECODE, "using namespace metal;", "using namespace metal;")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = []
        for result in pool.map(lambda e: attempt(build, e), [none, *wanted]):
            print(*result, sep=" | ", file=sys.stderr, flush=True)
            results.append(result)
    rows = ["| planted error | noticed first by | which says |", "|---|---|---|"]
    rows += [f"| {n} | {l or '**nobody**'} | {s.replace('|', '/')} |" for n, l, s in results]
    report = "\n".join(rows) + "\n"
    print(report)
    if table:
        pathlib.Path(table).write_text(report)
    missed = [name for name, layer, _ in results[1:] if not layer]
    false_alarm = results[0][1] is not None
    print(f"{len(wanted)} planted, {len(missed)} missed: {missed}")
    sys.exit(bool(missed) or false_alarm or not wanted)


if __name__ == "__main__":
    main()
