"""In which precision the model of an attack runs: what was asked for, or what this hardware is faster at."""

from __future__ import annotations

import functools
import statistics
import time
from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS = ("auto", "fp32", "bf16")
WORTH = 1.3  # times as fast as fp32: native bf16 is 2 to 4 times as fast, emulated bf16 slower


def precision_of(precision: object) -> str:
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    return str(precision)


def inside_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """In the precision of the model itself, whatever autocast is around."""
    return torch.autocast(device, enabled=False) if inside_autocast(device) else nullcontext()


@functools.cache
def bf16_pays(device: str) -> tuple[bool, str]:
    """Whether matrix products in bf16 are worth it on this kind of device, and how that is known."""
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return native, f"this GPU has {'' if native else 'no '}bf16 of its own"
    if device != "cpu":
        return False, f"not known for {device}"
    ratio = _measured()
    return ratio >= WORTH, f"matrix products in bf16 run {ratio:.2f} times as fast as in fp32 here"


def _measured(rounds: int = 5) -> float:
    """The speed of matrix products in bf16 over that in fp32.

    Smaller products first: where bf16 is emulated they show it in a tenth of a second, and large ones would take a
    second. No smaller than 256 rows: at 64, tiles of bf16 (AMX) take longer than fp32 does.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        ratio = _ratio(256, 3)
        return ratio if ratio < 0.5 else _ratio(384, rounds)


def _ratio(size: int, rounds: int) -> float:
    """The median over rounds, in each of which both multiply a matrix by itself."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(size, size, generator=generator, device="cpu")
    operands = {dtype: matrix.to(dtype) for dtype in (torch.float32, torch.bfloat16)}
    for operand in operands.values():
        operand @ operand  # the first product chooses and compiles its kernel
    ratios = []
    for _ in range(rounds):
        seconds = {}
        for dtype, operand in operands.items():
            begin = time.perf_counter()
            operand @ operand
            seconds[dtype] = time.perf_counter() - begin
        ratios.append(seconds[torch.float32] / seconds[torch.bfloat16])
    return statistics.median(ratios)
