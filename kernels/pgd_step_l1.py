"""The L1 step: alpha shared by the largest gradients, then the exact projection onto ball and box (Croce & Hein 2021).

Of rows that fit on chip: one launch, one program per row, which is read once. Two searches find which elements move and
how much all are shrunk. Longer rows: pgd_step_l1_long.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .rounding import bits_of, inner_radius, project_point, wide
from .rows import (
    LAUNCH,
    RowShape,
    aligned,
    channel_of,
    elements_left,
    entry,
    logical_index,
    lower_bound,
    of_sample,
    per_channel,
    rows_of,
    tile,
    upper_bound,
    warps,
)

ON_CHIP = 4096  # elements of a row that one program holds


@triton.jit
def magnitude_key(slope):
    """|slope| as an integer: finite magnitudes and their keys have one order."""
    bits = bits_of(slope)
    if slope.dtype == tl.float64:
        key = bits & 0x7FFFFFFFFFFFFFFF
    else:
        key = bits & 0x7FFFFFFF
    return key


@triton.jit
def is_infinite(key):
    """Whether a magnitude is no finite number."""
    if key.dtype == tl.int64:
        answer = key >= 0x7FF0000000000000
    else:
        answer = key >= 0x7F800000
    return answer


@triton.jit
def chosen(key, index, threshold, last):
    """Which elements an L1 step moves: those above the threshold, and those on it up to the row-major index `last`."""
    return (key > threshold) | ((key == threshold) & (index <= last))


@triton.jit
def displacement(clean, here, slope, moves, share):
    rest = here.to(tl.float64) - clean.to(tl.float64)
    return rest + tl.where(moves, tl.where(slope > 0, share, -share), 0.0)


@triton.jit
def room_of(clean, delta, low, high):
    """How far an element can go before it leaves the box, on the side of its displacement."""
    room = tl.where(delta > 0, high, low).to(tl.float64) - clean.to(tl.float64)
    room = tl.where(delta > 0, room, -room)
    return tl.where(room > 0, room, 0.0)


@triton.jit
def kept_of(magnitude, shrink, room):
    """min(max(magnitude - shrink, 0), room); NaN keeps nothing."""
    kept = magnitude - shrink
    kept = tl.where(kept > 0, kept, 0.0)
    return tl.where(kept < room, kept, room)


@triton.jit
def falls(magnitude, shrink, room):
    """Where more shrinking than this shortens the element."""
    return (magnitude > shrink) & (magnitude - shrink <= room)


@triton.jit
def next_probe(below, above, mass_below, mass_above, falling, limit, passes):
    """Where to look for the least shrinkage whose mass is at most `limit`: it lies in (below, above].

    The mass is piecewise linear and falls, neither convex nor concave. Newton's step lands on the limit once the
    bracket is linear; chord and midpoint narrow it where Newton does not; halving the number of floats in between ends
    at two neighbours, whatever the magnitudes. Answers `above` when nothing is left to look at.
    """
    aim = limit * (1 - 2.0**-32)
    which = passes % 3
    newton = which == 1
    ratio = tl.where(newton, mass_below - aim, above - below) / tl.where(newton, falling, mass_below - mass_above)
    probe = below + tl.where(newton, ratio, (mass_below - aim) * ratio)
    probe = tl.where((which != 0) & (probe > below) & (probe < above), probe, below + (above - below) * 0.5)
    least = bits_of(below)
    most = bits_of(above)
    halved = tl.where(most - least > 1, (least + ((most - least) >> 1)).to(tl.float64, bitcast=True), above)
    probe = tl.where((probe > below) & (probe < above) & (passes < 60), probe, halved)
    return tl.where(limit == 0, above, probe)


@triton.jit(do_not_specialize=["samples", "slots", "size", "channels", "places", "topk"])
def l1_step(
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
    topk: tl.int64,
    EACH_EPS: tl.constexpr,
    EACH_ALPHA: tl.constexpr,
    EACH_LOW: tl.constexpr,
    EACH_HIGH: tl.constexpr,
    LAST: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
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
    channels = channels.to(tl.int32)
    places = places.to(tl.int32)
    channel = at
    if EACH_LOW or EACH_HIGH:
        channel = channel_of(at, channels, places, LAST)
    low = lower_bound(clip_min, channel, inside, EACH_LOW, clean.dtype)
    high = upper_bound(clip_max, channel, inside, EACH_HIGH, clean.dtype)

    # the topk-th largest key: at least topk keys are >= threshold, fewer are >= beyond
    key = tl.where(inside, magnitude_key(slope), -1)
    largest = tl.max(key, axis=0)
    bad = is_infinite(largest)
    tl.store(nonfinite + row, bad)
    threshold = largest * 0
    beyond = tl.where(bad, threshold, largest + 1)
    whole = bad  # exactly topk keys are >= threshold
    while (whole == 0) & (beyond - threshold > 1):
        probe = threshold + ((beyond - threshold) >> 1)
        count = tl.sum((key >= probe).to(tl.int32), axis=0)
        threshold = tl.where(count >= topk, probe, threshold)
        beyond = tl.where(count >= topk, beyond, probe)
        whole = count == topk

    # of the elements on the threshold the first `tied`; zeros move nothing
    index = logical_index(at, channels, places, LAST)
    above = tl.sum((key > threshold).to(tl.int32), axis=0)
    equal = tl.sum((key == threshold).to(tl.int32), axis=0)
    tied = tl.minimum(topk.to(tl.int32) - above, equal)
    last = tl.full((), BLOCK, tl.int32)
    if threshold == 0:
        last = tl.full((), -1, tl.int32)
        tied = tl.full((), 0, tl.int32)
    elif tied < equal:
        first = tl.full((), -1, tl.int32)  # too few of them are <= first, enough are <= last
        while last - first > 1:
            probe = first + ((last - first) >> 1)
            count = tl.sum(((key == threshold) & (index <= probe)).to(tl.int32), axis=0)
            first = tl.where(count >= tied, first, probe)
            last = tl.where(count >= tied, probe, last)
    step = of_sample(alpha, sample, real, EACH_ALPHA).to(tl.float64)
    share = tl.where(bad, 0.0, step / tl.maximum(above + tied, 1).to(tl.float64))
    moves = chosen(key, index, threshold, last)
    delta = tl.where(inside, displacement(clean, here, slope, moves, share), 0.0)
    magnitude = tl.abs(delta)
    room = room_of(clean, delta, low, high)

    # the least shrinkage with a mass of at most the radius
    limit = inner_radius(of_sample(eps, sample, real, EACH_EPS))
    kept = kept_of(magnitude, 0.0, room)
    below = tl.full((), 0.0, tl.float64)
    upper = tl.max(magnitude, axis=0)
    mass_below = tl.sum(kept, axis=0)
    mass_above = tl.full((), 0.0, tl.float64)
    falling = tl.sum(falls(magnitude, 0.0, room).to(tl.float64), axis=0)
    shrink = below
    passes = tl.full((), 1, tl.int32)
    searching = (mass_below <= limit) == 0
    while searching:
        shrink = next_probe(below, upper, mass_below, mass_above, falling, limit, passes)
        mass = tl.sum(kept_of(magnitude, shrink, room), axis=0)
        inner = mass <= limit
        falling = tl.where(inner, falling, tl.sum(falls(magnitude, shrink, room).to(tl.float64), axis=0))
        searching = ((inner == 0) | (limit - mass > limit * 2.0**-30)) & (shrink < upper)
        below = tl.where(inner, below, shrink)
        mass_below = tl.where(inner, mass_below, mass)
        upper = tl.where(inner, shrink, upper)
        mass_above = tl.where(inner, mass, mass_above)
        passes += 1
    kept = kept_of(magnitude, shrink, room)
    point = project_point(clean, tl.where(delta > 0, kept, -kept), low, high)
    tl.store(next + row * size + at, point, mask=inside)


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
    topk: int,
    next: Tensor,
    nonfinite: Tensor,
) -> None:
    """One launch."""
    shape = RowShape.of(x)
    block = tile(shape.size, 128, ON_CHIP)
    l1_step[(next.shape[0],)](
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
        x.shape[0],
        x_adv.shape[0],
        shape.size,
        shape.channels,
        shape.places,
        topk,
        EACH_EPS=eps.shape[0] > 1,
        EACH_ALPHA=alpha.shape[0] > 1,
        EACH_LOW=per_channel(clip_min),
        EACH_HIGH=per_channel(clip_max),
        LAST=shape.last,
        ALIGNED=aligned(shape.size, x, x_adv, grad, next),
        BLOCK=block,
        num_warps=warps(block, 8),
        **LAUNCH,
    )
