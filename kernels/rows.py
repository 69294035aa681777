"""Where a row lies: index vectors, padding, bounds and the order of its elements; and how every kernel is launched."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rounding import LARGEST32, LARGEST64

# Of every launch. No fused multiply-adds: rounding is part of the contract.
LAUNCH: dict[str, Any] = {"enable_fp_fusion": False}
VECTOR = 16  # bytes of the widest access, on which rows that are to be read by it have to start


@dataclass(frozen=True)
class RowShape:
    """The elements of a row: their number, the channels, the places of a channel, and which of the two runs faster."""

    size: int
    channels: int
    places: int
    last: bool  # channels_last: the channels of a place lie together

    @staticmethod
    def of(x: Tensor) -> RowShape:
        size = math.prod(x.shape[1:])
        channels = x.shape[1] if x.dim() > 1 else 1
        places = size // channels if channels else 0
        last = x.dim() > 2 and channels > 1 and places > 1 and x.stride(1) == 1
        return RowShape(size, max(channels, 1), max(places, 1), last)


def aligned(size: int, *operands: Tensor) -> bool:
    """Whether every row of `size` elements starts on a multiple of 16 bytes, whatever the dtypes."""
    return size > 0 and size % 8 == 0 and all(operand.data_ptr() % VECTOR == 0 for operand in operands)


def tile(size: int, least: int, most: int) -> int:
    """The power of two that holds `size` elements, within limits."""
    power: int = triton.next_power_of_2(max(size, 1))
    return min(max(power, least), most)


def warps(elements: int, per_thread: int, most: int = 16) -> int:
    """How many warps hold `elements`, each thread `per_thread` of them: a power of two. An AMD warp has 64 threads."""
    if triton.knobs.runtime.interpret:
        return 1
    size = int(triton.runtime.driver.active.get_current_target().warp_size)
    return min(max(elements // (size * per_thread), 1), most)


def at_most(registers: int) -> dict[str, Any]:
    """A limit on the registers of a thread, where the compiler takes one, for kernels that fit into it unspilled."""
    if triton.knobs.runtime.interpret:
        return {}
    target = triton.runtime.driver.active.get_current_target()
    return {"maxnreg": registers} if target.backend == "cuda" else {}


def per_channel(bound: Tensor | None) -> bool:
    return bound is not None and bound.shape[0] > 1


def device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes the device of `tensor` the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@triton.jit
def rows_of(size, ALIGNED: tl.constexpr):
    """`size`; and where it is a multiple of 8, in a way that shows this to the compiler."""
    if ALIGNED:
        size = size // 8 * 8
    return size


@triton.jit
def row_and_segment(segments, SPLIT: tl.constexpr):
    """Program p works on segment p % segments of row p // segments."""
    program = tl.program_id(0)
    if SPLIT:
        row = program // segments
        segment = program - row * segments
    else:
        row = program
        segment = program * 0
    return row.to(tl.int64), segment


@triton.jit
def elements_left(size, first, real, BLOCK: tl.constexpr):
    """How many of the BLOCK elements from `first` on belong to the row; none where it is padding."""
    return tl.where(real, tl.minimum(size - first, BLOCK), 0).to(tl.int32)


@triton.jit
def in_range(index, limit):
    """`index`, or -1 where it is out of range: such a row counts as padding."""
    return tl.where((index >= 0) & (index < limit), index, -1)


@triton.jit
def entry(vector, j, limit):
    """Entry j of an index vector (j itself where there is none), or -1 where it is out of range."""
    index = j
    if vector is not None:
        index = tl.load(vector + j)
    return in_range(index, limit)


@triton.jit
def of_sample(values, sample, real, EACH: tl.constexpr):
    """A per-sample value, or the one that all samples share."""
    if EACH:
        value = tl.load(values + sample, mask=real, other=0)
    else:
        value = tl.load(values)
    return value


@triton.jit
def logical_index(at, channels, places, LAST: tl.constexpr):
    """The row-major index of the element at offset `at` of a row in memory."""
    index = at
    if LAST:
        place = at // channels
        index = (at - place * channels) * places + place
    return index


@triton.jit
def channel_of(at, channels, places, LAST: tl.constexpr):
    if LAST:
        channel = at % channels
    else:
        channel = at // places
    return channel


@triton.jit
def lower_bound(bound, channel, inside, EACH: tl.constexpr, T: tl.constexpr):
    """The lower end of the box; without a bound, or with an infinite one, the largest finite number."""
    largest: tl.constexpr = LARGEST64 if T == tl.float64 else LARGEST32
    if bound is None:
        value = tl.full((), -largest, T)
    elif EACH:
        value = tl.load(bound + channel, mask=inside, other=0)
        value = tl.where(value < -largest, -largest, value)
    else:
        value = tl.load(bound)
        value = tl.where(value < -largest, -largest, value)
    return value


@triton.jit
def upper_bound(bound, channel, inside, EACH: tl.constexpr, T: tl.constexpr):
    largest: tl.constexpr = LARGEST64 if T == tl.float64 else LARGEST32
    if bound is None:
        value = tl.full((), largest, T)
    elif EACH:
        value = tl.load(bound + channel, mask=inside, other=0)
        value = tl.where(value > largest, largest, value)
    else:
        value = tl.load(bound)
        value = tl.where(value > largest, largest, value)
    return value
