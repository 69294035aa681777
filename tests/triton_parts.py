"""Device functions of the Triton kernels by themselves, interpreted, against the oracles of row_parts.py and more.

    for label, problem in checks():
        assert (wrong := problem("fastsal.kernels")) is None, f"{label}: {wrong}"

TRITON_INTERPRET=1 has to be set before triton is imported; a check takes the name of the package of the kernels. As a
program it prints how many checks were made and what was wrong.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import row_parts
import torch
import triton
import triton.language as tl
from kernel_cases import Case, answer, cases, disagreement, run_reference
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from fastsal import reference
from fastsal.operators import OPERATORS

Problem = Callable[[str], "str | None"]  # given the name of the package
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
INF, NAN = math.inf, math.nan
DTYPES = {F32: tl.float32, F64: tl.float64, BF16: tl.bfloat16, F16: tl.float16}
# The checks of row_parts.py that hold here too, by their beginnings.
SHARED = ("directed sums", "sums towards", "ball and box", "radii")


@triton.jit
def each(function: tl.constexpr, inputs, outputs, count, BLOCK: tl.constexpr):
    """function(elements of the inputs) into the outputs; interpreted, it may be any Python function."""
    at = tl.arange(0, BLOCK)
    inside = at < count
    made = function(*(tl.load(values + at, mask=inside, other=0) for values in inputs))
    for place, value in zip(outputs, made if len(outputs) > 1 else (made,), strict=True):
        tl.store(place + at, value, mask=inside)


def mapped(function: Callable[..., Any], inputs: Sequence[Tensor], *dtypes: torch.dtype) -> list[Tensor]:
    """What a device function makes of vectors: a vector of each dtype."""
    count = len(inputs[0])
    outputs = [torch.full((count,), 77, dtype=dtype) for dtype in dtypes]
    each[(1,)](function, tuple(inputs), tuple(outputs), count, BLOCK=triton.next_power_of_2(count))
    return outputs


def checks() -> Iterator[tuple[str, Problem]]:
    for label, problem in row_parts.checks():
        if label.startswith(SHARED):
            yield label, _as_library(problem)
    for dtype in (F32, F64):
        yield f"exp {dtype}", _exp(dtype)
    yield "log", _log
    yield "reciprocal and root", _reciprocal_and_root
    yield "turn", _turn
    yield "narrowing", _narrowing
    yield "widening", _widening
    yield "words", _words()
    yield "noise", _noise
    yield "order of a row", _orders
    yield "bounds", _bounds
    yield "indices", _indices
    yield "tiles and warps", _sizes
    yield "sizes of blocks", _blocks
    yield "tiles of logits", _tiles
    yield "shapes", _shapes
    yield "counters", _counters
    yield "flags of rows", _flags
    yield "launches", _launches()
    yield "rows of no elements", _empty
    yield "rows beyond 32 bits", _wide
    yield "counters beyond 32 bits", _wide_counters
    yield "channels beyond 32 bits", _wide_channels
    yield "order of logits", _order_keys
    yield "leaders in one lane", _leaders
    yield "rows behind the last", _behind
    yield "a NaN in a lane", _nan_in_a_lane
    yield "probes for a shrinkage", _probes
    yield "elements of an L1 step", _l1_elements
    yield "rows of one magnitude", _one_magnitude
    yield "L1 steps of long rows", _long_l1
    yield "norms in a unit", _norms
    yield "norms of parts", _joined_norms
    yield "scales", _scales


def _module(package: str, name: str) -> Any:
    return importlib.import_module(f"{package}.{name}")


# ------------------------------------------------------------------------------------ as a C++ library


def _as_library(problem: row_parts.Problem) -> Problem:
    """A check of the compiled rows, of functions by the same names that take the same arguments."""

    def of_package(package: str) -> str | None:
        rounding = _module(package, "rounding")
        library = SimpleNamespace()
        for dtype, name in row_parts.NAMES.items():
            directed = lambda a, b: (rounding.round_down_sum(a, b), rounding.round_up_sum(a, b))  # noqa: E731
            inside = lambda v, clean, low, high, eps: rounding.into_ball_and_box(v, clean, eps, low, high)  # noqa: E731
            for function, label, inputs, outputs in (
                (directed, "directed", [dtype] * 2, [dtype] * 2),
                (rounding.add_towards, "towards", [dtype, F64], [dtype]),
                (inside, "inside", [dtype] * 5, [dtype]),
                (rounding.inner_radius, "radii", [dtype], [F64]),
            ):
                setattr(library, f"{label}_{name}", _taking_pointers(function, inputs, outputs))
        return problem(library)  # type: ignore[arg-type]

    return of_package


def _taking_pointers(function: Any, inputs: list[torch.dtype], outputs: list[torch.dtype]) -> Callable[..., int]:
    def called(*arguments: Any) -> int:
        *pointers, count = (argument.value for argument in arguments)
        tensors = [
            torch.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(pointer), dtype=dtype)
            for pointer, dtype in zip(pointers, [*inputs, *outputs], strict=True)
        ]
        made = mapped(function, tensors[: len(inputs)], *outputs)
        for place, value in zip(tensors[len(inputs) :], made, strict=True):
            place.copy_(value)
        return 0

    return called


# --------------------------------------------------------------------------------------------- maths


def _off(got: Tensor, exact: Any) -> float:
    """The largest distance in units in the last place of `exact`, subnormals included; NaN is infinitely far."""
    info = np.finfo(got.numpy().dtype)
    digits = info.nmant + 1
    exponents = np.maximum(np.frexp(exact)[1], info.minexp + 1) - digits
    distance = np.ldexp(np.abs(got.numpy().astype(np.longdouble) - exact), -exponents)
    return float(np.where(np.isnan(distance), np.inf, distance).max())


def _exp(dtype: torch.dtype) -> Problem:
    last, integer = (110.0, torch.int32) if dtype == F32 else (760.0, torch.int64)
    patterns = torch.linspace(0, torch.tensor(last, dtype=dtype).view(integer).item(), 4000, dtype=F64).to(integer)
    values = -torch.cat((patterns.view(dtype), torch.linspace(0, last, 8001, dtype=dtype)))
    exact = np.exp(values.numpy().astype(np.longdouble))
    ends = torch.tensor([0.0, -0.0, -INF, -1e30, NAN], dtype=dtype)

    def problem(package: str) -> str | None:
        exp = _module(package, "maths").exp_nonpositive
        off = _off(mapped(exp, [values], dtype)[0], exact)
        at_ends = mapped(exp, [ends], dtype)[0]
        if at_ends[:4].tolist() != [1, 1, 0, 0] or not at_ends[4].isnan():
            return f"at the ends {at_ends.tolist()}"
        return f"{off} units in the last place" if off >= 2 else None

    return problem


def _log(package: str) -> str | None:
    """All magnitudes, the neighbourhood of 1, and every 1,009th of the numbers that noise takes the log of: to 4 units
    in the last place, of which the reciprocal in it has 2."""
    info, log = torch.finfo(F64), _module(package, "maths").log_positive
    uniforms = (torch.arange(0, 2**23, 1009, dtype=F64) + 0.5) * 2.0**-23
    near = 1 + torch.linspace(-1, 1, 4001, dtype=F64).pow(5)[1:-1] * 0.5
    magnitudes = 2 ** torch.linspace(-126, 127, 3001, dtype=F64)
    values = torch.cat((torch.tensor([info.tiny, 1.0, info.max], dtype=F64), magnitudes, near, uniforms))
    off = _off(mapped(log, [values], F64)[0], np.log(values.numpy().astype(np.longdouble)))
    ends = mapped(log, [torch.tensor([1.0, INF, NAN], dtype=F64)], F64)[0]
    if ends[:2].tolist() != [0, INF] or not ends[2].isnan():
        return f"at the ends {ends.tolist()}"
    return f"{off} units in the last place" if off >= 4 else None


def _reciprocal_and_root(package: str) -> str | None:
    """Of fp64 numbers within the range of fp32, to 2 and to 3 units in the last place."""
    maths = _module(package, "maths")
    values = 2 ** torch.linspace(-120, 120, 4001, dtype=F64)
    wide = values.numpy().astype(np.longdouble)
    for function, exact, allowed in ((maths.reciprocal, 1 / wide, 2), (maths.root, np.sqrt(wide), 3)):
        off = _off(mapped(function, [values], F64)[0], exact)
        if off > allowed:
            return f"{function.__name__}: {off} units in the last place"
    return None


def _turn(package: str) -> str | None:
    u = torch.cat(((torch.arange(0, 2**23, 2003, dtype=F64) + 0.5) * 2.0**-23, torch.arange(9, dtype=F64) / 8))
    sine, cosine = mapped(_module(package, "maths").turn, [u], F64, F64)
    angle = 2 * np.longdouble("3.141592653589793238462643383279502884") * u.numpy().astype(np.longdouble)
    off = max(np.abs(sine.numpy() - np.sin(angle)).max(), np.abs(cosine.numpy() - np.cos(angle)).max())
    return None if off < 2 * torch.finfo(F64).eps else f"{off} away"


# --------------------------------------------------------------------------------------- 16-bit floats


def _bits_differ(mine: Tensor, theirs: Tensor) -> Tensor:
    """Which bits differ, but that one NaN is as good as another."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[mine.element_size()]
    return (mine.view(integer) != theirs.view(integer)) & ~(mine.isnan() & theirs.isnan())


def _narrowing(package: str) -> str | None:
    """Halfway between neighbours of bf16 and beside it, floats of every magnitude and NaNs of every kind."""
    finite = torch.arange(0, 0x7F80, 7).to(torch.int16).view(BF16).float()
    middle = (finite[1:].double() + finite[:-1].double()).div(2).float()
    around = [middle.nextafter(torch.full_like(middle, side)) for side in (-INF, INF)]
    # between neighbours, on both sides of even ones, and where infinity begins
    bits = torch.tensor([0x3F808000, 0x3F818000, 0x3F808001, 0x3F817FFF, 0x7F7F8000, 0x7F7F7FFF])
    nan = torch.tensor([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0x7FBFFFFF])
    special = torch.cat((bits, nan)).to(torch.int32).view(F32)
    patterns = torch.linspace(-(2.0**31), 2.0**31 - 1, 3001, dtype=F64).to(torch.int32).view(F32)
    values = torch.cat((middle, *around, special, -special, patterns, torch.tensor([INF, -INF, 0.0, -0.0])))
    narrow = _module(package, "rounding").narrow
    for dtype in (BF16, F32):
        got = mapped(lambda v, dtype=dtype: narrow(v, DTYPES[dtype]), [values], dtype)[0]
        wrong = _bits_differ(got, values.to(dtype))
        if wrong.any():
            return f"{int(wrong.sum())} wrong in {dtype}, first {values[wrong][0].item()}"
    return None


def _widening(package: str) -> str | None:
    for dtype in (BF16, F16):
        every = torch.arange(-(2**15), 2**15, 3).to(torch.int16).view(dtype)
        wrong = _bits_differ(mapped(_module(package, "rounding").wide, [every], F32)[0], every.float())
        if wrong.any():
            return f"{int(wrong.sum())} of {dtype} wrong, first {every[wrong][0].item()}"
    return None


# --------------------------------------------------------------------------------------------- noise


def _words() -> Problem:
    """The words of Philox for seeds, samples and counters of every magnitude."""
    extremes = (0, 1, 2**31, 2**32 - 1, 2**32 + 5, 2**63 - 1, -(2**63), -1)
    keys = torch.tensor(list(itertools.product(extremes, repeat=3))[::3])
    expected = torch.stack([reference.philox(seed, block[None], sample[None])[0, 0] for seed, sample, block in keys])

    def problem(package: str) -> str | None:
        philox = _module(package, "noise").philox
        words = mapped(
            lambda *key: tuple(word.to(tl.int64) for word in philox(*key)),
            list(keys.T.contiguous()),
            *[torch.int64] * 4,
        )
        return None if torch.equal(torch.stack(words, 1), expected) else "words of Philox"

    return problem


def _noise(package: str) -> str | None:
    """Words from the lowest to the highest: the uniforms exactly, what is made of them closely."""
    noise = _module(package, "noise")
    words = torch.tensor([0, 1, 2, 511, 512, 513, 2**31 - 1, 2**31, 2**32 - 512, 2**32 - 1])
    words = torch.cat((words, torch.linspace(0, 2**32 - 1, 500, dtype=F64).long()))
    exact = ((words >> 9).double() + 0.5) * 2.0**-23
    for dtype in (F32, F64):
        got = mapped(lambda w, dtype=dtype: noise.uniform(w.to(tl.uint32), DTYPES[dtype]), [words], dtype)[0]
        if not torch.equal(got.double(), exact):
            return f"uniform in {dtype}"
    other = words.flip(0)
    length, angle = (-2 * exact.log()).sqrt(), 2 * math.pi * exact.flip(0)
    pair = mapped(lambda a, b: noise.normal_pair(a.to(tl.uint32), b.to(tl.uint32)), [words, other], F64, F64)
    for got, expected in zip(pair, (length * angle.cos(), length * angle.sin()), strict=True):
        if not torch.allclose(got, expected, rtol=0, atol=1e-14):
            return "pairs of normals"
    signed = torch.where(words % 2 == 1, exact.log(), -exact.log())
    if not torch.allclose(mapped(lambda w: noise.signed_exponential(w.to(tl.uint32)), [words], F64)[0], signed, 1e-14):
        return "signed exponentials"
    four = [torch.arange(9) + 100 * k for k in range(4)]
    index = torch.arange(9)
    if mapped(noise.one_of_four, [index, *four], torch.int64)[0].tolist() != [int(four[i % 4][i]) for i in range(9)]:
        return "one of four"
    return None


# ---------------------------------------------------------------------------------------------- rows


def _orders(package: str) -> str | None:
    rows = _module(package, "rows")
    for channels, places, last in itertools.product((1, 3, 7), (1, 5, 2**33 + 1), (False, True)):
        size = channels * places
        at = torch.tensor(sorted({0, 1 % size, 2 % size, size // 3, size // 2, size - 1}))
        shape = [torch.full_like(at, channels), torch.full_like(at, places)]
        index, channel = (
            mapped(lambda *v, f=f, last=last: f(*v, last), [at, *shape], torch.int64)[0].tolist()
            for f in (rows.logical_index, rows.channel_of)
        )
        of = [i % channels if last else i // places for i in at.tolist()]
        if channel != of:
            return f"{channels} channels of {places}, last: {last}: channels {channel}"
        if index != ([i % channels * places + i // channels for i in at.tolist()] if last else at.tolist()):
            return f"{channels} channels of {places}, last: {last}: {index}"
    return None


def _bounds(package: str) -> str | None:
    """One for all, one for each channel, infinite, or none: the largest finite number stands for it."""
    rows = _module(package, "rows")
    for dtype, each_channel in itertools.product((F32, F64), (False, True)):
        most = torch.finfo(dtype).max
        for bounds in ([0.25, -0.5, INF], [-INF, 1.0, 0.0], [INF, -INF, most]):
            pointer = torch.tensor(bounds, dtype=dtype)
            channel = torch.tensor([2, 0, 1, 0])
            of = pointer[channel] if each_channel else pointer[:1].expand(4)
            for function, expected in (
                (rows.lower_bound, of.clamp(min=-most)),
                (rows.upper_bound, of.clamp(max=most)),
            ):
                got = torch.zeros(4, dtype=dtype)
                bounded[(1,)](function, pointer, channel, got, each_channel, DTYPES[dtype])
                if not torch.equal(got, expected):
                    return f"{function.__name__} of {bounds}: {got.tolist()}"
        got = torch.zeros(4, dtype=dtype)
        for function, expected in ((rows.lower_bound, -most), (rows.upper_bound, most)):
            bounded[(1,)](function, None, torch.arange(4), got, each_channel, DTYPES[dtype])
            if got.tolist() != [expected] * 4:
                return f"{function.__name__} without a bound: {got.tolist()}"
    return None


@triton.jit
def bounded(function: tl.constexpr, bound, channel, out, EACH: tl.constexpr, T: tl.constexpr):
    at = tl.arange(0, 4)
    tl.store(out + at, function(bound, tl.load(channel + at), at < 4, EACH, T))


def _indices(package: str) -> str | None:
    rows = _module(package, "rows")
    index = torch.tensor([-(2**63), -(2**62), -2, -1, 0, 1, 6, 7, 8, 2**32, 2**62])
    got = mapped(lambda i: rows.in_range(i, 7), [index], torch.int64)[0].tolist()
    if got != [i if 0 <= i < 7 else -1 for i in index.tolist()]:
        return f"in range: {got}"
    first, real = torch.tensor([0, 8, 16, 24, 0]), torch.tensor([True, True, True, True, False])
    if mapped(lambda n: rows.rows_of(n, True), [index[-2:]], torch.int64)[0].tolist() != index[-2:].tolist():
        return "multiples of 8"
    size = torch.full_like(first, 19)
    got = mapped(lambda n, f, r: rows.elements_left(n, f, r, 8), [size, first, real], torch.int32)[0].tolist()
    return None if got == [8, 8, 3, -5, 0] else f"elements left: {got}"


@contextlib.contextmanager
def _device(backend: str, arch: Any, threads: int) -> Iterator[None]:
    """As if there were such a device, with so many threads in a warp."""
    target = SimpleNamespace(backend=backend, arch=arch, warp_size=threads)
    driver = SimpleNamespace(active=SimpleNamespace(get_current_target=lambda: target))
    with mock.patch.object(triton.runtime, "driver", driver), triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = False
        yield


def _sizes(package: str) -> str | None:
    """Blocks and warps, on devices that the interpreter is not: NVIDIA's of 32 threads and AMD's of 64."""
    rows = _module(package, "rows")
    tiles = {size: rows.tile(size, 16, 256) for size in (0, 1, 16, 17, 255, 256, 257)}
    if tiles != {0: 16, 1: 16, 16: 16, 17: 32, 255: 256, 256: 256, 257: 256}:
        return f"tiles: {tiles}"
    found = []
    for backend, arch, threads in (("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 120, 32), ("hip", "gfx942", 64)):
        with _device(backend, arch, threads):
            most = 1024 // (threads * 8)
            warps = [rows.warps(*of) for of in ((1024, 8), (16, 8), (2**20, 8), (2**20, 8, 2))]
            if warps != [most, 1, 16, 2]:
                return f"warps of {threads} threads: {warps}"
            found.append(rows.at_most(40))
    if found != [{"maxnreg": 40}] * 3 + [{}]:
        return f"limits on registers: {found}"
    if (rows.at_most(40), rows.warps(2**20, 8)) != ({}, 1):
        return "the interpreter has neither registers nor warps"
    return None


def _tiles(package: str) -> str | None:
    """(rows, columns, warps, registers) of tiles where 4,096 classes fit on chip, in chunks of 2,048 otherwise."""
    expected = {
        (F32, 2): (32, 16, 4, 0),
        (F32, 17): (16, 32, 4, 0),
        (F32, 256): (2, 256, 4, 0),
        (F32, 257): (1, 512, 2, 0),
        (F32, 2000): (1, 2048, 8, 0),
        (F32, 4096): (1, 4096, 16, 0),
        (F64, 4096): (1, 4096, 16, 0),
        (F32, 4097): (1, 2048, 16, 40),
        (BF16, 4097): (1, 2048, 16, 40),
        (F64, 4097): (1, 1024, 16, 40),
    }
    for (dtype, classes), wanted in expected.items():
        with _device("cuda", 90, 32):
            tile = _module(package, "logits").tile_of(torch.zeros(3, classes, dtype=dtype), 4096, 2048)
        found = (tile["ROWS"], tile["COLUMNS"], tile["num_warps"], tile.get("maxnreg", 0))
        if found != wanted or len(tile) != 3 + (classes > 4096):
            return f"{classes} classes in {dtype}: {tile}"
    return None


def _order_keys(package: str) -> str | None:
    """Keys rise with the logits; those of both zeros are one, and so are those of all NaNs, above the rest."""
    for dtype, integer in ((F32, torch.int32), (F64, torch.int64)):
        info = torch.finfo(dtype)
        numbers = torch.tensor([-2.0, -1.5, -1.0, 1.0, 1.5, 2.0], dtype=dtype)
        neighbours = [numbers.nextafter(torch.full_like(numbers, side)) for side in (-INF, INF)]
        rest = torch.tensor([-INF, info.min, -info.tiny, 0.0, info.tiny, info.max, INF, NAN], dtype=dtype)
        rising = torch.cat((numbers, *neighbours, rest)).sort()[0]
        values = torch.cat((rising, -rising[rising == 0], -rising[-1:]))
        keys = mapped(_module(package, "margin_loss").order_key, [values], integer)[0].tolist()
        if keys[:-2] != sorted(set(keys)) or keys[-2:] != [keys[rising.tolist().index(0)], keys[-3]]:
            return f"keys in {dtype}: {keys}"
    return None


def _leaders(package: str) -> str | None:
    """The four largest logits of a row in one lane or shared by two, rising or falling; the label among them or not.
    And four equal ones in one lane, each moved back by the last."""
    margin = _module(package, "margin_loss")
    logits = torch.arange(33).float().repeat(17, 1)
    for row, lanes in enumerate(itertools.product((0, 1), repeat=4)):
        columns = [lane + 8 * (rank if row % 3 else 3 - rank) for rank, lane in enumerate(lanes)]
        logits[row, columns] = torch.tensor([903.0, 902, 901, 900])
    logits[16, :32:8], logits[16, 32] = 900, 903
    target = torch.arange(17) * 7 % 33
    with mock.patch.object(margin, "ON_CHIP", 8):
        for dlr, other in ((False, None), (True, None), (True, target.roll(1))):
            args = (logits, target, other, None, dlr)
            case = Case("margin_loss", f"DLR: {dlr}, targeted: {other is not None}", args, 0)
            if (problem := disagreement(case, answer(case, margin.launch), run_reference(case))) is not None:
                return problem
    return None


def _behind(package: str) -> str | None:
    """A tile of more rows than there are writes nothing behind the last of them."""
    logits, target = torch.arange(15).float().view(3, 5), torch.tensor([0, 4, 2])
    for name, operands, flags in (
        ("truncated_cross_entropy", (logits, target, None, 0.7), 2),
        ("margin_loss", (logits, target, None, None, False), 0),
        ("kl_divergence", (logits, logits.flip(1), None, True), 0),
    ):
        rows = [
            torch.full((64,), 77.0),
            *[torch.full((64, 5), 77.0) for _ in range(2 if name == "kl_divergence" else 1)],
        ]
        rows += [torch.full((64,), 77, dtype=torch.int8) for _ in range(flags)]
        _module(package, name).launch(*operands, *[written[:3] for written in rows])
        if any((written[3:] != 77).any() or (written[:3] == 77).any() for written in rows):
            return name
    return None


def _nan_in_a_lane(package: str) -> str | None:
    """A NaN, and in the same lane a larger logit behind it, or in front; and the first class of a long row."""
    entropy = _module(package, "truncated_cross_entropy")
    logits = torch.arange(60).float().view(3, 20) / 8
    logits[0, [1, 9]], logits[1, [1, 9]], logits[2, 0] = torch.tensor([NAN, 9.0]), torch.tensor([9.0, NAN]), 8
    case = Case("truncated_cross_entropy", "a NaN", (logits, torch.tensor([9, 1, 0]), None, 0.7), 0)
    with mock.patch.multiple(entropy, ON_CHIP=8, CHUNK=8):
        return disagreement(case, answer(case, entropy.launch), run_reference(case))


# ------------------------------------------------------------------------------------- L1 and L2 steps


def _one_magnitude(package: str) -> str | None:
    """A row that fills its block with elements of one magnitude, of which the first move."""
    x, grad = torch.full((2, 128), 0.5), torch.ones(2, 128)
    grad[1, ::3] = -1
    one = torch.full((1,), 0.5)
    case = Case("pgd_step", "one magnitude", (x, x, grad, one, one, None, None, None, None, 1.0, 40), 0)
    return disagreement(case, answer(case, _module(package, "pgd_step").launch), run_reference(case))


def _long_l1(package: str) -> str | None:
    """Rows of three chunks: the largest slope first, a tie with the first and one with the second element, neighbouring
    slopes at the threshold, as many as move, fewer, an infinite one; each low or each high bound a channel's."""
    step, short, long = (_module(package, f"pgd_step{name}") for name in ("", "_l1", "_l1_long"))
    generator = torch.Generator().manual_seed(8)
    for dtype, topk, along, low, high in (  # steps that stay within the ball, and one that does not
        (F32, 1, 0.2, None, None),
        (F32, 5, 0.2, None, [0.5, 0.75, 1]),
        (F32, 5, 1.0, [0.5, 0.25, 0], None),
        (F64, 5, 1.0, None, [0.5, 0.75, 1]),
    ):
        grad = torch.randn(6, 3, 23, generator=generator).to(dtype)
        grad[0, 0, 0] = 9
        grad[1, 0, :] = grad[1].abs().max() + 1
        grad[2, 0, 1:] = -grad[2].abs().max() - 1
        grad[3, 1, 5:12] = 8
        grad[3, 1, 5:8] = grad[3, 1, 5:8].nextafter(grad[0, 0, :1])
        grad[4] = torch.where(torch.arange(69).view(3, 23) % 16 == 15, grad[4], 0)  # four slopes
        grad[5, 0, 0] = INF
        x = torch.full((6, 3, 23), 0.5, dtype=dtype)
        box = [None if edge is None else torch.tensor(edge, dtype=dtype) for edge in (low, high)]
        eps, alpha = (torch.tensor([number], dtype=dtype) for number in (0.25, along))
        case = Case("pgd_step", "a long row", (x, x, grad, eps, alpha, *box, None, None, 1.0, topk), 0)
        with mock.patch.object(short, "ON_CHIP", 32), mock.patch.object(long, "CHUNK", 32):
            problem = disagreement(case, answer(case, step.launch), run_reference(case))
        if problem is not None:
            return f"{dtype}, {topk} move by {along}, {low} to {high}: {problem}"
    return None


def _probes(package: str) -> str | None:
    """Newton's step, the chord, the middle or the float halfway in between: whichever is next, and inside."""
    generator = torch.Generator().manual_seed(6)
    below, width, masses = (torch.rand(400, dtype=F64, generator=generator) * size for size in (2, 1, 3))
    below[::7], width[::5] = 0, 0
    following = below.nextafter(torch.tensor(INF, dtype=F64))
    above = torch.where(width == 0, following, below + width)
    above[::10] = following[::10].nextafter(torch.tensor(INF, dtype=F64))  # two steps on
    limit = torch.where(torch.arange(400) % 11 == 0, 0.0, masses / 2)
    mass_above = torch.where(torch.arange(400) % 13 == 0, 0.0, limit * 0.75)
    falling = torch.randint(0, 9, (400,), generator=generator).double()
    passes = torch.randint(1, 70, (400,), dtype=torch.int32, generator=generator)
    passes[:40] = torch.arange(40, dtype=torch.int32) % 6 + 57
    # Newton's step just at either end of the bracket
    below[-2:], above[-2:], limit[-2:], falling[-2:], passes[-2:], mass_above[-2:] = 0.5, 1.5, 2.0**32, 2, 1, 0
    masses[-2:] = torch.tensor([2.0**32 - 1, 2.0**32 + 1], dtype=F64)
    state = [below, above, masses, mass_above, falling, limit, passes]
    expected = [_probe(*of) for of in zip(*(column.tolist() for column in state), strict=True)]
    got = mapped(_module(package, "pgd_step_l1").next_probe, state, F64)[0].tolist()
    wrong = [of for of, (mine, theirs) in enumerate(zip(got, expected, strict=True)) if mine != theirs]
    return f"{len(wrong)} wrong, first {[column[wrong[0]].item() for column in state]}" if wrong else None


def _probe(
    below: float, above: float, mass_below: float, mass_above: float, falling: float, limit: float, passes: int
) -> float:
    if limit == 0:
        return above
    aim = limit * (1 - 2.0**-32)
    newton = below + (mass_below - aim) / falling if falling else INF
    chord = below + (mass_below - aim) * ((above - below) / (mass_below - mass_above))
    probe = {0: below, 1: newton, 2: chord}[passes % 3]
    if not below < probe < above:
        probe = below + (above - below) / 2
    if below < probe < above and passes < 60:
        return probe
    least, most = torch.tensor([below, above], dtype=F64).view(torch.int64).tolist()
    halfway = torch.tensor(least + (most - least) // 2).view(F64).item()
    return halfway if most - least > 1 else above


def _l1_elements(package: str) -> str | None:
    l1 = _module(package, "pgd_step_l1")
    for dtype, integer, most in ((F32, torch.int32, 2**31 - 1), (F64, torch.int64, 2**63 - 1)):
        info = torch.finfo(dtype)
        values = torch.tensor([0.0, -0.0, info.smallest_normal, -1, 2, info.max, info.min, INF, -INF, NAN], dtype=dtype)
        values = torch.cat((values, values.neg()[-1:]))
        key, infinite = mapped(
            lambda v: (k := l1.magnitude_key(v), l1.is_infinite(k).to(tl.int32)), [values], integer, torch.int32
        )
        if not torch.equal(key, values.view(integer) & most) or infinite.tolist() != [0] * 7 + [1] * 4:
            return f"keys in {dtype}: {key.tolist()}, infinite {infinite.tolist()}"
    key, index = torch.tensor([4, 5, 5, 5, 6]), torch.tensor([0, 1, 2, 3, 9])
    moves = mapped(lambda k, i: l1.chosen(k, i, 5, 2).to(tl.int32), [key, index], torch.int32)[0].tolist()
    if moves != [0, 1, 1, 0, 1]:
        return f"chosen: {moves}"
    clean, delta = torch.tensor([0.25, 0.25, 0.25, 0.25, -1, 2]).double(), torch.tensor([1.0, -1, NAN, INF, -1, 1])
    edges = [torch.full((6,), -0.5).double(), torch.full((6,), 1.0).double()]
    rooms = mapped(l1.room_of, [clean, delta.double(), *edges], F64)[0].tolist()
    if rooms != [0.75, 0.75, 0.75, 0.75, 0, 0]:
        return f"rooms: {rooms}"
    magnitude, room = torch.tensor([3.0, 3, 1, 0.5, NAN, 2]).double(), torch.tensor([1.0, 2, 1, 1, 1, 0]).double()
    kept = mapped(lambda m, r: l1.kept_of(m, 1.0, r), [magnitude, room], F64)[0].tolist()
    falls = mapped(lambda m, r: l1.falls(m, 1.0, r).to(tl.int32), [magnitude, room], torch.int32)[0].tolist()
    if kept != [1, 2, 0, 0, 0, 0] or falls != [0, 1, 0, 0, 0, 0]:
        return f"kept {kept}, falls {falls}"
    here, up = torch.tensor([1.0, 1, 1, 1]).double(), torch.tensor([True, True, False, True])
    slope = torch.tensor([2.0, -2, 2, 5]).double()
    got = mapped(lambda h, s, m: l1.displacement(h * 0 + 0.5, h, s, m, 0.25), [here, slope, up], F64)[0].tolist()
    return None if got == [0.75, 0.25, 0.5, 0.75] else f"displacements: {got}"


def _norms(package: str) -> str | None:
    """The unit brings the largest element into [1, 2), as far as 2^1000 goes; and the squares are those of it."""
    l2 = _module(package, "pgd_step_l2")
    for largest in (1.0, 1.5, 2.0, 3e7, 2.0**-1000, 2.0**-1001, 2.0**1000, 2.0**1001, 1e-320, 1e308):
        values = torch.tensor([largest, -largest / 2, 0, largest / 4], dtype=F64)
        unit, squares = mapped(lambda v: tuple(a + v * 0 for a in l2.squares_of(v, True)), [values], F64, F64)
        power = min(max(1 - math.frexp(largest)[1], -1000), 1000)
        if largest < 2.0**-1022:
            power = 1000
        if unit[0] != power or squares[0] != sum((v * 2.0**power) ** 2 for v in values.tolist()):
            return f"{largest}: a unit of 2^{unit[0].item()}, squares of {squares[0].item()}"
    unit, squares = mapped(
        lambda v: tuple(a + v * 0 for a in l2.squares_of(v, False)), [torch.ones(4).double()], F64, F64
    )
    return None if (unit[0], squares[0]) == (0, 4) else "squares as they are"


@triton.jit
def joined(function: tl.constexpr, units, squares, unit, norm, segments, SAFE: tl.constexpr, PARTS: tl.constexpr):
    n, length = function(units, squares, tl.program_id(0), segments, SAFE, PARTS)
    tl.store(unit + tl.program_id(0), n)
    tl.store(norm + tl.program_id(0), length)


def _joined_norms(package: str) -> str | None:
    """Parts of a row in units of their own, more of them than are read at a time; and of a row of zeros."""
    join = _module(package, "pgd_step_l2").joined_norm
    zero, one, small = (1000, 0.0), (3, 1.0), (900, 4.0)
    for parts in (
        [one, zero, zero],
        [zero, zero, one],
        [zero, (1000, 2.0**-148), zero],
        [small, one, zero],
        [one, small, zero],
        [small, (898, 1.0), (899, 12.0)],
        [(-1000, 2.0**40), one, zero],
        [zero, one, (0, 4.0)],
        [zero, zero, zero],
    ):
        units = torch.tensor([n for n, _ in parts], dtype=torch.int32)
        squares = torch.tensor([square for _, square in parts], dtype=F64)
        least = min((n for n, square in parts if square), default=0)
        total = sum(square * 2.0 ** (2 * max(least - n, -500)) for n, square in parts)
        for safe, block in itertools.product((True, False), (2, 4)):
            # another row in front and behind, as a row that is read instead would show
            unit, norm = torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=F64)
            around = (torch.full_like(units, -1000), units, torch.full_like(units, -1000))
            beside = torch.full_like(squares, 9.0)
            joined[(3,)](join, torch.cat(around) if safe else None, torch.cat((beside, squares, beside)), unit, norm,
                         3, safe, block)  # fmt: skip
            expected = (least, math.sqrt(total)) if safe else (0, math.sqrt(float(squares.sum())))
            if norm[1] != expected[1] or (expected[1] and unit[1] != expected[0]) or abs(unit[1]) > 1000:
                return f"{parts}, {block} at a time: {norm[1].item()} in a unit of 2^{unit[1].item()}"
    return None


def _scales(package: str) -> str | None:
    l2 = _module(package, "pgd_step_l2")
    norms = torch.tensor([0.0, 1e-300, 0.5, 1, 2, 4, INF, NAN], dtype=F64)
    inverse = mapped(l2.inverse_of, [norms], F64)[0].tolist()
    if inverse != [0, 1 / 1e-300, 2, 1, 0.5, 0.25, 0, 0]:
        return f"inverses: {inverse}"
    inner = 1 - 2.0**-48

    def scaled(norm: Any) -> Any:
        return l2.scale_into_ball(tl.full((), 1.0, tl.float64), tl.full((), 1, tl.int32), norm)

    scale = mapped(scaled, [norms], F64)[0].tolist()
    expected = [1.0, 1, 1, 1, inner, inner / 2, 0, 0]
    return None if scale == expected else f"scales: {scale}"


def _counters(package: str) -> str | None:
    """Of one stream: kept, and replaced where they are too few. Of a capture, or of no device: new ones."""
    counters, stream, capturing = _module(package, "arrivals").counters, 7, False
    like = SimpleNamespace(is_cuda=True, device=torch.device("cpu"))
    with mock.patch.multiple(
        torch.cuda,
        is_current_stream_capturing=lambda: capturing,
        current_stream=lambda device: SimpleNamespace(cuda_stream=stream),
    ):
        first = counters(like, 5)
        again, just, more = counters(like, 6), counters(like, 1024), counters(like, 1025)
        if first is not again or first is not just or len(first) != 1024 or first.any():
            return "not the counters from before"
        if len(more) != 1025 or counters(like, 5) is not more:
            return f"{len(more)} counters for 1025 rows"
        stream = 8
        if counters(like, 5) is more:
            return "two streams share counters"
        capturing = True
        caught, host = counters(like, 5), counters(SimpleNamespace(is_cuda=False, device=like.device), 5)
        capturing = False
        if any(len(fresh) != 5 or fresh.any() for fresh in (caught, host)) or counters(like, 5) is caught:
            return "a capture, or no device, has counters of its own"
        _module(package, "arrivals")._COUNTERS.clear()
    return None


@triton.jit
def flagged(function: tl.constexpr, flags, counter, seen, programs, SPLIT: tl.constexpr):
    program = tl.program_id(0)
    function(flags, counter, program // programs, tl.load(seen + program), programs, SPLIT)


def _flags(package: str) -> str | None:
    """Whether any program of a row saw something; and no counter is left anything but zero, nor one beside it."""
    flag_row = _module(package, "arrivals").flag_row
    for programs, split in ((1, False), (1, True), (2, True), (3, True)):
        seen = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.int32)[:, :programs].contiguous()
        flags, counters = torch.full((6,), 7, dtype=torch.int8), torch.zeros(6, dtype=torch.int64)
        for _ in range(2):
            flags[1:5] = 7
            flagged[(seen.numel(),)](flag_row, flags[1:], counters[1:], seen, programs, split)
            if flags.tolist() != [7, *seen.amax(1).tolist(), 7] or counters.any():
                return f"{programs} programs, split: {split}: flags {flags.tolist()}, counters {counters.tolist()}"
    return None


EACH = {"EACH_EPS": "eps", "EACH_ALPHA": "alpha", "EACH_LOW": "clip_min", "EACH_HIGH": "clip_max"}


def _launches() -> Problem:
    """Every launch in whole powers of two of warps, each thread with few elements, and without fused multiply-adds, for
    starts and steps of rows of every length; and what it says of operands that hold one value for all."""
    calls = [case for name in OPERATORS for case in cases(name, "quick")]

    def problem(package: str) -> str | None:
        wrong: list[str] = []

        def launched(kernel: Any, grid: Any) -> Callable[..., None]:
            def check(*operands: Any, num_warps: int, enable_fp_fusion: bool, **how: Any) -> None:
                each = how.get("BLOCK", 0) or how["ROWS"] * how["COLUMNS"]
                few = each <= 32 * num_warps * 16 or num_warps == 16
                if enable_fp_fusion or num_warps.bit_count() != 1 or num_warps > 16 or not few:
                    wrong.append(f"{kernel.__name__}: {each} elements, {num_warps} warps, fused: {enable_fp_fusion}")
                if how.get("maxnreg", 40) not in (40, min(65536 // (32 * num_warps), 128)):
                    wrong.append(f"{kernel.__name__}: {how['maxnreg']} registers")
                several = {
                    flag: case[name] is not None and len(case[name]) > 1 for flag, name in EACH.items() if flag in how
                }
                if any(how[flag] != expected for flag, expected in several.items()):
                    wrong.append(f"{kernel.__name__}: {how}, expected {several}")

            return check

        with _device("cuda", 80, 32), mock.patch.object(InterpretedFunction, "__getitem__", launched):
            for case in calls:
                answer(case, _module(package, case.name).launch)
            case = dict.fromkeys(EACH.values())
            for power, dtype, p in itertools.product(range(4, 15), (F32, F64), (INF, 2.0, 1.0)):
                x, one = torch.empty(2, 2**power, dtype=dtype, device="meta"), torch.empty(1, device="meta")
                case |= {"eps": one, "alpha": one}
                _module(package, "random_start").launch(x, one, one, None, None, None, None, p, x)
                _module(package, "pgd_step").launch(x, x, x, one, one, None, None, None, None, p, 1, x, one)
        return wrong[0] if wrong else None

    return problem


def _empty(package: str) -> str | None:
    """Of rows without elements a step tells that they are finite, and there is nothing else to write."""
    nothing, one = torch.zeros(3, 0), torch.full((1,), 0.5)
    for p in (INF, 2.0, 1.0):
        nonfinite = torch.full((3,), 7, dtype=torch.int8)
        _module(package, "pgd_step").launch(
            nothing, nothing, nothing, one, one, None, None, None, None, p, 1, nothing.clone(), nonfinite
        )
        if nonfinite.any():
            return f"L{p:g}: {nonfinite.tolist()}"
        _module(package, "random_start").launch(
            nothing, one, torch.tensor(3), None, None, None, None, p, nothing.clone()
        )
    return None


def _wide(package: str) -> str | None:
    """From 2^31 elements on, offsets are computed in 64 bits."""
    longest = _module(package, "pgd_step_l1_long").WIDE
    if longest + _module(package, "pgd_step_l1_long").CHUNK != 2**31:
        return f"L1 steps of {longest} elements: a loop in 32 bits looks behind its last chunk"
    for size in (2**31 - 1, 2**31, longest - 1, longest):
        x, one = torch.empty(1, size, device="meta"), torch.empty(1, device="meta")
        found = []

        def launched(kernel: Any, grid: Any, found: list[bool] = found) -> Callable[..., None]:
            return lambda *operands, **how: found.append(how["WIDE"]) if "WIDE" in how else None

        with mock.patch.object(InterpretedFunction, "__getitem__", launched):
            for p in (INF, 2.0, 1.0):
                _module(package, "random_start").launch(x, one, one, None, None, None, None, p, x)
            for p in (INF, 2.0, 1.0):
                _module(package, "pgd_step").launch(x, x, x, one, one, None, None, None, None, p, 1, x, one)
        if found != [size == 2**31] * 7 + [size >= longest] * 2:
            return f"{size} elements: {found}"
    return None


@triton.jit
def noise_block(function: tl.constexpr, outputs, key, first, channels, places, LAST: tl.constexpr, WIDE: tl.constexpr):
    seed, key, first = tl.load(key), tl.load(key + 1), tl.load(first)
    made = function(seed, key, first, tl.load(channels), tl.load(places), LAST, WIDE, 8)
    tl.store(outputs + tl.arange(0, 8), made.to(outputs.dtype.element_ty))


def _wide_counters(package: str) -> str | None:
    """The words and normals of elements on both sides of 2^32 and beyond, in either order of a row."""
    starts, key = _module(package, "random_start"), torch.tensor([0x123456789, -5])
    for first, channels, places, last in (
        (2**34 + 8, 3, 2**33 + 1, False),
        (2**34 + 8, 3, 2**33 + 1, True),
        (2**32 - 4, 2**32 + 3, 7, True),
        (16, 5, 9, True),
    ):
        at = [first + i for i in range(8)]
        index = torch.tensor([i % channels * places + i // channels for i in at] if last else at)
        four = torch.stack([reference.philox(key[0], block[None], key[1:])[0, 0] for block in index >> 2])
        u = ((four >> 9).double() + 0.5) * 2.0**-23
        length, angle = (-2 * u[:, ::2].log()).sqrt(), 2 * math.pi * u[:, 1::2]
        normals = torch.stack((length * angle.cos(), length * angle.sin()), 2).flatten(1)
        words, noise = torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=F64)
        sizes = [torch.tensor([size]) for size in (first, channels, places)]
        wide = first > 2**31
        noise_block[(1,)](starts.words_of, words, key, *sizes, last, wide)
        noise_block[(1,)](starts.normals_of, noise, key, *sizes, last, wide)
        which = (torch.arange(8), index & 3)
        if not torch.equal(words, four[which]) or not torch.allclose(noise, normals[which], rtol=0, atol=1e-14):
            return f"from {first}, {channels} channels of {places}, last: {last}"
    return None


def _wide_channels(package: str) -> str | None:
    """Bounds of so many channels, or of channels of so many places, that their number does not fit into 32 bits."""
    x, zeros, seed = torch.zeros(1, 4), torch.zeros(1, dtype=F64), torch.tensor(3)
    grad, one = torch.tensor([[0.5, -1, 2, -3]]), torch.full((1,), 0.5)
    bounds = torch.tensor([-1.0, 0.25, -0.25, 0.45])
    starts = {"seed": seed, "sample_ids": None}
    steps = {"x_adv": x, "grad": grad, "alpha": one, "rows": None, "nonfinite": torch.zeros(1, dtype=torch.int8)}
    steps |= {"slots": 1, "EACH_ALPHA": False}
    units = torch.zeros(1, dtype=torch.int32)
    parts = {"grad_units": units, "delta_units": units, "grad_squares": zeros + 14.25, "delta_squares": zeros + 0.25}
    for module, kernel, operands in (
        ("random_start", "linf_start", starts | {"SPLIT": False}),
        ("random_start", "scaled_start", starts | {"masses": None, "L2": True, "PARTS": 32}),
        ("pgd_step", "linf_step", steps | {"counters": None, "SPLIT": False}),
        ("pgd_step_l2", "l2_segment", steps | parts | {"PHASE": 2, "PARTS": 32}),
    ):
        operands |= {"x": x, "eps": one, "ids": None, "samples": 1, "size": 4, "segments": 1, "EACH_EPS": False}
        operands |= {"WIDE": True, "ALIGNED": False, "BLOCK": 4}
        output = "start" if module == "random_start" else "next"
        for channels, places, last in ((2, 2**32 + 1, False), (2**32 + 1, 3, True)):
            made = []
            for low, high in ((None, None), (bounds, None), (None, -bounds)):
                made.append(torch.zeros(1, 4))
                getattr(_module(package, module), kernel)[(1,)](
                    **operands, **{output: made[-1]}, channels=channels, places=places, LAST=last,
                    clip_min=low, clip_max=high, EACH_LOW=low is not None, EACH_HIGH=high is not None,
                )  # fmt: skip
            of = bounds if last else bounds[:1]
            if not torch.equal(made[1], made[0].clamp(min=of)) or not torch.equal(made[2], made[0].clamp(max=-of)):
                return f"{kernel}, {channels} channels of {places}: {torch.cat(made).tolist()}"
            if not made[0].all():
                return f"{kernel}: nothing moved"
    return None


BLOCKS = {
    "kl_divergence": ("ON_CHIP", "CHUNK"),
    "margin_loss": ("ON_CHIP",),
    "truncated_cross_entropy": ("ON_CHIP", "CHUNK"),
    "logits": ("SMALL",),
    "retire": ("SEGMENT", "SCAN"),
    "pgd_step": ("SEGMENT",),
    "pgd_step_l1": ("ON_CHIP",),
    "pgd_step_l1_long": ("CHUNK",),
    "pgd_step_l2": ("ON_CHIP", "SEGMENT", "PARTS"),
    "random_start": ("SEGMENT", "ON_CHIP", "PARTS"),
    "rows": ("VECTOR",),
}


def _blocks(package: str) -> str | None:
    """Triton takes blocks of a power of two; no case has rows just as long as that."""
    for module, constants in BLOCKS.items():
        for constant in constants:
            size = getattr(_module(package, module), constant)
            if size.bit_count() != 1:
                return f"{module}.{constant} is {size}"
    return None


def _shapes(package: str) -> str | None:
    rows = _module(package, "rows")
    last, volume = torch.channels_last, torch.channels_last_3d
    for x, expected in (
        (torch.zeros(4), (1, 1, 1, False)),
        (torch.zeros(4, 7), (7, 7, 1, False)),
        (torch.zeros(4, 3, 2, 5), (30, 3, 10, False)),
        (torch.zeros(4, 3, 2, 5).contiguous(memory_format=last), (30, 3, 10, True)),
        (torch.zeros(4, 3, 2, 5, 2).contiguous(memory_format=volume), (60, 3, 20, True)),
        (torch.zeros(4, 3, 2, 1).contiguous(memory_format=last), (6, 3, 2, True)),
        (torch.zeros(4, 2, 3, 5).contiguous(memory_format=last), (30, 2, 15, True)),
        (torch.zeros(4, 5, 3).transpose(1, 2), (15, 3, 5, True)),
        (torch.zeros(4, 1, 2, 5), (10, 1, 10, False)),
        (torch.zeros(4, 3, 1, 1), (3, 3, 1, False)),
        (torch.zeros(4, 0, 2), (0, 1, 1, False)),
    ):
        shape = rows.RowShape.of(x)
        if (shape.size, shape.channels, shape.places, shape.last) != expected:
            return f"{tuple(x.shape)}: {shape}"
    memory = torch.zeros(64)
    found = [rows.aligned(size, memory, memory[at:]) for size, at in ((8, 0), (8, 4), (8, 1), (0, 0), (4, 0), (12, 0))]
    if found != [True, True, False, False, False, False]:
        return f"aligned: {found}"
    with mock.patch.object(torch.cuda, "device", lambda device: ("current", device)):
        if rows.device_of(SimpleNamespace(is_cuda=True, device=1)) != ("current", 1):
            return "not launched on the device of the operands"
    bounds = [rows.per_channel(bound) for bound in (None, torch.zeros(1), torch.zeros(2))]
    return None if bounds == [False, False, True] else f"bounds per channel: {bounds}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton")  # numpy tells of inf and NaN
    told = [(label, problem("fastsal.kernels")) for label, problem in checks()]
    print(json.dumps([len(told), [f"{label}: {wrong}" for label, wrong in told if wrong is not None]]))
