"""Contenders that take turns, in an order that rotates, so that whatever else the machine does meets all of them.

What is claimed is the median over the turns of a ratio within one turn; the absolute times beside it say how the
machine was doing.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import fastsal
from benchmarks import where
from benchmarks.batches import last_level_cache
from fastsal import backends

try:
    import resource
except ImportError:  # Windows counts no page faults
    resource = None  # type: ignore[assignment]

TURNS = 20
LEAST = 3  # turns, however long they take
BLOCK = 0.02  # seconds that the calls of one contender in one turn take, at least
Seconds = dict[Any, list[float]]  # per contender, one per turn


def seconds_of(call: Callable[[], object]) -> float:
    """Of one call, what it queued on the device included."""
    where.wait()
    begin = time.perf_counter()
    call()
    where.wait()
    return time.perf_counter() - begin


def alternate(
    calls: Mapping[Any, Callable[[], object]],
    turns: int = TURNS,
    limit: float = math.inf,
    once: Mapping[Any, float] | None = None,
) -> Seconds:
    """Seconds per call of each contender in each turn.

    Past `limit` seconds no turn begins but the first three. `once`: about how long each takes; they have been called.
    On a GPU, where a first call chooses algorithms and compiles, it is measured here all the same.
    """
    if once is None or where.device().type == "cuda":
        for call in calls.values():
            call()
        once = {name: seconds_of(call) for name, call in calls.items()}
    repeats = {name: max(1, math.ceil(BLOCK / max(once[name], 1e-7))) for name in calls}
    seconds: Seconds = {name: [] for name in calls}
    names = list(calls)
    start = time.perf_counter()
    for turn in range(turns):
        if turn >= LEAST and time.perf_counter() - start > limit:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            call, count = calls[name], repeats[name]
            where.wait()
            begin = time.perf_counter()
            for _ in range(count):
                call()
            where.wait()
            seconds[name].append((time.perf_counter() - begin) / count)
    return seconds


def ratios(seconds: Seconds, of: Any, to: Any) -> list[float]:
    return [a / b for a, b in zip(seconds[of], seconds[to], strict=True)]


def median_ratio(seconds: Seconds, of: Any, to: Any) -> float:
    """How often `to` fits into the time of `of`."""
    return statistics.median(ratios(seconds, of, to))


def quartiles(seconds: Seconds, of: Any, to: Any) -> tuple[float, float, float]:
    """Of the ratios; their median in the middle."""
    pairs = ratios(seconds, of, to)
    low, middle, high = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3
    return low, middle, high


def ratio_with_quartiles(seconds: Seconds, of: Any, to: Any) -> str:
    low, middle, high = quartiles(seconds, of, to)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})" if len(seconds[of]) > 1 else f"{middle:.2f}"


def page_faults(call: Callable[[], object]) -> str:
    """Page faults of one call, the mean of five."""
    if resource is None:
        return "not counted here"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        call()
    return f"{(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5:.0f}"


def processor() -> str:
    """The model, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def load_average() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def machine() -> str:
    tier = "none" if backends.EXTENSION is None else backends.EXTENSION.cpu_tier()
    gpu = f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda}) on " if where.device().type == "cuda" else ""
    return (
        f"{gpu}{processor()}, {os.cpu_count()} cores, last-level cache {last_level_cache() / 2**20:.0f} MiB; "
        f"{torch.get_num_threads()} torch threads, instruction set {tier}; load average at the start {load_average()}. "
        f"fastsal {fastsal.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}"
    )
