"""python -m tools.budgets --write | --check: the table of docs/kernel_budgets.md, and its comparison with the build."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from tools.budgets import cuda_kernels, exceptions, table, triton_kernels
from tools.budgets.budget import Budget

TABLE = Path(__file__).parents[2] / "docs/kernel_budgets.md"
PARTS = {"triton": triton_kernels, "cuda": cuda_kernels}


def say(text: str) -> None:
    print(f"tools.budgets: {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.budgets", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    what.add_argument("--check", action="store_true", help=f"compare the build with {TABLE.name}; 1 where they differ")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilations at a time")
    given = parser.parse_args()
    written = TABLE.read_text() if TABLE.exists() else ""
    built: list[Budget] = []
    parts: dict[str, str] = {}
    differ: list[str] = []
    for name, part in PARTS.items():
        was, old = table.part_of(written, name)
        parts[name] = old
        if reason := part.missing():
            say(f"{name} kernels skipped: {reason}")
            continue
        start = time.monotonic()
        budgets = part.budgets(given.jobs)
        built += budgets
        say(f"{len(budgets)} {name} kernels compiled and read in {time.monotonic() - start:.0f} s")
        new = table.backend_part(name, part.version(), budgets)
        if given.check and was != part.version():
            say(f"{name}: the table was made with {was or 'nothing'}, this is {part.version()}: only budgets count")
        else:
            parts[name] = new
    text = table.render(parts)
    if given.write:
        TABLE.write_text(text)
    else:
        differ = table.differences(written, text)
    faults = exceptions.faults(built)
    for line in faults:
        say(line)
    for line in differ:
        say(f"{TABLE.name}: {line}")
    if not faults and not differ:
        say(f"{len(built)} kernels within their budgets, but for {len(exceptions.EXEMPT)} exceptions")
    return 1 if faults or differ else 0


if __name__ == "__main__":
    raise SystemExit(main())
