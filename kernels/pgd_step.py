"""One step of projected gradient ascent. Linf here; the L2 and L1 kernels stand in files of their own.

Linf reads x, x_adv and grad once and writes next once, in one launch, a row split over programs.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from . import arrivals, pgd_step_l1, pgd_step_l1_long, pgd_step_l2
from .arrivals import flag_row
from .rounding import into_ball_and_box, wide
from .rows import (
    LAUNCH,
    RowShape,
    aligned,
    channel_of,
    device_of,
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

SEGMENT = 1024  # elements of a row that one program moves; half as many of fp64


@triton.jit(do_not_specialize=["samples", "slots", "size", "channels", "places", "segments"])
def linf_step(
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
    counters,
    samples: tl.int64,
    slots: tl.int64,
    size: tl.int64,
    channels: tl.int64,
    places: tl.int64,
    segments: tl.int32,
    EACH_EPS: tl.constexpr,
    EACH_ALPHA: tl.constexpr,
    EACH_LOW: tl.constexpr,
    EACH_HIGH: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGNED: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    size = rows_of(size, ALIGNED)
    row, segment = row_and_segment(segments, SPLIT)
    sample = entry(ids, row, samples)
    slot = entry(rows, row, slots)
    real = (sample >= 0) & (slot >= 0)

    first = segment.to(tl.int64) * BLOCK
    within = tl.arange(0, BLOCK)
    inside = within < elements_left(size, first, real, BLOCK)
    clean = tl.load(x + (sample * size + first) + within, mask=inside, other=0)
    here = tl.load(x_adv + (slot * size + first) + within, mask=inside, other=0)
    slope = wide(tl.load(grad + (slot * size + first) + within, mask=inside, other=0))
    radius = of_sample(eps, sample, real, EACH_EPS)
    step = of_sample(alpha, sample, real, EACH_ALPHA)

    channel = within
    if EACH_LOW or EACH_HIGH:
        at = first + within
        if not WIDE:
            at = at.to(tl.int32)
            channels = channels.to(tl.int32)
            places = places.to(tl.int32)
        channel = channel_of(at, channels, places, LAST)
    low = lower_bound(clip_min, channel, inside, EACH_LOW, clean.dtype)
    high = upper_bound(clip_max, channel, inside, EACH_HIGH, clean.dtype)

    finite = (slope - slope) == 0
    up = tl.where(finite & (slope > 0), step, 0.0)
    down = tl.where(finite & (slope < 0), step, 0.0)
    moved = into_ball_and_box(here + (up - down), clean, radius, low, high)
    tl.store(next + (row * size + first) + within, moved, mask=inside)

    bad = tl.max((inside & ((slope - slope) != 0)).to(tl.int32), axis=0)
    flag_row(nonfinite, counters, row, bad, segments, SPLIT)


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
    p: float,
    topk: int,
    next: Tensor,
    nonfinite: Tensor,
) -> None:
    """The operands of the operator, dense and in one memory format, then its outputs."""
    if next.shape[0] == 0:
        return
    with device_of(x):
        if p == math.inf:
            launch_linf(x, x_adv, grad, eps, alpha, clip_min, clip_max, rows, ids, next, nonfinite)
        elif p == 2.0:
            pgd_step_l2.launch(x, x_adv, grad, eps, alpha, clip_min, clip_max, rows, ids, next, nonfinite)
        else:
            l1 = pgd_step_l1 if math.prod(x.shape[1:]) <= pgd_step_l1.ON_CHIP else pgd_step_l1_long
            l1.launch(x, x_adv, grad, eps, alpha, clip_min, clip_max, rows, ids, topk, next, nonfinite)


def launch_linf(
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
    """One launch over segments of rows."""
    count, shape = next.shape[0], RowShape.of(x)
    vector = 16 // x.element_size()  # elements of a thread
    block = tile(shape.size, 32 * vector, SEGMENT * vector // 4)
    segments = max(-(-shape.size // block), 1)
    linf_step[(count * segments,)](
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
        arrivals.counters(x, count) if segments > 1 else None,
        x.shape[0],
        x_adv.shape[0],
        shape.size,
        shape.channels,
        shape.places,
        segments,
        EACH_EPS=eps.shape[0] > 1,
        EACH_ALPHA=alpha.shape[0] > 1,
        EACH_LOW=per_channel(clip_min),
        EACH_HIGH=per_channel(clip_max),
        LAST=shape.last,
        WIDE=shape.size >= 2**31,
        ALIGNED=aligned(shape.size, x, x_adv, grad, next),
        SPLIT=segments > 1,
        BLOCK=block,
        num_warps=warps(block, vector),
        **LAUNCH,
    )
