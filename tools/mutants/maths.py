"""The maths under the row bodies, held to what tests/test_cpu_maths.py holds it to, on fewer numbers."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastsal import reference

Problem = Callable[[ctypes.CDLL], str | None]


def maths_checks() -> Iterator[tuple[str, Problem]]:
    for label, function, values, allowed in _accuracies():
        yield label, _within(function, values, allowed)
    for dtype, function in ((torch.float32, "exp_f32"), (torch.float64, "exp_f64")):
        ends = torch.tensor([0.0, -0.0, -math.inf, -1e30, math.nan], dtype=dtype)
        yield f"ends of {function}", _same(function, ends, torch.tensor([1, 1, 0, 0, math.nan], dtype=dtype))
    ends = torch.tensor([1.0, math.inf, math.nan], dtype=torch.float64)
    yield "ends of log", _same("log_f64", ends, torch.tensor([0, math.inf, math.nan], dtype=torch.float64))
    for half, name in ((torch.float16, "float16"), (torch.bfloat16, "bfloat16")):
        every = torch.arange(-(2**15), 2**15).to(torch.int16).view(half)
        yield f"widening {name}", _same(f"from_{name}", every, every.float())
        finite = every[every.isfinite()].float().sort().values
        middle = (finite[1:].double() + finite[:-1].double()).div(2).float()
        around = [middle.nextafter(torch.full_like(middle, side)) for side in (-math.inf, math.inf)]
        patterns = torch.linspace(-(2.0**31), 2.0**31 - 1, 50_003, dtype=torch.float64).to(torch.int32)
        extremes = torch.tensor([math.inf, -math.inf, 0.0, -0.0, math.nan])
        first_infinite = {"float16": 0x477FF000, "bfloat16": 0x7F7F8000}[name]
        ends = torch.tensor([first_infinite, first_infinite - 1, first_infinite + 1, 0x7F800001, 0x7FFFFFFF])
        ends = ends.to(torch.int32).view(torch.float32)
        values = torch.cat((middle, *around, patterns.view(torch.float32), extremes, ends))
        yield f"narrowing {name}", _same(f"to_{name}", values, values.to(half))
    for function in ("words_of", "block_of"):
        for seed, sample, block in itertools.product((0, -1, 0x123456789ABCDEF), (0, 2**40 + 7), (0, 2**33 - 9, -20)):
            yield f"{function} block {block} of sample {sample}", _words(function, seed, sample, block)


def _words(function: str, seed: int, sample: int, block: int) -> Problem:
    count = 37
    expected = reference.philox(torch.tensor(seed), torch.arange(block, block + count), torch.tensor([sample]))[0]

    def problem(library: ctypes.CDLL) -> str | None:
        out = torch.empty(count, 4, dtype=torch.int32)
        numbers = [ctypes.c_uint64(value % 2**64) for value in (seed, sample, block)]
        getattr(library, function)(*numbers, ctypes.c_int64(count), ctypes.c_void_p(out.data_ptr()))
        return None if torch.equal(out.long() & reference.MASK32, expected) else f"{function}: wrong words"

    return problem


def _accuracies() -> Iterator[tuple[str, str, Tensor, float]]:
    """Label, function, arguments, and how many units in the last place it may be off (the turn: absolute)."""
    floats = torch.linspace(0, torch.tensor(110.0).view(torch.int32).item(), 40_000, dtype=torch.float64)
    magnitudes = floats.to(torch.int32).view(torch.float32)
    yield "exp of floats", "worst_exp_f32", -torch.cat((magnitudes, torch.linspace(0, 105, 40_001))), 2
    doubles = torch.linspace(0, torch.tensor(760.0).double().view(torch.int64).item(), 20_000, dtype=torch.float64)
    dense = torch.linspace(0, 750, 40_001, dtype=torch.float64)
    yield "exp of doubles", "worst_exp_f64", -torch.cat((doubles.to(torch.int64).view(torch.float64), dense)), 2
    info = torch.finfo(torch.float64)
    least, most = torch.tensor([info.tiny, info.max], dtype=torch.float64).view(torch.int64).tolist()
    patterns = torch.linspace(least, most, 20_000, dtype=torch.float64).to(torch.int64).view(torch.float64)
    patterns = patterns[(patterns >= info.tiny) & patterns.isfinite()]
    sums = 1 + torch.linspace(0, 1, 20_001, dtype=torch.float64).pow(4) * 99_999
    near = 1 + torch.linspace(-1, 1, 20_001, dtype=torch.float64).pow(5)[1:-1] * 0.5
    yield "log", "worst_log_f64", torch.cat((patterns, sums, near)), 2
    u = (torch.arange(0, 2**23, 311, dtype=torch.float64) + 0.5) * 2.0**-23
    u = torch.cat((u, torch.arange(9, dtype=torch.float64) / 8))
    yield "turn", "farthest_turn", u, 2 * torch.finfo(torch.float64).eps


def _within(function: str, values: Tensor, allowed: float) -> Problem:
    def problem(library: ctypes.CDLL) -> str | None:
        worst = getattr(library, function)(ctypes.c_void_p(values.data_ptr()), ctypes.c_int64(values.numel()))
        return None if worst < allowed else f"{function}: {worst}, allowed {allowed}"

    return problem


def _same(function: str, values: Tensor, expected: Tensor) -> Problem:
    """Equal bits, but that one NaN is as good as another."""

    def problem(library: ctypes.CDLL) -> str | None:
        out = torch.empty_like(expected)
        pointers = (ctypes.c_void_p(values.data_ptr()), ctypes.c_void_p(out.data_ptr()))
        getattr(library, function)(*pointers, ctypes.c_int64(values.numel()))
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[out.element_size()]
        same = (out.view(integer) == expected.view(integer)) | (out.isnan() & expected.isnan())
        return None if same.all() else f"{function}: {int((~same).sum())} wrong"

    return problem
