"""python -m tools.mutants: mutates csrc/rows, csrc/cuda and kernels, and fails where a mutant survives unexplained.

Every match of every rule is tried, or with --share a sample that is the same on every machine. Known survivors and the
reasons for them stand in tools/mutants/survivors.txt: one that is missing there fails the command, and so does one that
is caught or gone.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
os.environ["FASTSAL_BACKEND"] = "reference"  # the bodies that are tried are not those of the installed extension

import torch

from tools.mutants import compiled, libraries, survivors, triton
from tools.mutants.mutation import Choice, Outcome

BEGIN = time.monotonic()


def say(message: str) -> None:
    print(f"[{time.monotonic() - BEGIN:5.0f} s] {message}", file=sys.stderr, flush=True)


def told(outcomes: Iterator[Outcome], log: Path | None) -> Iterator[Outcome]:
    """The same, with a word now and then about how far it is, and a line in the log for each."""
    last = time.monotonic()
    for number, outcome in enumerate(outcomes, 1):
        yield outcome
        if log is not None:
            with log.open("a", encoding="utf-8") as file:
                print(outcome.state, outcome.mutation.key, outcome.by, sep="\t", file=file)
        if time.monotonic() - last > 60:
            last = time.monotonic()
            say(f"{number} mutants tried, now in {outcome.mutation.path}")


def _verdict(report: survivors.Report) -> str:
    total = report.total
    return f"{total.share:.1f} % caught, {total.score:.1f} % of those that are not equivalent; every survivor is listed"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", help="mutate these alone (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: 2)")
    parser.add_argument(
        "--share", type=float, default=1.0, help="try this share of the mutants, by the hash of their keys"
    )
    parser.add_argument("--named", type=Path, help="try those alone that this file names, written like survivors.txt")
    parser.add_argument("--log", type=Path, help="append what became of each mutant to this file, as they come")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Triton's interpreter, at every NaN
    cpp, python = libraries.sources(), triton.sources()
    missing = ""
    if shutil.which("g++") is None and shutil.which("c++") is None:
        raise SystemExit("tools.mutants: no C++ compiler on the PATH")
    if importlib.util.find_spec("triton") is None:
        missing, python = "Triton kernels left out: the package triton is not installed", {}
    if unknown := set(given.files) - set(cpp) - set(python):
        raise SystemExit(f"tools.mutants: expected files that are mutated, got {', '.join(sorted(unknown))}")
    if given.files:
        cpp = {path: text for path, text in cpp.items() if path in given.files}
        python = {path: text for path, text in python.items() if path in given.files}
    named = frozenset(survivors.read(given.named.read_text(encoding="utf-8"))) if given.named else None
    choice = Choice(given.share, named)
    with tempfile.TemporaryDirectory(prefix="fastsal-mutants-") as folder:
        parts: list[Iterator[Outcome]] = []
        if cpp:
            parts.append(compiled.outcomes(cpp, libraries.targets(), choice, Path(folder), given.jobs, say))
        if python:
            parts.append(triton.outcomes(python, triton.operators(), choice, Path(folder) / "triton", given.jobs, say))
        known = survivors.read(survivors.KNOWN.read_text(encoding="utf-8"))
        outcomes = told(itertools.chain(*parts), given.log)
        report = survivors.Report.of(outcomes, [*cpp, *python], known, choice)
    if given.share < 1:
        print(f"a sample: {given.share:.0%} of the mutants, by the hash of their keys")
    print(report.table())
    print(report.listing())
    faults = report.faults()
    if report.unlisted:
        print("\nThe unlisted, as survivors.txt names them:")
        print("\n".join(outcome.mutation.key for outcome in report.unlisted))
    for fault in faults:
        print(f"tools.mutants: {fault}", file=sys.stderr)
    say(missing or ("failed" if faults else _verdict(report)))
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
