"""``fastsal doctor``: what runs where, each operator checked against the reference, and its speed beside a copy's."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

import torch
from torch import Tensor

from fastsal import backends
from fastsal.operators import OPERATORS
from fastsal.version import __version__

REPEATS = 5
QUEUED = 20  # calls between two events of a GPU


@dataclass(frozen=True)
class Case:
    """One call of an operator: what it may differ by from the reference, and what it has to move at the least."""

    name: str
    variant: str
    arguments: tuple[Any, ...]
    allowed: float  # 0: bit for bit
    moved: int  # bytes: every operand read once, every output written once

    @property
    def label(self) -> str:
        return f"{self.name} {self.variant}".rstrip()


def _cases(device: torch.device, shape: tuple[int, ...], classes: int, rows: int) -> Iterator[Case]:
    """Every operator in every norm and variant: images (N, C, H, W), logits (rows, classes)."""
    dice = torch.Generator().manual_seed(0)

    def on(tensor: Tensor) -> Tensor:
        return tensor.to(device)

    def size(*tensors: Tensor) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    count = shape[0]
    clean = torch.rand(shape, generator=dice)
    x, x_adv = on(clean), on((clean + 0.02 * torch.randn(shape, generator=dice)).clamp(0, 1))
    grad = on(torch.randn(shape, generator=dice))
    low, high, seed = on(torch.zeros(1)), on(torch.ones(1)), on(torch.tensor(2205))
    slots, ids = (on(torch.randperm(count, generator=dice)[: count - count // 4]) for _ in range(2))
    share = len(slots) / count
    topk = max(1, math.prod(shape[1:]) // 20)
    for p, radius, allowed in ((math.inf, 0.03, 0.0), (2.0, 0.5, 1e-6 * 0.5), (1.0, 12.0, 1e-6 * 12)):
        eps, alpha = on(torch.full((1,), radius)), on(torch.full((1,), radius / 4))
        norm = "Linf" if p == math.inf else f"L{p:g}"
        yield Case("random_start", norm, (x, eps, seed, None, low, high, None, p), allowed, 2 * size(x))
        step = (x, x_adv, grad, eps, alpha, low, high, slots, ids, p, topk)
        yield Case("pgd_step", norm, step, allowed, int(share * 4 * size(x)))
    logits, adv = (on(5 * torch.randn(rows, classes, generator=dice)) for _ in range(2))
    target = on(torch.randint(0, classes, (rows,), generator=dice))
    other = (target + 1) % classes
    yield Case("truncated_cross_entropy", "", (logits, target, None, math.log(2)), 1e-5, 2 * size(logits))
    yield Case("margin_loss", "CW", (logits, target, None, None, False), 0.0, 2 * size(logits))
    yield Case("margin_loss", "DLR", (logits, target, None, None, True), 1e-5, 2 * size(logits))
    yield Case("margin_loss", "targeted DLR", (logits, target, other, None, True), 1e-5, 2 * size(logits))
    yield Case("kl_divergence", "", (logits, adv, None, True), 1e-4, 4 * size(logits))
    over = on(torch.rand(count, generator=dice) < 0.5)
    result, stop = torch.zeros_like(x), torch.zeros(count, dtype=torch.int64, device=device)
    arguments = (x, x_adv, None, over, None, None, result, stop, 1, False)
    yield Case("retire", "", arguments, 0.0, 2 * size(x[over]))


def _difference(case: Case, body: str) -> float:
    """Largest difference of any output, or mutated argument, of a body from the reference."""
    operator = OPERATORS[case.name]
    results = []
    for kind in (body, "reference"):
        copies = [value.clone() if isinstance(value, Tensor) else value for value in case.arguments]
        outputs = backends.implementation(operator, backends.body_of(case.name, kind), check_values=True)(*copies)
        mutated = [copies[i] for i, text in enumerate(operator.arguments.split(", ")) if "!)" in text]
        results.append([*(outputs if isinstance(outputs, tuple) else (outputs,)), *mutated])
    return max(_farthest(a.double(), b.double()) for a, b in zip(*results, strict=True))


def _farthest(a: Tensor, b: Tensor) -> float:
    """Largest difference of two tensors; infinite where a NaN stands in one of them only, or the shapes differ."""
    if a.shape != b.shape:
        return math.inf
    same = (a == b) | (a.isnan() & b.isnan())
    apart = (a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(same, 0.0)
    return float(apart.max()) if apart.numel() else 0.0


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median of a few calls, after one that is not counted; on a GPU by its own clock, of calls queued at a time."""
    call()
    if device.type == "cuda":
        return statistics.median(_seconds_on_gpu(call) for _ in range(REPEATS))
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _seconds_on_gpu(call: Callable[[], object]) -> float:
    """Per call of so many that the device is not waiting for the host."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(QUEUED):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / QUEUED


def _speed(case: Case, body: str, device: torch.device) -> float:
    """GB/s of the operator into memory that is there already, by the bytes that it has to move."""
    operator = OPERATORS[case.name]
    outputs = dict(zip(operator.out_names, operator.outputs(*case.arguments), strict=True))
    run = backends.implementation(operator, backends.body_of(case.name, body), check_values=False)
    return case.moved / _seconds(lambda: run(*case.arguments, **outputs), device) / 1e9


def _copy_speed(device: torch.device, shape: tuple[int, ...]) -> float:
    source, target = torch.ones(shape, device=device), torch.zeros(shape, device=device)
    return 8 * math.prod(shape) / _seconds(lambda: target.copy_(source), device) / 1e9


def _backends(say: Callable[..., None]) -> None:
    if backends.EXTENSION is None:
        say(f"C++ extension: not there ({backends.EXTENSION_MISSING}); CPU operators run as plain torch")
    else:
        say(f"C++ extension: built, CPU instruction set {backends.EXTENSION.cpu_tier()} (FASTSAL_CPU_TIER forces one)")
    cuda, triton = backends.missing("cuda"), backends.missing("triton")
    say(f"CUDA bodies: {f'not there ({cuda})' if cuda else 'built for ' + backends.EXTENSION.cuda_targets()}")
    say(f"Triton bodies: {f'not there ({triton})' if triton else 'triton ' + importlib.metadata.version('triton')}")
    chosen = os.environ.get("FASTSAL_BACKEND") or "auto"
    say(f"FASTSAL_BACKEND: {chosen} (a CPU runs cpp, else reference; a GPU cuda, else triton, else reference)")


def examine(out: TextIO, speed: bool = True) -> bool:
    """Prints what runs where, checks it and, with `speed`, times it; returns whether every check passed."""

    def say(text: str = "") -> None:
        print(text, file=out, flush=True)

    say(f"fastsal {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}")
    say(f"processor: {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads")
    _backends(say)
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda", torch.cuda.current_device()))
        say(f"CUDA device: {torch.cuda.get_device_name()}")
    else:
        say("CUDA device: none; what runs there was proven without one (docs/kernels.md)")
    return all([_examine(device, say, speed) for device in devices])


def _examine(device: torch.device, say: Callable[..., None], speed: bool) -> bool:
    bodies, healthy = backends.bodies(device.type), True
    large, rows = ((256, 3, 224, 224), 65536) if device.type == "cuda" else ((64, 3, 160, 160), 8192)
    say()
    copy = _copy_speed(device, large) if speed else math.nan
    if speed:
        say(f"a copy of {'x'.join(map(str, large))} floats on {device}: {copy:.1f} GB/s; plain torch is not timed")
    say(f"{'operator':<28} {'body':<10} {'difference':>10} {'allowed':>8} {'GB/s':>8} {'of copy':>8}")
    timed = iter(_cases(device, large, 1000, rows)) if speed and set(bodies.values()) != {"reference"} else None
    for check in _cases(device, (64, 3, 33, 31), 100, 64):
        body = bodies[check.name]
        difference = _difference(check, body)
        good = difference <= check.allowed
        healthy &= good
        rate = math.nan if timed is None else _speed(next(timed), body, device)
        measured = f"{'-':>8} {'-':>8}" if timed is None else f"{rate:>8.2f} {rate / copy:>8.0%}"
        say(
            f"{check.label:<28} {body:<10} {difference:>10.3g} {check.allowed:>8.1g} {measured}"
            f"   {'ok' if good else 'FAILED'}"
        )
    verdict = "every operator agrees with the reference" if healthy else "some operator DISAGREES with the reference"
    say(f"{verdict} on {device}")
    return healthy
