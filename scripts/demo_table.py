"""Compares runs of `quire generate --json FILE`: one column a file.

usage: demo_table.py FUSED.json GATHER.json DENSE.json

Exits with 1 if the texts differ, or if a run's path counters show another path
than the one that the file is named after.
"""

import json
import pathlib
import sys


def rate(tokens, seconds):
    return f"{tokens / seconds:.1f}" if seconds > 0 else "-"


def column(run):
    cache = run["cache"]
    paths = {name: count for name, count in run["paths"].items() if count}
    # Each sample's first token comes from the prefill's logits.
    decoded = run["generated_tokens"] - len(run["samples"])
    blocks = "-"
    if cache.get("blocks_total"):
        blocks = f"{cache['blocks_used_peak']} of {cache['blocks_total']}"
    return {
        "paths that ran (layer-steps)": ", ".join(
            f"{name} {count}" for name, count in paths.items()
        )
        or "none",
        "prefill, tokens/s": rate(run["prompt_tokens"], run["prefill_seconds"]),
        "decode, tokens/s": rate(decoded, run["decode_seconds"]),
        "cache": f"{cache['kind']} {cache['kv_dtype']}",
        "blocks used": blocks,
        "cache bytes": f"{cache['bytes']:,}",
    }


def main(files):
    runs = {
        pathlib.Path(file).stem: json.loads(pathlib.Path(file).read_text())
        for file in files
    }
    first = next(iter(runs.values()))
    print(
        f"\nprompt {first['prompt_tokens']} tokens, generated"
        f" {first['generated_tokens']}; {first['quire']['cpu']}\n"
    )
    columns = {name: column(run) for name, run in runs.items()}
    labels = list(next(iter(columns.values())))
    rows = [["", *columns]]
    rows += [[label, *(c[label] for c in columns.values())] for label in labels]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        print("  ".join(cells).rstrip())

    texts = [[s["text"] for s in run["samples"]] for run in runs.values()]
    identical = all(text == texts[0] for text in texts)
    print(f"\nidentical text: {'yes' if identical else 'no'}")

    wrong = [
        name
        for name, run in runs.items()
        if not any(run["paths"].values())
        or any(
            count and not path.startswith(name)
            for path, count in run["paths"].items()
        )
    ]
    for name in wrong:
        print(f"the {name} run took another path: see its counters")
    return 0 if identical and not wrong else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
