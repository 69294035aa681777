"""Writes the rows that leave the attack to their places in the result, and compacts the survivors, in one launch.

Program 0 compacts: it alone sees all rows, so nothing has to be agreed upon. The others copy, a row split over them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .rows import LAUNCH, RowShape, aligned, at_most, device_of, elements_left, in_range, rows_of, tile, warps

SEGMENT = 1024  # elements of a row that one program copies; half as many of fp64
SCAN = 256  # rows that program 0 looks at at a time


@triton.jit
def leaving(right, over, ids, j, there, samples, last):
    """(sample or -1, whether row j crossed, whether it leaves) for rows that are `there`."""
    sample = j
    if ids is not None:
        sample = tl.load(ids + j, mask=there, other=-1)
    sample = tl.where(there, in_range(sample, samples), -1)
    crossed = tl.zeros_like(j) != 0
    if over is not None:
        crossed = crossed | (tl.load(over + j, mask=there, other=0) != 0)
    if right is not None:
        crossed = crossed | (tl.load(right + j, mask=there, other=1) == 0)
    return sample, crossed, (sample >= 0) & (crossed | ((tl.zeros_like(j) + last) != 0))


@triton.jit(do_not_specialize=["count", "points", "samples", "size", "segments", "step", "last"])
def retire(
    previous,
    current,
    right,
    over,
    rows,
    ids,
    result,
    stop,
    rows_out,
    ids_out,
    live,
    count: tl.int64,
    points: tl.int64,
    samples: tl.int64,
    size: tl.int64,
    segments: tl.int32,
    step: tl.int64,
    last: tl.int32,
    ALIGNED: tl.constexpr,
    SCAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    size = rows_of(size, ALIGNED)
    program = tl.program_id(0)
    within = tl.arange(0, BLOCK)
    if program == 0:
        lane = tl.arange(0, SCAN).to(tl.int64)
        kept = tl.full((), 0, tl.int64)
        for first in range(0, count, SCAN):
            j = first + lane
            sample, crossed, leaves = leaving(right, over, ids, j, j < count, samples, last)
            tl.store(stop + sample, tl.where(crossed, step - 1, step), mask=leaves)
            stays = (sample >= 0) & (leaves == 0)
            place = kept + tl.cumsum(stays.to(tl.int32), axis=0) - 1
            tl.store(rows_out + place, j, mask=stays)
            tl.store(ids_out + place, sample, mask=stays)
            kept += tl.sum(stays.to(tl.int32), axis=0)
        for first in range(kept, count, SCAN):
            j = first + lane
            tl.store(rows_out + j, tl.zeros_like(j), mask=j < count)
            tl.store(ids_out + j, tl.zeros_like(j) - 1, mask=j < count)
        tl.store(live, kept)
    else:
        j = ((program - 1) // segments).to(tl.int64)
        segment = (program - 1) % segments
        sample, crossed, leaves = leaving(right, over, ids, j, j < count, samples, last)
        slot = j
        if rows is not None:
            slot = tl.load(rows + j)
        slot = in_range(slot, points)
        first = segment.to(tl.int64) * BLOCK
        if leaves:
            if crossed:
                inside = within < elements_left(size, first, slot >= 0, BLOCK)
                value = tl.load(previous + (slot * size + first) + within, mask=inside, other=0)
                tl.store(result + (sample * size + first) + within, value, mask=inside)
            else:
                inside = within < elements_left(size, first, slot == slot, BLOCK)
                value = tl.load(current + (j * size + first) + within, mask=inside, other=0)
                tl.store(result + (sample * size + first) + within, value, mask=inside)


def launch(
    previous: Tensor,
    current: Tensor,
    right: Tensor | None,
    over: Tensor | None,
    rows: Tensor | None,
    ids: Tensor | None,
    result: Tensor,
    stop: Tensor,
    step: int,
    last: bool,
    rows_out: Tensor,
    ids_out: Tensor,
    live: Tensor,
) -> None:
    """The operands of the operator, dense and in one memory format, then its outputs."""
    count, shape = current.shape[0], RowShape.of(current)
    if count == 0:
        live.zero_()
        return
    vector = 16 // current.element_size()
    block = tile(shape.size, 32 * vector, SEGMENT * vector // 4)
    segments = max(-(-shape.size // block), 1)
    with device_of(current):
        retire[(1 + count * segments,)](
            previous,
            current,
            right,
            over,
            rows,
            ids,
            result,
            stop,
            rows_out,
            ids_out,
            live,
            count,
            previous.shape[0],
            result.shape[0],
            shape.size,
            segments,
            step,
            int(last),
            ALIGNED=aligned(shape.size, previous, current, result),
            SCAN=SCAN,
            BLOCK=block,
            num_warps=warps(block, vector),
            **at_most(40),
            **LAUNCH,
        )
