"""python -m tools.budgets --write | --check: the table of docs/kernel_budgets.md, and its comparison with the build."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.budgets import cuda_kernels, table, triton_kernels
from tools.budgets.budget import Budget

TABLE = Path(__file__).parents[2] / "docs/kernel_budgets.md"
PARTS = {"triton": triton_kernels, "cuda": cuda_kernels}  # each: missing() -> str and budgets(jobs) -> list[Budget]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.budgets", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    what.add_argument("--check", action="store_true", help=f"compare the build with {TABLE.name}; 1 where they differ")
    parser.add_argument("--jobs", type=int, default=2, help="compilations at a time (default: 2)")
    given = parser.parse_args()
    built: list[Budget] = []
    skipped: dict[str, str] = {}
    for name, part in PARTS.items():
        if reason := part.missing():
            skipped[name] = reason
            print(f"tools.budgets: {name} kernels skipped: {reason}", file=sys.stderr)
        else:
            built += part.budgets(given.jobs)
    faults = [fault for budget in built for fault in budget.faults()]
    if given.write:
        if skipped:
            print("tools.budgets: a table without these kernels would be wrong: not written", file=sys.stderr)
            return 1
        TABLE.write_text(table.render(built))
    else:
        faults += table.differences(TABLE.read_text(), built, tuple(skipped))
    for fault in faults:
        print(f"tools.budgets: {fault}", file=sys.stderr)
    if not faults:
        print(f"tools.budgets: {len(built)} kernels within their budgets")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
