#!/usr/bin/env python3
"""Plants one error at a time in the Metal source or its launch: which layer of
evidence notices first? Exits 1 if one goes unnoticed, or none was planted.

  planted_errors.py BUILD_DIR [NAME_PART...] [--write FILE] [--jobs N]
  planted_errors.py --check

BUILD_DIR is a tree configured with QUIRE_METAL_HOST=ON in which the target
metal_host_planted_errors is built: the mutated kernels are linked with its
objects. About half a minute of one core an error. What was found is kept in
BUILD_DIR/planted_errors.jsonl as long as the sources are the same, so that the
command can be stopped and run again. --check only says whether each error can
still be planted.
"""
import argparse
import concurrent.futures
import hashlib
import json
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
SPLIT, MATRIX = SRC / "decode_split.h", SRC / "paged_decode_matrix.h"
WRITE, LAUNCH = SRC / "cache_write.metal", SRC / "launch.cpp"
VARIANTS, PLAN = SRC / "variants.cpp", ROOT / "src/plan/decode_plan.cpp"
STATE = ROOT / "src/kernels/attention_state.h"
KERNELS = (
    "decode_f16_f16_d128|decode_f16_f16_d256_h4_l32_r4_s8_p1|decode_bf16_bf16_d80_h4|"
    "decode_f32_f32_d96|combine"
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
    ("no barrier before the merge", DECODE, "    " + BARRIER + "\n    merge", "    merge"),
    ("no barrier between passes", DECODE, "    if (g0 > 0) {\n      " + BARRIER + "\n    }\n", ""),
    ("barrier orders device memory only", DECODE, "mem_threadgroup", "mem_device", 0),
    ("barrier in simdgroup 0 only", DECODE, "    " + BARRIER + "\n    merge", "    if (simdgroup == 0) " + BARRIER + "\n    merge"),
    ("combine without barrier", DECODE, "  " + BARRIER + "\n  if (row > 0", "  if (row > 0"),
    ("idle simdgroups return early", DECODE, "  while (steps.has(step)) {", "  if (!steps.has(step)) return;\n  while (steps.has(step)) {"),
    ("vote in a divergent branch", DECODE, "if (simd_any(step_max > m + kLazyMax)) {", "if (step_max > m + kLazyMax && simd_any(true)) {"),
    ("tail of a block is read", LAYOUT, "if (num_left >= NumRows * kRowGroups) {", "if (num_left >= 1) {"),
    ("rows past the end not zeroed", LAYOUT, "        words[i][w] = 0;", "        words[i][w] = 0xffffffff;"),
    ("scores past the end kept", DECODE, "        x[c] = -INFINITY;", "        x[c] = 0.0f;"),
    ("mask one token off", DECODE, "row * kRowGroups + row_group >= left", "row * kRowGroups + row_group > left"),
    ("table one entry off", SPLIT, "next_block = table[(step + Stride) >> shift];", "next_block = table[(step + Stride + 1) >> shift];"),
    ("first entry of the wrong split", SPLIT, "s.first_block = s.table[s.first >> s.shift];", "s.first_block = s.table[0];"),
    ("table row too short", SPLIT, "size_t(place.seq) * p.max_blocks_per_seq;", "size_t(place.seq) * (p.max_blocks_per_seq - 1);"),
    ("first entry past the table", SPLIT, "if (s.first >> s.shift < p.max_blocks_per_seq) {", "if (true) {"),
    ("step inside the block wrong", SPLIT, "(step & ((1 << shift) - 1)) * StepSize", "((step - Stride) & ((1 << shift) - 1)) * StepSize"),
    ("wrong KV head", DECODE, "row_group * token_stride + place.kv_head * HeadDim", "row_group * token_stride"),
    ("every simdgroup takes every step", DECODE, "const int next = step + kStride;", "const int next = step + 1;"),
    ("next K loaded past the split", DECODE, "if (c == kScores - 1 && steps.has(next)) {", "if (c == kScores - 1) {"),
    ("K loaded as well as V", DECODE, "    if (steps.has(next)) {\n      Layout::template load_rows<Rows>(\n          v_cache", "    if (steps.has(next)) {\n      Layout::template load_rows<Rows>(\n          k_cache + next_at, token_stride, row_group, lane, next_left, v_words);\n      acc[0][0] = v_words[0][0] == 0x7fc54321 ? 0.0f : acc[0][0];\n      Layout::template load_rows<Rows>(\n          v_cache"),
    ("last split stops at its size", SPLIT, "if (place.split + 1 < p.num_splits) {", "if (true) {"),
    ("rows one too far apart", LAYOUT, "row + i * kRowGroups * row_stride", "row + (i * kRowGroups + 1) * row_stride", 0),
    ("scatter misses a step", DECODE, "int width = Lanes / 2;", "int width = Lanes / 4;"),
    ("token halves swapped", DECODE, "const float keep = upper ? s[i + h][0] : s[i][0];", "const float keep = upper ? s[i][0] : s[i + h][0];"),
    ("query heads not in xor order", DECODE, "part * Heads + (g ^ own_head)", "part * Heads + g"),
    ("weight from the wrong lane", DECODE, "i % kCount * kCopies", "i % kCount"),
    ("accumulators not rescaled", DECODE, "acc[g][j] *= rg;", "acc[g][j] *= 1.0f;"),
    ("sum not rescaled", DECODE, "      d *= r;\n      QUIRE", "      QUIRE"),
    ("never rescaled again", DECODE, "simd_any(step_max > m + kLazyMax)", "simd_any(m < -1e29f)"),
    ("padded head written", SPLIT, "if (head >= p.group_size) {\n      continue;  // padding\n    }", ""),
    ("sum not initialised", DECODE, "float d = 0.0f;\n\n  const int token_stride", "float d;\n\n  const int token_stride"),
    ("accumulators not initialised", DECODE, "      acc[g][j] = 0.0f;", "      ;"),
    ("threadgroup array too small", DECODE, "tg_out[Simdgroups * kPass * HeadDim]", "tg_out[Simdgroups * kPass * HeadDim - 4]"),
    ("log-sum-exp in natural log", STATE, "max_log2 + QUIRE_STATE_LOG2(d)", "max_log2 + 0.6931f * QUIRE_STATE_LOG2(d)"),
    ("empty state gets a factor", STATE, "from_max == -QUIRE_STATE_INF ? 0.0f", "from_max == -QUIRE_STATE_INF ? 1.0f"),
    ("one split: not divided", SPLIT, "y[c] = static_cast<Q>(o[c]);\n      }\n      *re", "y[c] = static_cast<Q>(o[c] * total);\n      }\n      *re"),
    ("one split: partials too", SPLIT, "      continue;\n    }\n    if (column == 0)", "    }\n    if (column == 0)"),
    ("two threads write the lse", SPLIT, "if (column == 0) {\n      partial_lse", "if (column <= 4) {\n      partial_lse"),
    ("out past its end", SPLIT, "(out + row * HeadDim + column) = y", "(out + row * HeadDim + column + 4) = y"),
    ("combine drops the last split", DECODE, "s0 < p.num_splits; s0", "s0 < p.num_splits - 1; s0"),
    ("combine adds empty splits", DECODE, "(w > 0.0f ? x[i] : float4(0.0f))", "x[i]"),
    ("pointer without thread", LAYOUT, "load_words(const device uint* from, thread uint* words)", "load_words(const device uint* from, uint* words)"),
    ("device dropped", LAYOUT, "load_words(const device uint* from", "load_words(const uint* from"),
    ("threadgroup pointer as device", DECODE, "threadgroup float* row =", "device float* row ="),
    ("C-style cast", SPLIT, "static_cast<Q>(o[c])", "(Q)(o[c])"),
    ("a double", SPLIT, "float total = 0.0f;", "double total = 0.0f;"),
    ("standard library", SPLIT, "total_max = kNoMax;", "total_max = std::min(0.0f, kNoMax);"),
    ("misspelt attribute", DECODE, "[[simdgroup_index_in_threadgroup]]", "[[simdgroup_index]]"),
    ("buffer index twice", DECODE, "[[buffer(6)]]", "[[buffer(5)]]"),
    ("16-byte load 4 bytes off", LAYOUT, "const device uint4*>(from + w)", "const device uint4*>(from + w + 1)"),
    ("32-bit row offset", SPLIT, "METAL_FUNC size_t row(", "METAL_FUNC int row("),
    ("matrix: rows and columns of another GPU", MATRIX, "(lane >> 2 & 4) | (lane >> 1 & 3)", "lane >> 2"),
    ("matrix: q not transposed", MATRIX, "odd ? second[1] : second[0]", "second[0]"),
    ("matrix: weights not transposed", MATRIX, "to_matrix<float>(transposed(x, row, column))", "to_matrix<float>(x)"),
    ("matrix: transpose sends the wrong element", MATRIX, "simd_shuffle(odd ? x[0] : x[1]", "simd_shuffle(odd ? x[1] : x[0]"),
    ("matrix: scores past the end kept", MATRIX, "x = float2(-INFINITY);", "x = float2(0.0f);"),
    ("matrix: mask one token off", MATRIX, "row >= steps.left(step)", "row > steps.left(step)"),
    ("matrix: only one head's maximum compared", MATRIX, "x[0] > m[0] + kLazyMax || x[1] > m[1] + kLazyMax", "x[0] > m[0] + kLazyMax"),
    ("matrix: maximum of half the tokens", MATRIX, "return max(x, simd_shuffle_xor(x, ushort(16)));", "return x;"),
    ("matrix: sum of half the tokens", MATRIX, "return x + simd_shuffle_xor(x, ushort(16));", "return x;"),
    ("matrix: rescaled by another head", MATRIX, "transposed(r, row, column)[0]", "r[0]"),
    ("matrix: accumulators not rescaled", MATRIX, "a *= row_r;", "a *= 1.0f;"),
    ("matrix: accumulators not initialised", MATRIX, "    acc[w] = to_matrix<float>(float2(0.0f));", "    ;"),
    ("matrix: K in place of V", MATRIX, "(v_words[0][w])", "(k_words[0][w])"),
    ("matrix: product in divergent code", MATRIX, "      simdgroup_multiply_accumulate(\n          acc[w]", "      if (row < steps.left(step)) simdgroup_multiply_accumulate(\n          acc[w]"),
    ("matrix: both parts serve the same heads", MATRIX, "int(simdgroup) % HeadParts * kHeads", "0"),
    ("matrix: no barrier before the merge", MATRIX, "    " + BARRIER + "\n    merge", "    merge"),
    ("matrix: reference without thread", MATRIX, "reinterpret_cast<thread vec<T, 2>&>", "reinterpret_cast<vec<T, 2>&>"),
    ("append writes the next slot", WRITE, "(size_t(slot) * p.num_pieces + piece) * Piece;", "(size_t(slot + 1) * p.num_pieces + piece) * Piece;"),
    ("append follows slot -1", WRITE, "if (slot < 0 || slot >= p.num_slots)", "if (slot >= p.num_slots)"),
    ("append writes K into V", WRITE, "device T* to = (pos.z == 0 ? k_cache : v_cache)", "device T* to = (pos.z == 1 ? k_cache : v_cache)"),
    ("copy swaps source and target", WRITE, "const int source = copies[2 * i];", "const int source = copies[2 * i + 1];"),
    ("copies in the wrong order", WRITE, "for (int i = 0; i < p.num_copies; ++i) {", "for (int i = p.num_copies - 1; i >= 0; --i) {"),
    ("launch: partials' offset forgotten", LAUNCH, "partials(lse_offset),", "partials(0),"),
    ("launch: scale not in base 2", LAUNCH, "params.scale * std::numbers::log2e_v<float>", "params.scale"),
    ("launch: caches swapped", LAUNCH, "{Operand::KCache},\n      {Operand::VCache},", "{Operand::VCache},\n      {Operand::KCache},"),
    ("launch: one slice too few", LAUNCH, "groups_per_split(params, variant), plan.num_splits", "params.num_kv_heads, plan.num_splits"),
    ("launch: workspace too small", LAUNCH, "lse_offset + num_partials * static_cast<std::int64_t>(sizeof(float))", "lse_offset"),
    ("launch: half the threads", LAUNCH, "launch.num_threads = {32, v.simdgroups, 1};", "launch.num_threads = {32, v.simdgroups / 2, 1};"),
    ("launch: append covers half the rows", LAUNCH, "(num_pieces + threads - 1) / threads, num_rows, 2}", "(num_pieces + threads - 1) / threads, num_rows, 1}"),
    ("variants: a slice too few", SRC / "variants.h", "(group_size + heads * head_parts - 1) / (heads * head_parts)", "group_size / (heads * head_parts)"),
]  # fmt: skip
CONTROL = ("no error at all", SPLIT, "using namespace metal;", "using namespace metal;")


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
            MATRIX,
            SPLIT,
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
    # Of the test cases that printed something, the one that failed.
    until = said.split("ERROR:")[0] if "ERROR:" in said else said
    tests = re.findall(r"TEST CASE:\s*([^\n]*)", until)
    prefix = f"\"{tests[-1]}\": " if tests else ""
    for pattern in (
        r"threw exception: ([^\n]*)", r"(AddressSanitizer: [\w-]+)",
        r"runtime error: ([^\n]*)", r"error: (?!CHECK|REQUIRE)([^\n]*)",
        r"values: ([^\n]*)",
    ):  # fmt: skip
        found = re.search(pattern, said, re.I)
        if found:
            return prefix + found[1].strip()[:100]
    return prefix + said.strip().split("\n")[-1][:100]


def attempt(build, error):
    with tempfile.TemporaryDirectory() as scratch:
        layer, said = Trial(build, error, scratch).layers()
    return layer, first_line(said) if said else ""


def fingerprint():
    """Of everything that a trial depends on."""
    digest = hashlib.sha256()
    for folder in ("src", "include", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(str(path.relative_to(ROOT)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Record:
    """Results that outlive the process."""

    def __init__(self, path):
        self.path, self.sources = path, fingerprint()
        self.found = {}
        if path.exists():
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                if entry["sources"] == self.sources:
                    self.found[entry["error"]] = entry["layer"], entry["said"]

    def add(self, name, layer, said):
        self.found[name] = layer, said
        print(name, layer, said, sep=" | ", file=sys.stderr, flush=True)
        entry = dict(sources=self.sources, error=name, layer=layer, said=said)
        with open(self.path, "a") as file:
            file.write(json.dumps(entry) + "\n")


def report(errors, found, command):
    commit = run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"]).stdout.strip()
    caught = sum(found[e[0]][0] is not None for e in errors)
    lines = [
        "# Errors planted in the Metal source and its launch",
        "",
        f"Made by `{command}` from commit {commit}: {caught} of {len(errors)} "
        "caught. Each error stands alone in a copy of the sources; the layer "
        "named is the first of docs/metal.md's evidence that objects, in the "
        "order address spaces, lint, traced, asan. The unchanged sources pass "
        "all of them.",
        "",
        "| error | planted in | noticed first by | which says |",
        "|---|---|---|---|",
    ]
    for error in errors:
        layer, said = found[error[0]]
        said = said.replace("|", "\\|").replace("`", "'")
        where = error[1].relative_to(ROOT)
        lines.append(f"| {error[0]} | `{where}` | {layer or '**nobody**'} | {said} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", nargs="?", type=pathlib.Path)
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--write")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.check:
        for error in ERRORS:
            mutate(error[1].read_text(), error)
        print(f"{len(ERRORS)} errors can be planted")
        return
    if not options.build:
        parser.error("BUILD_DIR is missing")
    build = options.build.resolve()
    errors = [
        e for e in ERRORS
        if not options.parts or any(part in e[0] for part in options.parts)
    ]  # fmt: skip
    record = Record(build / "planted_errors.jsonl")
    to_do = [e for e in [CONTROL, *errors] if e[0] not in record.found]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        trials = {pool.submit(attempt, build, e): e[0] for e in to_do}
        for trial in concurrent.futures.as_completed(trials):
            record.add(trials[trial], *trial.result())
    missed = [e[0] for e in errors if not record.found[e[0]][0]]
    false_alarm = record.found[CONTROL[0]][0]
    if options.write and not false_alarm:
        command = "tests/metal_host/planted_errors.py BUILD_DIR"
        text = report(errors, record.found, f"{command} --write {options.write}")
        pathlib.Path(options.write).write_text(text)
    print(f"{len(errors)} planted, {len(missed)} missed: {missed}")
    if false_alarm:
        print("the unchanged sources do not pass:", *record.found[CONTROL[0]])
    sys.exit(bool(missed) or bool(false_alarm) or not errors)


if __name__ == "__main__":
    main()
