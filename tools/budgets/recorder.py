"""Runs the launchers of the Triton kernels without a device: each launch is compiled for a target and kept.

What is measured is therefore what a device would run: the same specialisation, constants and options.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

WARPS = {"sm": 32, "gfx": 64}


def gpu_target(name: str) -> GPUTarget:
    """ "sm_90" or "gfx942" as Triton names it."""
    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name[3:]), 32)
    return GPUTarget("hip", name, 64)


@dataclass(frozen=True)
class Launch:
    kernel: str
    grid: tuple[int, ...]
    compiled: CompiledKernel


class _NoDevice:
    """The part of a Triton driver that compiling asks for. One device number per target keeps their caches apart."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self.current = 0

    def take(self, name: str) -> None:
        if name not in self.targets:
            self.targets.append(name)
        self.current = self.targets.index(name)

    def get_current_target(self) -> GPUTarget:
        return gpu_target(self.targets[self.current])

    def get_current_device(self) -> int:
        return self.current

    def get_current_stream(self, device: int) -> int:
        return 0


_DEVICE = _NoDevice()


@contextlib.contextmanager
def recording(target: str) -> Iterator[list[Launch]]:
    """Within, a Triton launch compiles for `target`, runs nothing, and is added to the list."""
    launches: list[Launch] = []
    run: Callable[..., Any] = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = run(self, *args, grid=grid, warmup=True, **options)
        launches.append(Launch(self.__name__, tuple(grid), compiled))
        return compiled

    _DEVICE.take(target)
    driver.set_active(_DEVICE)  # type: ignore[arg-type]
    JITFunction.run = compile_only  # type: ignore[method-assign]
    try:
        yield launches
    finally:
        JITFunction.run = run  # type: ignore[method-assign]
