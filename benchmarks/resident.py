"""What ``Levers.kept_memory`` does in a process that has done nothing else: ``python -m benchmarks.resident``.

PGD-10 on the nets of the timed attacks and on larger batches. Processes with the lever and without take turns: time and
page faults of a call, the most memory that was resident more than before the first, and what still is after the last.
Linux alone. ``--write FILE`` replaces the marked section of that file.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import fastsal
from benchmarks import marked, where
from benchmarks.alternation import machine, seconds_of
from benchmarks.test_attacks import ALPHA, EPS, NETS, SEED, STEPS, case
from fastsal import heap

SMALL, RESNET, PREACT = NETS
FOUR = ", 4 batches in one"
CASES = {SMALL: 1, RESNET: 1, PREACT: 1, RESNET + FOUR: 4, PREACT + FOUR: 4}
CALLS = 3
TURNS = 3  # of pairs of processes; one where a call takes ten seconds and more


def resident(entry: str) -> int:
    """Bytes: VmRSS, now; VmHWM, the most so far."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{entry}:")]
    return int(line.split()[1]) * 1024


def measured(name: str, kept: bool) -> dict[str, float]:
    model, x, y = case(name.removesuffix(FOUR))
    x, y = x.repeat(CASES[name], 1, 1, 1), y.repeat(CASES[name])
    attack = fastsal.PGD(model, EPS, ALPHA, STEPS, precision="fp32", fast=fastsal.Levers(kept_memory=kept))
    before, faults, seconds = resident("VmRSS"), [], []
    for _ in range(CALLS):
        first = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        seconds.append(seconds_of(partial(attack, x, y, seed=SEED)))
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - first)
    gc.collect()
    most, after = (resident(entry) - before for entry in ("VmHWM", "VmRSS"))
    typical = {"seconds": statistics.median(seconds), "faults": statistics.median(faults)}
    return {**typical, "most": most / 2**20, "after": after / 2**20}


def in_a_process(name: str, kept: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.resident", "--case", name, *(["--kept"] if kept else [])]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a markdown file whose marked section is replaced")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--kept", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    where.choose("cpu")
    if options.case:
        print(json.dumps(measured(options.case, options.kept)))
        return
    if (why := heap.refusal("cpu")) is not None:
        raise SystemExit(f"memory cannot be kept here: {why}")
    started, rows = machine(), []
    for name in CASES:
        turns = [[in_a_process(name, kept) for kept in (False, True)] for _ in range(1 if FOUR in name else TURNS)]
        faster = [without["seconds"] / with_it["seconds"] for without, with_it in turns]
        row = [name, f"{statistics.median(faster):.2f} ({min(faster):.2f}-{max(faster):.2f})"]
        for key in ("faults", "most", "after"):
            row += [f"{statistics.median(turn[kept][key] for turn in turns):,.0f}" for kept in (0, 1)]
        rows.append(row)
        print("  ".join(row), flush=True)
    what = ("page faults", "resident at most, MiB", "resident after, MiB")
    columns = (f"{name}, {how}" for name in what for how in ("returned", "kept"))
    head = ("PGD-10, fp32", "time, returned/kept", *columns)
    text = (
        f"Machine: {started}. Medians over {CALLS} calls, and over {TURNS} pairs of processes (one for the larger "
        "batches); time with its range. Memory: more than before the first call.\n\n"
        f"{marked.table(head, rows)}"
    )
    print(f"\n{text}")
    if options.write:
        marked.write("resident", text, options.write)


if __name__ == "__main__":
    main()
