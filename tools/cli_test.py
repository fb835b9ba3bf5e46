"""End-to-end tests of the program quire: cli_test.py QUIRE MODEL GROUP.

GROUP is the name of one of the functions test_*. Exits 77 (skipped) where a
group needs the model and there is none.
"""

import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

QUIRE, MODEL, GROUP = sys.argv[1:4]
# Signals and closed pipes must end the program within 2 s; a busy machine gets
# more, and an ignored signal still shows.
PROMPTLY = 10.0


def run(*args, env=None, **options):
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.run(
        [QUIRE, *args],
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})},
        timeout=300,
        **options,
    )


def generate(*args, **options):
    return run("generate", "--model", MODEL, *args, **options)


def expect(condition, *what):
    if not condition:
        raise AssertionError(" ".join(str(part) for part in what))


def expect_refused(result, *parts):
    message = result.stderr.decode()
    expect(result.returncode == 2, result.args, result.returncode, message)
    for part in parts:
        expect(part in message, result.args, repr(part), "not in", message)


def read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def need_model():
    if not MODEL:
        sys.exit(77)


def test_usage():
    helps = [[name, "--help"] for name in ("bench", "generate", "info", "validate")]
    for args in ([], ["--help"], *helps):
        result = run(*args)
        if args:
            expect(result.returncode == 0, args, result.stderr)
            expect(result.stdout.count(b"Exit codes") == 1, args)
        else:
            expect_refused(result, "subcommand")
    text = run("generate", "--help").stdout.decode()
    for default in ("256", "paged", "auto", "32", "f32", "f16", "cpu"):
        expect(default in text, default)
    for args in (["--version"], ["generate", "--version"]):
        expect(run(*args).stdout.startswith(b"quire "), args)

    expect_refused(run("nonsense"), "nonsense")
    expect_refused(run("info", "--nonsense"), "--nonsense")
    expect_refused(run("info", "--json", ""), "--json")
    expect_refused(run("generate"), "--model")
    model = ["generate", "--model", "/nonexistent.gguf"]
    expect_refused(run(*model), "--prompt")
    expect_refused(run(*model, "--prompt", "x", "--prompt-file", "y"))
    expect_refused(run(*model, "--prompt", "x"), "/nonexistent.gguf")
    prompt = [*model, "--prompt", "x"]
    for flag, value in (
        ("--max-tokens", "0"),
        ("--max-tokens", "-1"),
        ("--max-tokens", "1e3"),
        ("--cache", "sparse"),
        ("--attention", "slow"),
        ("--block-size", "24"),
        ("--cache-blocks", "0"),
        ("--dtype", "f64"),
        ("--kv-dtype", "int8"),
        ("--device", "tpu"),
    ):
        expect_refused(run(*prompt, flag, value), flag)
    both = ["--cache-blocks", "3", "--cache-memory", "1GB"]
    expect_refused(run(*prompt, *both))
    expect_refused(run(*prompt, "--json", "/nonexistent/x.json"), "--json")

    # A bad value in the environment stops every subcommand, and says which.
    for name, value in (
        ("QUIRE_NATIVE_PAGED_KERNEL", "yes"),
        ("QUIRE_CHECKS", "2"),
        ("QUIRE_NUM_THREADS", "0"),
        ("QUIRE_CPU_ISA", "sse9"),
        ("QUIRE_NUM_SPLITS", "-1"),
        ("QUIRE_LOG", "loud"),
    ):
        for args in (["info"], ["validate"], ["bench"], prompt):
            expect_refused(run(*args, env={name: value}), name, value)


def test_info():
    result = run("info")
    expect(result.returncode == 0, result.stderr)
    for part in (b"Quire", b"MLX", b"BLAS", b"QUIRE_NUM_SPLITS"):
        expect(part in result.stdout, part)
    document = json.loads(run("info", "--json", "-").stdout)
    for key in ("version", "commit", "mlx_version", "device", "cpu", "gpu"):
        expect(document["quire"][key], key)
    expect("cpu" in document["devices"], document)
    expect(document["environment"]["QUIRE_LOG"] == "(off)", document)
    changed = run("info", "--json", "-", env={"QUIRE_LOG": "info"}).stdout
    expect(json.loads(changed)["environment"]["QUIRE_LOG"] == "info", changed)


def test_generate():
    need_model()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "out.json")

        def text_of(*args, **options):
            result = generate(*args, "--json", path, **options)
            expect(result.returncode == 0, args, result.stderr.decode())
            document = read_json(path)
            sample = document["samples"][0]
            expect(result.stdout.decode() == sample["text"], args)
            return document, sample

        # Every cache and type goes on alike, and by the path asked for.
        keeper = (
            "A keeper counts the waves, and the waves count the keeper. " * 12
        )
        prompt = ["--prompt", keeper, "--max-tokens", "6"]
        first = [198, 49, 40061, 11002, 260]
        for args, path_name, kv_dtype in (
            (["--cache", "dense"], "dense", "f32"),
            (["--cache", "dense", "--kv-dtype", "f16"], "dense", "f16"),
            ([], "fused_cpu", "f16"),
            (["--attention", "fused", "--kv-dtype", "bf16"], "fused_cpu", "bf16"),
            (["--attention", "gather", "--kv-dtype", "f32"], "gather", "f32"),
            (["--block-size", "16", "--kv-dtype", "f32"], "fused_cpu", "f32"),
        ):
            document, sample = text_of(*prompt, *args)
            expect(sample["token_ids"][:5] == first, args, sample)
            expect(sample["finish"] == "length", args, sample)
            expect("partial" not in document, args)
            expect(document["prompt_tokens"] == 157, args, document)
            expect(document["generated_tokens"] == 6, args)
            expect(document["cache"]["kv_dtype"] == kv_dtype, args, document)
            ran = {k: v for k, v in document["paths"].items() if v}
            expect(ran == {path_name: 5 * 30}, args, ran)
        # Weights of 16 bits, in prefill and decoding.
        for dtype in ("f16", "bf16"):
            for kind in ("dense", "paged"):
                args = ["--prompt", "The capital of France is"]
                args += ["--dtype", dtype, "--cache", kind, "--max-tokens", "2"]
                _, sample = text_of(*args)
                expect(sample["token_ids"][0] == 7042, args, sample)
        cache = text_of(*prompt)[0]["cache"]
        expect(cache["blocks_used_peak"] == 6, cache)
        expect(cache["bytes"] == 6 * 32 * 3 * 64 * 2 * 2 * 30, cache)

        # The gate: off means gather, and contradicts --attention fused.
        off = {"QUIRE_NATIVE_PAGED_KERNEL": "off"}
        document, _ = text_of(*prompt, env=off)
        expect(document["paths"]["gather"] == 150, document)
        expect(document["paths"]["fused_cpu"] == 0, document)
        expect_refused(generate(*prompt, "--attention", "fused", env=off), "off")
        dense = generate(
            *prompt, "--cache", "dense", env={"QUIRE_NUM_SPLITS": "3"}
        )
        expect(b"QUIRE_NUM_SPLITS has no effect" in dense.stderr, dense.stderr)
        for flag in (["--attention", "auto"], ["--cache-blocks", "9"]):
            dense = generate(*prompt, "--cache", "dense", *flag)
            note = f"{flag[0]} has no effect"
            expect(note in dense.stderr.decode(), flag, dense.stderr)

        # Prompts, byte for byte.
        prompt_file = os.path.join(folder, "prompt")
        for content, tokens in (
            (b"Hello", 1),
            (b"Hello\n", 2),
            (b"Hello\r\nworld\r\n", 5),
            (b"\xef\xbb\xbfHello", 4),
            (b"Hello\0world", 3),
            (b"a\x04b", 3),
            (b"a\x1db", 3),
        ):
            with open(prompt_file, "wb") as file:
                file.write(content)
            document, _ = text_of(
                "--prompt-file", prompt_file, "--max-tokens", "1"
            )
            expect(document["prompt_tokens"] == tokens, content, document)
        document, _ = text_of(
            *["--prompt-file", "/dev/stdin", "--max-tokens", "1"], input=b"Hello"
        )
        expect(document["prompt_tokens"] == 1, document)
        with open(prompt_file, "wb"):
            pass
        locked = os.path.join(folder, "locked")
        with open(locked, "wb") as file:
            file.write(b"Hello")
        os.chmod(locked, 0)
        bad_files = [prompt_file, folder, os.path.join(folder, "absent")]
        if os.geteuid() != 0:  # root reads it all the same
            bad_files.append(locked)
        for bad in bad_files:
            expect_refused(generate("--prompt-file", bad))
        expect_refused(generate("--prompt", ""), "empty")

        # A prompt that the cache or the context can't hold.
        small = ["--block-size", "16", "--cache-blocks", "2", "--prompt"]
        result = generate(*small, "a" + " a" * 32)
        expect_refused(result, "33 tokens take 3 blocks")
        for words, places in ((31, 1), (30, 2)):
            text = "a" + " a" * words
            result = generate(*small, text, "--ignore-eos", "--json", path)
            expect(result.returncode == 1, result.stderr)
            sample = read_json(path)["samples"][0]
            expect(sample["finish"] == "cache_full", sample)
            expect(len(sample["token_ids"]) == places, sample)
        long = "a" + " a" * 8192
        expect_refused(generate("--prompt", long), "8192", "8193")

        # The end of a sequence, and a cache larger than any memory.
        _, sample = text_of("--prompt", "The capital of France is")
        expect(sample["finish"] == "eos", sample)
        expect(sample["token_ids"][-1] == 2, sample)
        expect("<|im" not in sample["text"], sample)
        huge = generate("--prompt", "x", "--cache-memory", "8000GiB")
        expect_refused(huge, "memory")

        # Characters of several tokens, as they come: the stream is the text.
        korean = " ".join(["한글"] * 5)
        document, sample = text_of("--prompt", korean, "--max-tokens", "12")
        expect(sample["text"] == " 한글" * 2, sample)

        # A locale with a decimal comma changes nothing.
        german = {"LC_ALL": "de_DE.UTF-8"}
        text_of("--prompt", "Hello", "--max-tokens", "2", env=german)
        result = generate("--prompt", "x", "--cache-memory", "0,5GiB", env=german)
        expect_refused(result, "0,5GiB")


def test_validate():
    """The verdict follows from what ran and how far off it was."""
    few = ["validate", "--device", "cpu", "--steps", "20", "--filter", "d64_h"]

    result = run(*few, "--json", "-")
    expect(result.returncode == 0, result.stderr.decode())
    report = json.loads(result.stdout)
    expect(report["passed"] is True and report["steps"] == 20, report)
    expect(len(report["cases"]) >= 9, len(report["cases"]))
    for case in report["cases"]:
        expect(case["path"] == "fused_cpu", case)
        expect(case["passed"] and case["steps"] == 20, case)
        expect(0 < case["max_rms"] < 5e-3, case)
        expect(case["bound"] > 0, case)

    result = run(*few, "--json", "-", env={"QUIRE_NATIVE_PAGED_KERNEL": "off"})
    expect(result.returncode == 1, result.returncode)
    for case in json.loads(result.stdout)["cases"]:
        expect(case["path"] == "gather" and not case["passed"], case)
        expect("the fused path did not run" in case["reason"], case)
        expect("QUIRE_NATIVE_PAGED_KERNEL=off" in case["reason"], case)

    result = run(*few, "--threshold", "1e-9")
    expect(result.returncode == 1, result.returncode)
    text = result.stdout.decode()
    expect("FAILED" in text and "0 of" in text, text)
    # The command that repeats one case does so.
    repeat = next(
        line for line in text.splitlines() if "to repeat it: quire " in line
    )
    arguments = shlex.split(repeat.split("to repeat it: quire ")[1])
    result = run(*arguments)
    expect(result.returncode == 1, arguments)
    expect("0 of 1 cases" in result.stdout.decode(), result.stdout)

    names = run("validate", "--device", "cpu", "--list").stdout.decode().split()
    expect(len(names) == len(set(names)) >= 45, names)
    expect_refused(run("validate", "--filter", "("), "regular expression")
    expect_refused(run("validate", "--filter", "no such case"), "--list")
    expect_refused(run("validate", "--steps", "0"), "--steps")
    for bad in ("0", "0,005", "nan", "inf"):
        expect_refused(run("validate", "--threshold", bad), "--threshold")
    expect_refused(run("validate", "--seed", "-1"), "--seed")

    child = subprocess.Popen(
        [QUIRE, "validate", "--device", "cpu", "--steps", "5000", "--json", "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    report, _ = child.communicate(timeout=PROMPTLY)
    expect(child.returncode == 1, child.returncode)
    expect(json.loads(report)["partial"] is True, report)


def expect_damage_named(path, part, *what):
    begin = time.monotonic()
    child = subprocess.Popen(
        [QUIRE, "generate", "--model", path, "--prompt", "x"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    message = child.stderr.read().decode()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    took = time.monotonic() - begin
    expect(child.returncode == 2, *what, message)
    expect(part in message and path in message, *what, message)
    expect(took < PROMPTLY, *what, took)
    expect(usage.ru_maxrss < 200_000, *what, usage.ru_maxrss)


def test_damage():
    """Broken model files: refused with the tensor or key, fast, in 200 MB."""
    need_model()
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "damaged.gguf")
        shutil.copyfile(MODEL, copy)
        u32, u64 = "<I", "<Q"
        offset, dim, num_dims = 1769556, 1769544, 1769532
        # (byte, format, value, part of the message); see the file's layout.
        cases = [
            (offset, u64, 2**40, "token_embd.weight"),
            (offset, u64, 2**64 - 32, "token_embd.weight"),
            (offset, u64, 16, "token_embd.weight"),
            (dim, u64, 2**42 + 1, "token_embd.weight"),
            (dim, u64, 0x1C71C71C71C71C72, "token_embd.weight"),
            (dim, u64, 0, "token_embd.weight"),
            (dim, u64, 49088, "tokenizer.ggml.tokens"),  # rows of 49,152 tokens
            (1769536, u64, 0, "token_embd.weight"),
            (688, u32, 0, "head_count_kv"),
            (688, u32, 2, "head_count_kv"),
            (688, u32, 9, "attn_k.weight"),
            (num_dims, u32, 0, "token_embd.weight"),
            (num_dims, u32, 5, "token_embd.weight"),
            (num_dims, u32, 9, "token_embd.weight"),
            (num_dims, u32, 2**32 - 1, "token_embd.weight"),
            (1769552, u32, 7, "token_embd.weight"),
            (1768954, u32, 2**32 - 1, "eos_token_id"),
            (1768954, u32, 49152, "eos_token_id"),
            (1061, "c", b"x", "smollx"),
        ]
        for at, kind, value, part in cases:
            with open(copy, "r+b") as file:
                file.seek(at)
                before = file.read(struct.calcsize(kind))
                file.seek(at)
                file.write(struct.pack(kind, value))
            expect_damage_named(copy, part, at, value)
            with open(copy, "r+b") as file:
                file.seek(at)
                file.write(before)
        # Counts and lengths that nothing stands behind.
        small = os.path.join(folder, "small.gguf")
        key = struct.pack("<Q", 1) + b"k"
        for num_keys, rest, part in (
            (1, struct.pack("<Q", 2**48), "A key"),
            (2**63, b"", "key count"),
            (1, key + struct.pack("<IIQ", 9, 0, 2**60), "values"),
            (1, key + struct.pack("<IIQ", 9, 9, 1) * 1000, "array of arrays"),
        ):
            with open(small, "wb") as file:
                file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, num_keys) + rest)
            expect_damage_named(small, part, num_keys)
        # Another token that ends a text; a beginning that is marked once.
        for at, value, args, tokens in (
            (973, b"\1", ["--prompt", "Hello"], 2),
            (973, b"\1", ["--prompt", "<|im_start|>Hello"], 2),
        ):
            with open(copy, "r+b") as file:
                file.seek(at)
                file.write(value)
            result = run(
                *["generate", "--model", copy, "--max-tokens", "1"],
                *args,
                *["--json", "-"],
            )
            expect(result.returncode == 0, result.stderr)
            document = json.loads(result.stdout)
            expect(document["prompt_tokens"] == tokens, args, document)


def ends_promptly(child, what):
    begin = time.monotonic()
    try:
        child.wait(PROMPTLY)
    except subprocess.TimeoutExpired:
        child.kill()
        raise AssertionError(f"{what}: still running") from None
    return time.monotonic() - begin


def test_streams():
    """A reader that goes away ends the work, with an error."""
    expect(run("info", stdout=open("/dev/full", "w")).returncode == 1)
    closed = subprocess.run(["/bin/sh", "-c", '"$0" info >&-', QUIRE])
    expect(closed.returncode == 1, closed)
    read_end, write_end = os.pipe()
    os.close(read_end)
    expect(run("info", stdout=write_end).returncode == 1, "closed pipe")
    expect(run("info", "--json", "-", stdout=write_end).returncode == 1)
    os.close(write_end)
    need_model()
    long = ["--prompt", "One, two,", "--max-tokens", "8000", "--ignore-eos"]
    child = subprocess.Popen(
        [QUIRE, "generate", "--model", MODEL, *long],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    child.stdout.read(20)
    child.stdout.close()
    ends_promptly(child, "closed pipe")
    expect(child.returncode == 1, child.returncode, child.stderr.read())
    # The model's descriptor must not become stdout.
    closed = subprocess.run(
        ["/bin/sh", "-c", '"$0" generate --model "$1" --prompt Hi >&-']
        + [QUIRE, MODEL],
        stderr=subprocess.PIPE,
        timeout=60,
    )
    expect(closed.returncode == 1, closed)
    # With --json - there is nothing else on stdout.
    short = ["--prompt", "Hello", "--max-tokens", "3", "--json", "-"]
    document = json.loads(generate(*short).stdout)
    expect(document["generated_tokens"] == 3, document)


def test_signals():
    """An interrupt keeps what is done; a second one kills."""
    need_model()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "out.json")

        def start(*args):
            return subprocess.Popen(
                [QUIRE, "generate", "--model", MODEL, *args, "--json", path],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )

        def expect_partial(child, what):
            ends_promptly(child, what)
            text = child.stdout.read().decode()
            expect(child.returncode == 1, what, child.stderr.read())
            document = read_json(path)
            expect(document["partial"] is True, what, document)
            sample = document["samples"][0]
            expect(sample["finish"] == "interrupted", what, sample)
            return text, sample

        decode = ["--prompt", "One, two,", "--max-tokens", "8000", "--ignore-eos"]
        for number in (signal.SIGINT, signal.SIGTERM):
            child = start(*decode)
            head = child.stdout.read(20)
            child.send_signal(number)
            text, sample = expect_partial(child, f"{number} in decoding")
            expect(head.decode() + text == sample["text"], "text is kept")
            expect(sample["token_ids"], sample)

        prefill = ["--prompt", "a" + " a" * 7000]
        child = start(*prefill)
        time.sleep(2)
        child.send_signal(signal.SIGINT)
        _, sample = expect_partial(child, "prefill")
        expect(sample["text"] == "", sample)

        # While loading, at whatever point it gets to.
        for delay in (0.05, 0.2, 0.4):
            child = start(*prefill)
            time.sleep(delay)
            child.send_signal(signal.SIGINT)
            ends_promptly(child, f"after {delay} s")
            # Before main has begun the signal does what it does by default.
            expect(child.returncode in (1, -signal.SIGINT), child.returncode)

        # Both signals at once, as soon as it can run again.
        child = start(*decode)
        child.stdout.read(1)
        child.send_signal(signal.SIGSTOP)
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGCONT)
        ends_promptly(child, "two signals")
        expect(child.returncode < 0, "the second kills", child.returncode)


globals()["test_" + GROUP]()
