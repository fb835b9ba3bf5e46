"""quire bench from the outside: flags, exit codes, JSON, interrupts.

Usage: bench_cli_test.py QUIRE
"""
import json
import os
import signal
import subprocess
import sys
import time

QUIRE = sys.argv[1]
SMALL = ["--context", "40", "--head-dim", "64", "--q-heads", "4",
         "--kv-heads", "2", "--min-time", "0.001"]
KEYS = {"batch", "context", "ragged", "block_size", "head_dim", "q_heads",
        "kv_heads", "dtype", "kv_dtype", "path", "ran", "timing",
        "seconds_median", "seconds_min", "iterations", "kv_bytes",
        "read_seconds", "limit_seconds", "share_of_read_bandwidth",
        "share_of_limit", "allocated_bytes_per_step", "max_abs_error"}

LARGEST_ERROR = {"f32": 1e-5, "f16": 1e-3, "bf16": 1e-2}


def bench(*args, env=None):
    return subprocess.run([QUIRE, "bench", *args], capture_output=True,
                          text=True, timeout=120,
                          env={**os.environ, **(env or {})})


def test_json():
    done = bench("--batch", "1,3", *SMALL, "--json", "-")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["quire"]["device"] == "cpu"
    assert result["partial"] is False and result["refused"] == []
    cells = result["cells"]
    assert [c["batch"] for c in cells] == [1] * 5 + [3] * 5
    ran = {("dense", "end_to_end"): "dense",
           ("dense_best", "end_to_end"): "dense",
           ("gather", "end_to_end"): "gather",
           ("fused", "end_to_end"): "fused_cpu",
           ("fused", "kernel"): "fused_cpu"}
    for cell in cells:
        assert set(cell) == KEYS, set(cell) ^ KEYS
        assert cell["ran"] == ran[cell["path"], cell["timing"]], cell
        assert cell["max_abs_error"] < LARGEST_ERROR[cell["dtype"]], cell
        assert cell["limit_seconds"] >= cell["read_seconds"] > 0
        share = cell["read_seconds"] / cell["seconds_median"]
        assert abs(cell["share_of_read_bandwidth"] - share) < 1e-9


def test_lists_and_table():
    done = bench(*SMALL, "--batch", "1", "--paths", "fused,gather",
                 "--context", "17", "--ragged", "--dtype", "f16")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 7 and "Cell" in lines[0], done.stdout
    assert "1x40 ragged" in lines[1] and "fused_cpu" in lines[1]
    assert "1x17 ragged" in lines[6] and "gather" in lines[6]


def test_usage():
    for args, word in [
            (["--paths", "fast"], "--paths"),
            (["--batch", "0"], "--batch"),
            (["--batch", "1.5"], "--batch"),
            (["--batch", "99999999999999999999"], "whole number"),
            (["--min-time", "-1"], "--min-time"),
            (["--min-time", "nan"], "finite number above 0"),
            (["--q-heads", "2147483647"], "from 1 to 1024"),
            (["--context", "1000000000", "--batch", "1000000"], "memory"),
            (["--q-heads", "12", "--kv-heads", "8"], "got 12 and 8"),
            (["--block-size", "24"], "--block-size: 24"),
            (["--head-dim", "72"], "head_dim"),
            (["--device", "cuda"], "cuda"),
            (["--context", "2000000000"], "--context"),
            (["--html", "x"], "--html")]:
        done = bench(*args)
        assert done.returncode == 2, (args, done.returncode)
        assert word in done.stderr and done.stdout == "", (args, done.stderr)


def test_kill_switch():
    off = {"QUIRE_NATIVE_PAGED_KERNEL": "off"}
    done = bench(*SMALL, "--paths", "fused", env=off)
    assert done.returncode == 2, done.stderr
    assert "QUIRE_NATIVE_PAGED_KERNEL" in done.stderr
    done = bench(*SMALL, "--paths", "gather", "--batch", "1", "--json", "-",
                 env=off)
    assert done.returncode == 0, done.stderr
    assert [c["ran"] for c in json.loads(done.stdout)["cells"]] == ["gather"]


def test_interrupt_keeps_finished_cells():
    args = [*SMALL[:-1], "0.3", "--paths", "gather", "--json", "-"]
    begin = time.monotonic()
    assert bench(*args, "--batch", "1").returncode == 0
    one_cell = time.monotonic() - begin
    with subprocess.Popen(
            [QUIRE, "bench", *args, "--batch", ",".join(["1"] * 200)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        time.sleep(4 * one_cell)
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=60)
    assert run.returncode == 1, run.returncode
    result = json.loads(out)
    assert result["partial"] is True
    assert 1 <= len(result["cells"]) < 200, len(result["cells"])


def main():
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            print("ok", name)


main()
