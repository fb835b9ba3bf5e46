#!/usr/bin/env python3
"""Collects the results of scripts/gpu-check and writes docs/cuda.md's tables.

usage: cuda_tables.py collect DIR OUT.json   the logs of one run, as one file
       cuda_tables.py write                  docs/results/*-kernels.json into
                                             docs/cuda.md, between its markers
"""
import glob
import json
import os
import re
import subprocess
import sys

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def load(path):
    with open(path) as file:
        return json.load(file)


def commit():
    try:
        return subprocess.run(["git", "rev-parse", "--short", "HEAD"],
                              capture_output=True, text=True,
                              check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("QUIRE_COMMIT", "")


def collect(folder, out):
    result = load(f"{folder}/kernels.json")
    for block_size in (16, 64):
        path = f"{folder}/block-{block_size}.json"
        if os.path.exists(path):
            result["cells"] += load(path)["cells"]
    if os.path.exists(f"{folder}/dense.json"):
        dense = load(f"{folder}/dense.json")
        result["dense"] = {"torch": dense["torch"], "cudnn": dense["cudnn"],
                           "cells": dense["cells"]}
    path = f"{folder}/mlx-times.txt"
    if os.path.exists(path):
        result["mlx"] = [
            dict(zip(("cell", "fused_us", "pipelined_us", "gather_us",
                      "dense_us"), [m[0]] + [float(x) for x in m[1].split()]))
            for m in re.findall(r"^(\d+x\d+k) +([\d. ]+)$", open(path).read(),
                                re.M)]
    result["quire"] = {"commit": os.environ.get("QUIRE_COMMIT") or commit(),
                       "command": "scripts/gpu-check"}
    with open(out, "w") as file:
        text = json.dumps(result)
        text = re.sub(r'(\{"geometry"|\{"cell"|"cells"|"mlx"|"quire")', r"\n\1",
                      text)
        file.write(text + "\n")


def cells_of(result):
    """{(geometry, cell, block size): {(order, launch): cell}}, in order."""
    table = {}
    for c in result["cells"]:
        key = (c["geometry"], c["cell"], c["block_size"])
        table.setdefault(key, {})[c["order"], c["launch"]] = c
    return table


def reads(c):
    """What it takes to only read the same blocks in the same order, and that
    cut in equal shares."""
    return ", ".join(f"{c[k] * 1e6:.1f}" if c.get(k) else "-" for k in
                     ("read_blocks_seconds", "read_shares_seconds"))


def share(c):
    return (f"{c['seconds_median'] * 1e6:.1f} "
            f"({c['share_of_read_bandwidth'] * 100:.1f} %)")


def tables(result):
    dense = {(c["geometry"], c["cell"]): c["dense_seconds"]
             for c in result.get("dense", {}).get("cells", [])}
    table = cells_of(result)
    note = result["quire"].get("note")  # which of several cards
    lines = [f"### {result['gpu']}" + (f", {note}" if note else ""), "",
             f"Commit {result['quire']['commit']}, "
             f"`{result['quire']['command']}`. "
             f"`kv_append` of 64 tokens: "
             f"{result['kv_append_seconds'] * 1e6:.2f} µs.", "",
             "| geometry, cell | KV, MB | read, µs | dense cuDNN, µs | "
             "blocks, shares | plain | overlapped | through MLX's graph | "
             "blocks, shares in order | in order |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for (geometry, cell, block_size), c in table.items():
        if block_size != 32 or cell == "8x16k":
            continue
        plain = c["permuted", "plain"]
        other = dense.get((geometry, cell))
        lines.append(
            f"| {geometry} {cell} | {plain['kv_bytes'] / 1e6:.0f} | "
            f"{plain['read_seconds'] * 1e6:.1f} | "
            f"{f'{other * 1e6:.1f}' if other else '-'} | {reads(plain)} | "
            f"{share(plain)} | {share(c['permuted', 'overlapped'])} | "
            f"{share(c['permuted', 'no_clusters'])} | "
            f"{reads(c['in_order', 'plain'])} | "
            f"{share(c['in_order', 'plain'])} |")
    lines += ["", "8 sequences of 16k tokens, 8 KV heads, permuted, plain: share "
              "of the pure read by query heads a KV head.", "",
              "| type | head dim | 1 | 4 | 8 | 16 |", "|---|---|---|---|---|---|"]
    groups = {}
    for (geometry, cell, _), c in table.items():
        if cell == "8x16k":
            heads, dtype = geometry.split()
            q_heads, kv_heads, dim = map(int, heads.split("/"))
            groups.setdefault((dtype, dim), {})[q_heads // kv_heads] = c
    for (dtype, dim), by_group in groups.items():
        row = [f"{by_group[g]['permuted', 'plain']['share_of_read_bandwidth'] * 100:.1f} %"
               if g in by_group else "-" for g in (1, 4, 8, 16)]
        lines.append(f"| {dtype} | {dim} | " + " | ".join(row) + " |")
    other_sizes = [(k, c) for k, c in table.items() if k[2] != 32]
    if other_sizes:
        lines += ["", "Other block sizes, 32/8/128 f16, permuted, plain, against "
                  "block 32 in the same run.", "",
                  "| cell | block | µs | block 32 |", "|---|---|---|---|"]
        for (geometry, cell, block_size), c in other_sizes:
            base = table[geometry, cell, 32]["permuted", "plain"]
            lines.append(f"| {cell} | {block_size} | "
                         f"{share(c['permuted', 'plain'])} | {share(base)} |")
    if result.get("mlx"):
        lines += ["", "32 layers as one MLX graph, 32/8/128 f16, wall time a "
                  "layer, µs; kernel is the launch's own time above.", "",
                  "| cell | kernel | fused, one step at a time | fused, "
                  "pipelined | gather | dense SDPA |", "|---|---|---|---|---|---|"]
        for m in result["mlx"]:
            kernel = table.get(("32/8/128 f16", m["cell"], 32), {}).get(
                ("permuted", "no_clusters"))
            lines.append(
                f"| {m['cell']} | "
                f"{kernel['seconds_median'] * 1e6:.1f} | {m['fused_us']:.1f} | "
                f"{m['pipelined_us']:.1f} | {m['gather_us']:.1f} | "
                f"{m['dense_us']:.1f} |")
    return lines


def write():
    lines = []
    for path in sorted(glob.glob("docs/results/*-kernels.json")):
        lines += tables(load(path)) + [""]
    with open("docs/cuda.md") as file:
        text = file.read()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    with open("docs/cuda.md", "w") as file:
        file.write(head + BEGIN + "\n" + "\n".join(lines) + END + tail)


def main():
    if sys.argv[1:2] == ["collect"] and len(sys.argv) == 4:
        collect(sys.argv[2], sys.argv[3])
    elif sys.argv[1:] == ["write"]:
        os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
        write()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
