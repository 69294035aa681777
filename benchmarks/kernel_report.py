"""Every operator beside eager torch, torch.compile and a copy: ``python -m benchmarks.kernel_report``.

Prints markdown; ``--write FILE`` replaces the marked section of that file (or writes the file, where there is none).
The same figures are printed by ``pytest benchmarks/ --benchmark-only -k kernels``.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import bounds, marked, where
from benchmarks.alternation import TURNS, Seconds, alternate, machine, median_ratio, page_faults
from benchmarks.contests import COMPILED, COPY, FUNCTIONAL, OUT, Contest, contests

# What an operator computes per element besides moving it, by the lines of bounds.cpp.
ARITHMETIC = {
    "Linf start": ("Philox rounds", ("philox",)),
    "L2 start": ("Philox rounds, fp64 log, sqrt, sin and cos", ("philox", "normals")),
    "L1 start": ("Philox rounds, fp64 log", ("philox", "exponentials_of_words")),
    "Linf step": ("comparisons, exact sums", ("linf_step",)),
    "L2 step": ("fp64 norms and projection", ("l2_step",)),
    "L1 step": ("two searches in fp64", ("l1_step",)),
    "cross-entropy": ("exponentials", ("softmax_terms",)),
    "KL": ("exponentials, twice", ("softmax_terms", "softmax_terms")),
    "margin": ("comparisons", ("margin",)),
    "DLR": ("comparisons, three ranks", ("dlr",)),
}


@dataclass(frozen=True)
class Measured:
    """What is kept of a contest: its batches may go."""

    label: str
    size: str
    in_cache: bool
    moved: int
    copied: int
    elements: int
    row: int
    eager: tuple[str, ...]
    seconds: Seconds
    faults: str  # of a functional call

    def bandwidth(self, contender: str) -> float:
        moved = self.copied if contender == COPY else self.moved
        return moved / statistics.median(self.seconds[contender]) / 1e9

    @property
    def share_of_copy(self) -> float:
        return self.moved / self.copied * median_ratio(self.seconds, COPY, OUT)

    def bound(self) -> tuple[str, float]:
        """What bounds the operator, and the share of that bound that the ``.out`` form reached."""
        copy = 1e9 * self.moved / self.copied * statistics.median(self.seconds[COPY])  # ns, at the copy's bandwidth
        kind, kinds = ARITHMETIC.get(self.label, ("", ()))
        per_element = bounds.nanoseconds(min(self.row, 16384)) if kinds else {}
        alone = sum(per_element.get(k, 0.0) for k in kinds) * self.elements / torch.get_num_threads()
        least = max(copy, alone)
        return (
            "bandwidth" if copy >= alone else kind,
            least / (1e9 * statistics.median(self.seconds[OUT])),
        )


def measure(contest: Contest, turns: int) -> Measured:
    contest.check()
    seconds = alternate(contest.timed(), turns)
    faults = page_faults(contest.timed()[FUNCTIONAL])
    kept = {
        name: getattr(contest, name) for name in ("label", "size", "in_cache", "moved", "copied", "elements", "row")
    }
    return Measured(**kept, eager=tuple(contest.eager), seconds=seconds, faults=faults)


def _time(seconds: list[float]) -> str:
    median = statistics.median(seconds)
    return f"{median * 1e3:.2f} ms" if median >= 1e-3 else f"{median * 1e6:.1f} us"


HEAD = (
    "operator", "size", "time", "GB/s", "copy GB/s", "share of copy",
    "eager / functional", "eager / .out", "in place / .out", "compile / functional", "compile / .out", "page faults",
)  # fmt: skip


def row(m: Measured) -> list[str]:
    first, *others = m.eager
    ratios = [f"{median_ratio(m.seconds, first, to):.2f}" for to in (FUNCTIONAL, OUT)]
    in_place = f"{median_ratio(m.seconds, others[0], OUT):.2f}" if others else ""
    compiled = [f"{median_ratio(m.seconds, COMPILED, to):.2f}" for to in (FUNCTIONAL, OUT)]
    figures = (f"{m.bandwidth(OUT):.1f}", f"{m.bandwidth(COPY):.1f}", f"{m.share_of_copy:.2f}")
    where = m.size if m.in_cache else f"{m.size}, out of cache"
    return [m.label, where, _time(m.seconds[OUT]), *figures, *ratios, in_place, *compiled, m.faults]


def table(measured: list[Measured]) -> str:
    return marked.table(HEAD, [row(m) for m in measured], words=2)


def plain_table(measured: list[Measured]) -> list[str]:
    lines = [list(HEAD), *map(row, measured)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]


def bounds_table(measured: list[Measured]) -> str:
    lines = ["| operator | size | GB/s | bound by | share of the bound |", "|---|---|---:|---|---:|"]
    for m in measured:
        if not m.in_cache:
            kind, share = m.bound()
            lines.append(f"| {m.label} | {m.size} | {m.bandwidth(OUT):.1f} | {kind} | {share:.2f} |")
    return "\n".join(lines)


LEGEND = (
    "Medians of paired ratios. *time*, *GB/s* and *share of copy* are those of the `.out` form; GB/s counts each "
    "operand once, read or written, for a copy 2 of them. A ratio above 1: fastsal is the faster one. *eager*: for "
    "steps one temporary per operation (L1: fastsal.reference, eagerly), for losses forward plus backward; *in place*: "
    "the eager statement that owns its buffer; *compile*: torch.compile of the function in fastsal.reference. *page "
    "faults*: of one functional call."
)


def report(measured: list[Measured], turns: int, started: str) -> str:
    parts = [f"Machine: {started}. {turns} turns. {LEGEND}", table(measured)]
    if where.device().type == "cpu" and not all(m.in_cache for m in measured):
        parts += [
            "What bounds the `.out` form out of cache: the bytes at the speed of the copy, or its arithmetic alone on "
            "operands in the cache (`benchmarks/bounds.cpp`), whichever takes longer; and the share of that bound that "
            "was reached.",
            bounds_table(measured),
        ]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where.add_option(parser.add_argument)
    parser.add_argument("--turns", type=int, default=TURNS, help="alternations (default %(default)s)")
    parser.add_argument(
        "--only",
        action="append",
        metavar="TEXT",
        help="contests whose name holds this, as 'Linf step'; may be repeated",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads (default: torch's)")
    parser.add_argument("--write", type=Path, help="a markdown file whose marked section is replaced")
    options = parser.parse_args()
    where.choose(options.device)
    torch.set_num_threads(options.threads)
    started, measured = machine(), []
    for name, make in contests().items():
        if any(text in name for text in options.only or [""]):
            measured.append(measure(make(), options.turns))
            print("  ".join(row(measured[-1])), flush=True)
    if not measured:
        raise SystemExit(f"--only {options.only}: expected parts of {', '.join(contests())}")
    text = report(measured, options.turns, started)
    print(f"\n{text}")
    if options.write:
        marked.write(where.section("kernels"), text, options.write)


if __name__ == "__main__":
    main()
