"""``fastsal doctor``: versions, device, the body each operator runs on, each checked against the reference here."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from typing import Any, TextIO

import torch
from torch import Tensor

from fastsal import backends
from fastsal.operators import OPERATORS
from fastsal.version import __version__

Case = tuple[str, tuple[Any, ...], float]


def _cases(device: torch.device) -> Iterator[Case]:
    """Operator, arguments, and the difference allowed from the reference (0: bit for bit)."""
    dice = torch.Generator().manual_seed(0)

    def on(tensor: Tensor) -> Tensor:
        return tensor.to(device)

    x = on(torch.rand(64, 3, 33, 31, generator=dice))
    x_adv = on((x.cpu() + 0.02 * torch.randn(x.shape, generator=dice)).clamp(0, 1))
    grad = on(torch.randn(x.shape, generator=dice))
    eps, alpha = on(torch.full((1,), 0.03)), on(torch.full((1,), 0.007))
    low, high = on(torch.zeros(1)), on(torch.ones(1))
    seed = on(torch.tensor(2205))
    rows, ids = on(torch.randperm(64, generator=dice)[:40]), on(torch.randperm(64, generator=dice)[:40])
    logits = on(5 * torch.randn(64, 100, generator=dice))
    target = on(torch.randint(0, 100, (64,), generator=dice))
    over = on(torch.rand(64, generator=dice) < 0.5)
    yield "random_start", (x, eps, seed, None, low, high, None, math.inf), 0.0
    yield "random_start", (x, eps, seed, None, low, high, None, 2.0), 1e-6
    yield "pgd_step", (x, x_adv, grad, eps, alpha, low, high, rows, ids, math.inf), 0.0
    yield "pgd_step", (x, x_adv, grad, eps, alpha, low, high, rows, ids, 2.0), 1e-6
    yield "truncated_cross_entropy", (logits, target, None, math.log(2)), 1e-5
    yield "margin_loss", (logits, target, None, None), 0.0
    result, stop = torch.zeros_like(x), torch.zeros(64, dtype=torch.int64, device=device)
    yield "retire", (x, x_adv, None, over, None, None, result, stop, 1, False), 0.0


def _difference(name: str, arguments: tuple[Any, ...], body: str) -> float:
    """Largest difference of any output, or mutated argument, of a body from the reference."""
    operator = OPERATORS[name]
    results = []
    for kind in (body, "reference"):
        copies = [value.clone() if isinstance(value, Tensor) else value for value in arguments]
        outputs = backends.implementation(operator, backends.body_of(name, kind), check_values=True)(*copies)
        mutated = [copies[i] for i, text in enumerate(operator.arguments.split(", ")) if "!)" in text]
        results.append([*(outputs if isinstance(outputs, tuple) else (outputs,)), *mutated])
    return max(_farthest(a.double(), b.double()) for a, b in zip(*results, strict=True))


def _farthest(a: Tensor, b: Tensor) -> float:
    """Largest difference of two tensors; infinite where a NaN stands in one of them only, or the shapes differ."""
    if a.shape != b.shape:
        return math.inf
    same = (a == b) | (a.isnan() & b.isnan())
    return float((a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(same, 0.0).max())


def examine(out: TextIO) -> bool:
    """Prints what runs where and checks it; returns whether every check passed."""

    def say(text: str = "") -> None:
        print(text, file=out)

    say(f"fastsal {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}")
    say(f"processor: {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads")
    if backends.EXTENSION is None:
        say(f"C++ extension: not there ({backends.EXTENSION_MISSING}); operators run as plain torch")
    else:
        say(f"C++ extension: built, CPU instruction set {backends.EXTENSION.cpu_tier()} (FASTSAL_CPU_TIER forces one)")
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
        say(f"CUDA device: {torch.cuda.get_device_name()}; operators run there as plain torch in this version")
    else:
        say("CUDA device: none")
    healthy = True
    for device in devices:
        bodies = backends.bodies(device.type)
        say(f"\n{'operator on ' + str(device):<32} {'body':<10} {'largest difference':>18}   allowed")
        for name, arguments, allowed in _cases(device):
            difference = _difference(name, arguments, bodies[name])
            good = difference <= allowed
            healthy &= good
            norm = {math.inf: " Linf", 2.0: " L2"}.get(arguments[-1], "") if name != "retire" else ""
            verdict = "ok" if good else "FAILED"
            say(f"{name + norm:<32} {bodies[name]:<10} {difference:>18.3g}   {allowed:<8g} {verdict}")
    say("\nevery operator agrees with the reference" if healthy else "\nsome operator DISAGREES with the reference")
    return healthy
