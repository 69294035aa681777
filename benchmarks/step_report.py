"""The PGD step against eager torch and torch.compile, as paired ratios: ``python -m benchmarks.step_report``.

All contenders take turns, in an order that rotates, so that whatever else the machine does meets all of them. What is
reported is the median over the turns of a ratio within one turn. Prints markdown; ``--write FILE`` writes it as well.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import fastsal
from benchmarks.contenders import NORMS, agree, step_contenders
from benchmarks.step_inputs import SIZES, Rotation, last_level_cache
from fastsal import backends

try:
    import resource
except ImportError:  # Windows counts no page faults
    resource = None  # type: ignore[assignment]

Seconds = dict[str, list[float]]  # per contender, one per turn
FASTSAL = ("fastsal operator", "fastsal body, no allocation")
COPY, FRESH, OLD = "copy of one operand", "fill of a fresh tensor", "fill of an old tensor"
BLOCK = 0.02  # seconds that the calls of one contender in one turn take, at least


def processor() -> str:
    """The model, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def machine() -> str:
    tier = "none" if backends.EXTENSION is None else backends.EXTENSION.cpu_tier()
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{processor()}, {os.cpu_count()} cores, last-level cache {last_level_cache() / 2**20:.0f} MiB; "
        f"{torch.get_num_threads()} torch threads, instruction set {tier}; load average at the start {load}. "
        f"fastsal {fastsal.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}"
    )


def alternate(calls: dict[str, Callable[[], object]], turns: int) -> Seconds:
    """Seconds per call of each contender in each turn; the order rotates by one from turn to turn."""
    repeats = {}
    for name, call in calls.items():
        call()
        begin = time.perf_counter()
        call()
        once = time.perf_counter() - begin
        repeats[name] = max(1, math.ceil(BLOCK / max(once, 1e-7)))
    seconds: Seconds = {name: [] for name in calls}
    names = list(calls)
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            call, count = calls[name], repeats[name]
            begin = time.perf_counter()
            for _ in range(count):
                call()
            seconds[name].append((time.perf_counter() - begin) / count)
    return seconds


def ratio(seconds: Seconds, of: str, to: str) -> str:
    """Median and quartiles of the paired ratios."""
    pairs = [a / b for a, b in zip(seconds[of], seconds[to], strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def page_faults(call: Callable[[], object]) -> str:
    if resource is None:
        return "not counted here"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        call()
    return f"{(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5:.0f}"


def section(norm: str, size: str, turns: int) -> str:
    """One table: contenders by time, bandwidth by the bytes of a fused step, and how often fastsal fits into them."""
    rotation = Rotation(SIZES[size])
    contenders = step_contenders(norm)
    agree(contenders, rotation.next())
    # a default argument binds the contender now, not when it is called
    calls = {name: lambda step=step: step(rotation.next()) for name, step in contenders.items()}
    steps = list(calls)

    def copy() -> None:
        batch = rotation.next()
        batch.out.copy_(batch.x)

    calls[COPY] = copy
    calls[FRESH] = lambda: torch.empty_like(rotation.batches[0].x).zero_()
    calls[OLD] = lambda: rotation.next().out.zero_()
    seconds = alternate(calls, turns)
    operand = rotation.bytes_per_step // 4
    charged = dict.fromkeys(steps, rotation.bytes_per_step) | {COPY: 2 * operand, FRESH: operand, OLD: operand}
    where = "in cache" if len(rotation.batches) == 1 else f"out of cache, {len(rotation.batches)} batches in turn"
    lines = [
        f"### {norm} step, {size} fp32, {where}",
        "",
        "| | median time | GB/s | time / operator | time / body | page faults a call |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in calls:
        median = statistics.median(seconds[name])
        times = f"{median * 1e3:.2f} ms" if median >= 1e-3 else f"{median * 1e6:.1f} us"
        ratios = [ratio(seconds, name, to) if name in steps and name != to else "" for to in FASTSAL]
        bandwidth = charged[name] / median / 1e9
        lines.append(f"| {name} | {times} | {bandwidth:.1f} | {' | '.join(ratios)} | {page_faults(calls[name])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20, help="alternations (default 20)")
    parser.add_argument("--size", choices=SIZES, action="append", help="only this size; may be repeated")
    parser.add_argument("--norm", choices=NORMS, action="append", help="only this norm (default Linf); may be repeated")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads (default: torch's)")
    parser.add_argument("--write", type=Path, help="a markdown file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    parts = [
        f"Machine: {machine()}.",
        f"{options.turns} turns; ratios are medians of paired ratios, with quartiles. GB/s of a step charge each "
        "contender with the bytes of a fused step (4 operands of fp32), whatever it moves; those of copy and fill, "
        "with 2 and 1.",
    ]
    print("\n\n".join(parts), flush=True)
    for norm in options.norm or ["Linf"]:
        for size in options.size or SIZES:
            parts.append(section(norm, size, options.turns))
            print(f"\n{parts[-1]}", flush=True)
    if options.write:
        options.write.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
