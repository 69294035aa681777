"""The L2 step: along grad / ||grad||, scaled back into the ball, then the box. Norms and displacement in fp64.

A row that fits on chip is read once, in one launch. A larger one takes three: partial norms of the gradient, partial
norms of the displacement, and the step itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .maths import power_of_two
from .rounding import bits_of, inner_radius, project_point, wide
from .rows import (
    LAUNCH,
    RowShape,
    aligned,
    channel_of,
    elements_left,
    entry,
    lower_bound,
    of_sample,
    per_channel,
    row_and_segment,
    rows_of,
    tile,
    upper_bound,
    warps,
)

ON_CHIP = 8192  # elements of a row that one program holds; half as many of fp64
SEGMENT = 1024  # elements that one program works on otherwise; half as many of fp64
PARTS = 256  # partial norms that are summed at a time
UNITLESS = tl.constexpr(2000)  # larger than the unit of any part that is not zero


@triton.jit
def squares_of(values, SAFE: tl.constexpr):
    """(n, the sum of (values * 2^n)^2). SAFE: the squares of the values themselves may be beyond fp64, and 2^n brings
    the largest near 1; otherwise n is 0."""
    unit = tl.full((), 0, tl.int32)
    if SAFE:
        largest = tl.max(tl.abs(values), axis=0)
        exponent = ((bits_of(largest) >> 52) & 0x7FF).to(tl.int32) - 1023
        unit = tl.minimum(tl.maximum(-exponent, -1000), 1000)
        values = values * power_of_two(unit, tl.float64)
    return unit, tl.sum(values * values, axis=0)


@triton.jit
def joined_norm(units, squares, row, segments, SAFE: tl.constexpr, PARTS: tl.constexpr):
    """(n, norm of the row times 2^n) from the parts of a row."""
    unit = tl.full((), UNITLESS if SAFE else 0, tl.int32)
    total = tl.full((), 0.0, tl.float64)
    for start in range(0, segments, PARTS):
        part = start + tl.arange(0, PARTS)
        there = part < segments
        at = row * segments + part
        square = tl.load(squares + at, mask=there, other=0)
        if SAFE:
            own = tl.load(units + at, mask=there, other=UNITLESS)
            own = tl.where(square == 0, UNITLESS, own)  # a part of zeros says nothing about the unit
            least = tl.minimum(unit, tl.min(own, axis=0))
            # squares of numbers that are 2^500 times smaller add nothing
            share = power_of_two(tl.maximum(least - own, -500), tl.float64)
            before = power_of_two(tl.maximum(least - unit, -500), tl.float64)
            total = total * before * before
            square = square * share * share
            unit = least
        total = total + tl.sum(square, axis=0)
    return tl.where(total == 0, 0, unit), tl.sqrt(total)


@triton.jit
def inverse_of(norm):
    """1 / norm, or 0 where there is no direction: the gradient is zero, or not finite and must not be touched."""
    moves = (norm > 0) & (norm - norm == 0)
    return tl.where(moves, 1 / tl.where(moves, norm, 1.0), 0.0)


@triton.jit
def displacement(clean, here, slope, inside, unit, inverse, along):
    """x_adv - x + alpha * grad / ||grad||; 0 outside of the row."""
    rest = here.to(tl.float64) - clean.to(tl.float64)
    direction = tl.where(inverse == 0, 0.0, slope.to(tl.float64) * power_of_two(unit, tl.float64) * inverse)
    return tl.where(inside, rest + direction * along, 0.0)


@triton.jit
def scale_into_ball(radius, unit, norm):
    """What a displacement of this norm is multiplied by; 0 where it is no number, since the point was none."""
    limit = inner_radius(radius) * power_of_two(unit, tl.float64)
    longer = norm > limit
    return tl.where(norm - norm == 0, tl.where(longer, limit / tl.where(longer, norm, 1.0), 1.0), 0.0)


@triton.jit
def stored_point(
    clean, delta, scale, inside, clip_min, clip_max, at, channels, places, EACH_LOW, EACH_HIGH, LAST, WIDE
):
    """The point of ball and box at delta * scale; `at`: offset in the row."""
    channel = at
    if EACH_LOW or EACH_HIGH:
        if not WIDE:
            at = at.to(tl.int32)
            channels = channels.to(tl.int32)
            places = places.to(tl.int32)
        channel = channel_of(at, channels, places, LAST)
    low = lower_bound(clip_min, channel, inside, EACH_LOW, clean.dtype)
    high = upper_bound(clip_max, channel, inside, EACH_HIGH, clean.dtype)
    return project_point(clean, tl.where(scale > 0, delta * scale, 0.0), low, high)


@triton.jit(do_not_specialize=["samples", "slots", "size", "channels", "places"])
def l2_step(
    x,
    x_adv,
    grad,
    eps,
    alpha,
    clip_min,
    clip_max,
    rows,
    ids,
    next,
    nonfinite,
    samples: tl.int64,
    slots: tl.int64,
    size: tl.int64,
    channels: tl.int64,
    places: tl.int64,
    EACH_EPS: tl.constexpr,
    EACH_ALPHA: tl.constexpr,
    EACH_LOW: tl.constexpr,
    EACH_HIGH: tl.constexpr,
    LAST: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row on chip."""
    size = rows_of(size, ALIGNED)
    row = tl.program_id(0).to(tl.int64)
    sample = entry(ids, row, samples)
    slot = entry(rows, row, slots)
    real = (sample >= 0) & (slot >= 0)
    at = tl.arange(0, BLOCK)
    inside = at < elements_left(size, 0, real, BLOCK)
    clean = tl.load(x + sample * size + at, mask=inside, other=0)
    here = tl.load(x_adv + slot * size + at, mask=inside, other=0)
    slope = wide(tl.load(grad + slot * size + at, mask=inside, other=0))
    radius = of_sample(eps, sample, real, EACH_EPS)
    along = of_sample(alpha, sample, real, EACH_ALPHA).to(tl.float64)

    unit, squares = squares_of(slope.to(tl.float64), slope.dtype == tl.float64)
    norm = tl.sqrt(squares)
    tl.store(nonfinite + row, norm - norm != 0)
    delta = displacement(clean, here, slope, inside, unit, inverse_of(norm), along)
    unit, squares = squares_of(delta, clean.dtype == tl.float64)
    scale = scale_into_ball(radius, unit, tl.sqrt(squares))
    point = stored_point(
        clean, delta, scale, inside, clip_min, clip_max, at, channels, places, EACH_LOW, EACH_HIGH, LAST, False
    )
    tl.store(next + row * size + at, point, mask=inside)


@triton.jit(do_not_specialize=["samples", "slots", "size", "channels", "places", "segments"])
def l2_segment(
    x,
    x_adv,
    grad,
    eps,
    alpha,
    clip_min,
    clip_max,
    rows,
    ids,
    next,
    nonfinite,
    grad_units,
    delta_units,
    grad_squares,
    delta_squares,
    samples: tl.int64,
    slots: tl.int64,
    size: tl.int64,
    channels: tl.int64,
    places: tl.int64,
    segments: tl.int32,
    PHASE: tl.constexpr,
    EACH_EPS: tl.constexpr,
    EACH_ALPHA: tl.constexpr,
    EACH_LOW: tl.constexpr,
    EACH_HIGH: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A segment of a row: phase 0 leaves a part of the gradient's norm, 1 of the displacement's, 2 makes the step."""
    size = rows_of(size, ALIGNED)
    row, segment = row_and_segment(segments, True)
    sample = entry(ids, row, samples)
    slot = entry(rows, row, slots)
    real = (sample >= 0) & (slot >= 0)
    first = segment.to(tl.int64) * BLOCK
    within = tl.arange(0, BLOCK)
    inside = within < elements_left(size, first, real, BLOCK)
    SAFE_GRAD: tl.constexpr = grad.dtype.element_ty == tl.float64
    SAFE_DELTA: tl.constexpr = x.dtype.element_ty == tl.float64
    # norms first: they need many registers, and so do the elements of the row
    if PHASE > 0:
        unit, norm = joined_norm(grad_units, grad_squares, row, segments, SAFE_GRAD, PARTS)
        inverse = inverse_of(norm)
        if (PHASE == 1) & (segment == 0):
            tl.store(nonfinite + row, norm - norm != 0)
    if PHASE == 2:
        radius = of_sample(eps, sample, real, EACH_EPS)
        delta_unit, length = joined_norm(delta_units, delta_squares, row, segments, SAFE_DELTA, PARTS)
        scale = scale_into_ball(radius, delta_unit, length)
    slope = wide(tl.load(grad + (slot * size + first) + within, mask=inside, other=0)).to(tl.float64)
    if PHASE == 0:
        unit, squares = squares_of(slope, SAFE_GRAD)
        tl.store(grad_units + row * segments + segment, unit)
        tl.store(grad_squares + row * segments + segment, squares)
    else:
        clean = tl.load(x + (sample * size + first) + within, mask=inside, other=0)
        here = tl.load(x_adv + (slot * size + first) + within, mask=inside, other=0)
        along = of_sample(alpha, sample, real, EACH_ALPHA).to(tl.float64)
        delta = displacement(clean, here, slope, inside, unit, inverse, along)
        if PHASE == 1:
            unit, squares = squares_of(delta, SAFE_DELTA)
            tl.store(delta_units + row * segments + segment, unit)
            tl.store(delta_squares + row * segments + segment, squares)
        else:
            point = stored_point(
                clean,
                delta,
                scale,
                inside,
                clip_min,
                clip_max,
                first + within,
                channels,
                places,
                EACH_LOW,
                EACH_HIGH,
                LAST,
                WIDE,
            )
            tl.store(next + (row * size + first) + within, point, mask=inside)


def launch(
    x: Tensor,
    x_adv: Tensor,
    grad: Tensor,
    eps: Tensor,
    alpha: Tensor,
    clip_min: Tensor | None,
    clip_max: Tensor | None,
    rows: Tensor | None,
    ids: Tensor | None,
    next: Tensor,
    nonfinite: Tensor,
) -> None:
    """One launch for a row that fits on chip, else three over segments of rows."""
    count, shape = next.shape[0], RowShape.of(x)
    operands = (x, x_adv, grad, eps, alpha, clip_min, clip_max, rows, ids, next, nonfinite)
    sizes = (x.shape[0], x_adv.shape[0], shape.size, shape.channels, shape.places)
    kinds = {
        "EACH_EPS": eps.shape[0] > 1,
        "EACH_ALPHA": alpha.shape[0] > 1,
        "EACH_LOW": per_channel(clip_min),
        "EACH_HIGH": per_channel(clip_max),
        "LAST": shape.last,
        "ALIGNED": aligned(shape.size, x, x_adv, grad, next),
    }
    double = torch.float64 in (x.dtype, grad.dtype)
    if shape.size <= (ON_CHIP // 2 if double else ON_CHIP):
        block = tile(shape.size, 128, ON_CHIP)
        l2_step[(count,)](*operands, *sizes, **kinds, BLOCK=block, num_warps=warps(block, 8), **LAUNCH)
        return
    vector = 16 // x.element_size()
    block = SEGMENT * vector // 4
    segments = -(-shape.size // block)
    units = torch.empty((2, count, segments), dtype=torch.int32, device=x.device)
    squares = torch.empty((2, count, segments), dtype=torch.float64, device=x.device)
    for phase in range(3):
        l2_segment[(count * segments,)](
            *operands,
            *units,
            *squares,
            *sizes,
            segments,
            PHASE=phase,
            **kinds,
            WIDE=shape.size >= 2**31,
            BLOCK=block,
            PARTS=tile(segments, 32, PARTS),
            num_warps=warps(block, vector),
            **LAUNCH,
        )
