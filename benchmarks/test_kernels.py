"""Every operator beside eager torch and torch.compile: ``pytest benchmarks/ --benchmark-only -k kernels``.

Prints GB/s and ratios at the end. ``--turns 3`` is quick, ``--benchmark-disable`` only checks that all contenders of a
contest compute the same thing. Times are for reading, never for asserting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.contests import OUT, Contest, contests
from benchmarks.kernel_report import Measured, measure

pytestmark = pytest.mark.benchmark(max_time=0.1, min_rounds=5, warmup=True, warmup_iterations=2)


@pytest.mark.parametrize("make", contests().values(), ids=contests().keys())
def test_kernels(
    make: Callable[[], Contest], benchmark: Any, turns: int, summary: list[Measured], compiler: None
) -> None:
    contest = make()
    contest.check()
    benchmark(contest.timed()[OUT])
    if benchmark.enabled:
        measured = measure(contest, turns)
        benchmark.extra_info["GB/s"] = round(measured.bandwidth(OUT), 2)
        summary.append(measured)
