"""Fixtures of the benchmarks: batches of each size, made once, and the bytes a call is charged with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from benchmarks.step_inputs import SIZES, Rotation

rotation = cache(Rotation)


@pytest.fixture(params=SIZES.values(), ids=SIZES.keys(), scope="session")
def batches(request: pytest.FixtureRequest) -> Rotation:
    return rotation(request.param)


@pytest.fixture
def timed(benchmark: Any) -> Callable[..., Any]:
    """timed(group, moved_bytes, function): times it, and notes GB/s by the bytes that a fused operator has to move."""

    def run(group: str, moved: int, function: Callable[[], Any]) -> Any:
        benchmark.group = group
        out = benchmark(function)
        if benchmark.stats:
            benchmark.extra_info["GB/s"] = round(moved / benchmark.stats["median"] / 1e9, 2)
        return out

    return run


@pytest.fixture
def compiler() -> None:
    """For torch.compile, which writes C++ on a CPU."""
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("torch.compile needs a C++ compiler, and none is on the PATH")
