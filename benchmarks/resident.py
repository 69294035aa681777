"""What ``Levers.kept_memory`` does to the memory of the process: ``python -m benchmarks.resident``.

PGD-10 on the nets of the timed attacks and on larger batches, each with the lever and without, in a process of its own:
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
from pathlib import Path

import fastsal
from benchmarks import marked, where
from benchmarks.alternation import machine
from benchmarks.test_attacks import ALPHA, EPS, NETS, SEED, STEPS, case
from fastsal import heap

SMALL, RESNET, PREACT = NETS
CASES = {SMALL: 1, RESNET: 1, PREACT: 1, f"{RESNET}, 4 batches in one": 4, f"{PREACT}, 4 batches in one": 4}
CALLS = 3


def resident(entry: str) -> int:
    """Bytes: VmRSS, now; VmHWM, the most so far."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{entry}:")]
    return int(line.split()[1]) * 1024


def measured(name: str, kept: bool) -> dict[str, float]:
    model, x, y = case(name.split(", 4 batches")[0])
    x, y = x.repeat(CASES[name], 1, 1, 1), y.repeat(CASES[name])
    attack = fastsal.PGD(model, EPS, ALPHA, STEPS, precision="fp32", fast=fastsal.Levers(kept_memory=kept))
    before, faults = resident("VmRSS"), []
    for _ in range(CALLS):
        first = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        attack(x, y, seed=SEED)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - first)
    gc.collect()
    most, after = (resident(entry) - before for entry in ("VmHWM", "VmRSS"))
    return {"faults": statistics.median(faults), "most": most / 2**20, "after": after / 2**20}


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
        without, with_it = (in_a_process(name, kept) for kept in (False, True))
        pairs = [(f"{without[key]:,.0f}", f"{with_it[key]:,.0f}") for key in ("faults", "most", "after")]
        rows.append([name, *(figure for pair in pairs for figure in pair), f"{with_it['most'] / without['most']:.2f}"])
        print("  ".join(rows[-1]), flush=True)
    what = ("page faults", "resident at most, MiB", "resident after, MiB")
    head = (
        "PGD-10, fp32",
        *(f"{name}, {how}" for name in what for how in ("returned", "kept")),
        "at most, kept/returned",
    )
    text = (
        f"Machine: {started}. Faults of a call: the median of {CALLS}. Memory: more than before the first call.\n\n"
        f"{marked.table(head, rows)}"
    )
    print(f"\n{text}")
    if options.write:
        marked.write("resident", text, options.write)


if __name__ == "__main__":
    main()
