"""The L1 step of rows that are too long for a chip, in three launches.

One program per row finds which elements move, reading the gradients once per pass of its search; one finds by how much
all are shrunk, reading x, x_adv and the gradients once per pass; the step itself is made in segments.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pgd_step_l1 import (
    chosen,
    displacement,
    falls,
    is_infinite,
    kept_of,
    magnitude_key,
    next_probe,
    room_of,
)
from .rounding import inner_radius, project_point, wide
from .rows import (
    LAUNCH,
    RowShape,
    aligned,
    at_most,
    channel_of,
    entry,
    logical_index,
    lower_bound,
    of_sample,
    per_channel,
    row_and_segment,
    rows_of,
    upper_bound,
    warps,
)

CHUNK = 2048  # elements of a row that a program looks at at a time; half as many of fp64
WIDE = 2**31 - CHUNK  # elements of a row whose offsets take 64 bits, those behind its last chunk too


@triton.jit
def in_groups(chunk, LANES: tl.constexpr, ALIGNED: tl.constexpr):
    """A chunk as (lanes, group), each group in one thread: neighbours where loads are wide, else what lies LANES
    apart."""
    group: tl.constexpr = chunk.shape[0] // LANES
    if ALIGNED:
        groups = tl.reshape(chunk, (LANES, group))
    else:
        groups = tl.permute(tl.reshape(chunk, (group, LANES)), (1, 0))
    return groups


@triton.jit
def thread_sum(chunk, LANES: tl.constexpr, ALIGNED: tl.constexpr):
    return tl.sum(in_groups(chunk, LANES, ALIGNED), axis=1)


@triton.jit
def keys_of(grad_row, first, length, BLOCK: tl.constexpr):
    """The keys of a chunk, -1 behind the end of the row."""
    within = tl.arange(0, BLOCK)
    inside = within < tl.minimum(length - first, BLOCK).to(tl.int32)
    slope = wide(tl.load(grad_row + (first + within), mask=inside, other=0))
    return tl.where(inside, magnitude_key(slope), -1)


@triton.jit
def largest_key(grad_row, length, KEY: tl.constexpr, BLOCK: tl.constexpr):
    most = tl.full((BLOCK,), -1, KEY)
    for first in range(0, length, BLOCK):
        most = tl.maximum(most, keys_of(grad_row, first, length, BLOCK))
    return tl.max(most.to(tl.int64), axis=0).to(KEY)


@triton.jit
def count_from(grad_row, probe, length, ALIGNED: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr):
    """How many keys of a row are >= probe."""
    counts = tl.zeros((LANES,), tl.int32)
    for first in range(0, length, BLOCK):
        counts += thread_sum((keys_of(grad_row, first, length, BLOCK) >= probe).to(tl.int32), LANES, ALIGNED)
    return tl.sum(counts.to(tl.int64), axis=0)


@triton.jit
def count_tied(
    grad_row, threshold, probe, length, channels, places,
    LAST: tl.constexpr, ALIGNED: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many keys are `threshold`, with a row-major index <= probe."""
    counts = tl.zeros((LANES,), tl.int32)
    for first in range(0, length, BLOCK):
        key = keys_of(grad_row, first, length, BLOCK)
        index = logical_index(first + tl.arange(0, BLOCK), channels, places, LAST)
        counts += thread_sum(((key == threshold) & (index <= probe)).to(tl.int32), LANES, ALIGNED)
    return tl.sum(counts.to(tl.int64), axis=0)


@triton.jit
def chunk_of(
    clean_row, here_row, grad_row, clip_min, clip_max, first, length, channels, places, threshold, last, share,
    EACH_LOW: tl.constexpr, EACH_HIGH: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(inside, clean, displacement, room, low, high) of a chunk."""
    within = tl.arange(0, BLOCK)
    inside = within < tl.minimum(length - first, BLOCK).to(tl.int32)
    at = first + within
    clean = tl.load(clean_row + at, mask=inside, other=0)
    here = tl.load(here_row + at, mask=inside, other=0)
    slope = wide(tl.load(grad_row + at, mask=inside, other=0))
    channel = within
    if EACH_LOW or EACH_HIGH:
        channel = channel_of(at, channels, places, LAST)
    low = lower_bound(clip_min, channel, inside, EACH_LOW, clean.dtype)
    high = upper_bound(clip_max, channel, inside, EACH_HIGH, clean.dtype)
    key = magnitude_key(slope)
    moves = chosen(key, logical_index(at, channels, places, LAST), threshold.to(key.dtype), last)
    delta = tl.where(inside, displacement(clean, here, slope, moves, share), 0.0)
    return inside, clean, delta, room_of(clean, delta, low, high), low, high


@triton.jit
def mass_of(
    x, x_adv, grad, clip_min, clip_max, rows, ids, thresholds, lasts, shares, row, samples, slots, size, channels,
    places, shrink, EACH_LOW: tl.constexpr, EACH_HIGH: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr,
    ALIGNED: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(mass of a row after a shrinkage, how many elements more of it would shorten, largest displacement)."""
    sample = entry(ids, row, samples)
    slot = entry(rows, row, slots)
    size = rows_of(size, ALIGNED)
    clean_row = x + sample * size
    here_row = x_adv + slot * size
    grad_row = grad + slot * size
    length = tl.where((sample >= 0) & (slot >= 0), size, 0)
    last = tl.load(lasts + row)
    if not WIDE:
        length = length.to(tl.int32)
        last = last.to(tl.int32)
        channels = channels.to(tl.int32)
        places = places.to(tl.int32)
    threshold = tl.load(thresholds + row)
    share = tl.load(shares + row)
    masses = tl.zeros((LANES,), tl.float64)
    carries = tl.zeros((LANES,), tl.float64)
    falling = tl.zeros((LANES,), tl.int32)
    most = tl.zeros((LANES,), tl.float64)
    for first in range(0, length, BLOCK):
        inside, clean, delta, room, _low, _high = chunk_of(
            clean_row, here_row, grad_row, clip_min, clip_max, first, length, channels, places, threshold, last, share,
            EACH_LOW, EACH_HIGH, LAST, BLOCK,
        )  # fmt: skip
        magnitude = tl.abs(delta)
        kept = thread_sum(tl.where(inside, kept_of(magnitude, shrink, room), 0.0), LANES, ALIGNED)
        falling += thread_sum((inside & falls(magnitude, shrink, room)).to(tl.int32), LANES, ALIGNED)
        largest = tl.max(in_groups(magnitude, LANES, ALIGNED), axis=1)
        most = tl.where(largest > most, largest, most)
        if clean.dtype == tl.float64:  # a margin of 2^-48 asks for compensated sums over many chunks
            summand = kept - carries
            sum = masses + summand
            carries = (sum - masses) - summand
            masses = sum
        else:
            masses += kept
    return tl.sum(masses, axis=0), tl.sum(falling.to(tl.float64), axis=0), tl.max(most, axis=0)


@triton.jit(do_not_specialize=["samples", "slots", "size", "channels", "places", "topk"])
def l1_moves_in_chunks(
    x,
    x_adv,
    grad,
    alpha,
    clip_min,
    clip_max,
    rows,
    ids,
    nonfinite,
    thresholds,
    lasts,
    shares,
    brackets,
    samples: tl.int64,
    slots: tl.int64,
    size: tl.int64,
    channels: tl.int64,
    places: tl.int64,
    topk: tl.int64,
    EACH_ALPHA: tl.constexpr,
    EACH_LOW: tl.constexpr,
    EACH_HIGH: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGNED: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Which elements move: those with a key above the threshold, and those on it up to the row-major index `last`; the
    share of alpha that each gets; and the bracket in which the shrinkage lies."""
    row = tl.program_id(0).to(tl.int64)
    sample = entry(ids, row, samples)
    slot = entry(rows, row, slots)
    real = (sample >= 0) & (slot >= 0)
    length = tl.where(real, rows_of(size, ALIGNED), 0)
    if not WIDE:
        length = length.to(tl.int32)
    grad_row = grad + slot * rows_of(size, ALIGNED)
    KEY: tl.constexpr = tl.int64 if grad.dtype.element_ty == tl.float64 else tl.int32

    # the topk-th largest key: at least topk keys are >= threshold, fewer are >= beyond
    largest = largest_key(grad_row, length, KEY, BLOCK)
    bad = is_infinite(largest)
    tl.store(nonfinite + row, bad)
    threshold = largest * 0
    beyond = tl.where(bad, threshold, largest + 1)
    whole = bad  # exactly topk keys are >= threshold
    while (whole == 0) & (beyond - threshold > 1):
        probe = threshold + ((beyond - threshold) >> 1)
        count = count_from(grad_row, probe, length, ALIGNED, LANES, BLOCK)
        threshold = tl.where(count >= topk, probe, threshold)
        beyond = tl.where(count >= topk, beyond, probe)
        whole = count == topk

    # of the elements on the threshold the first `tied`; zeros move nothing
    above = count_from(grad_row, threshold + 1, length, ALIGNED, LANES, BLOCK)
    equal = count_from(grad_row, threshold, length, ALIGNED, LANES, BLOCK) - above
    tied = tl.minimum(topk - above, equal)
    last = size
    if threshold == 0:
        last = tl.full((), -1, tl.int64)
        tied = tl.full((), 0, tl.int64)
    elif tied < equal:
        behind = tl.full((), -1, tl.int64)  # too few of them are <= behind, enough are <= last
        while last - behind > 1:
            middle = behind + ((last - behind) >> 1)
            before = count_tied(grad_row, threshold, middle, length, channels, places, LAST, ALIGNED, LANES, BLOCK)
            behind = tl.where(before >= tied, behind, middle)
            last = tl.where(before >= tied, middle, last)
    step = of_sample(alpha, sample, real, EACH_ALPHA).to(tl.float64)
    tl.store(thresholds + row, threshold.to(tl.int64))
    tl.store(lasts + row, last)
    tl.store(shares + row, tl.where(bad, 0.0, step / tl.maximum(above + tied, 1).to(tl.float64)))
    tl.debug_barrier()  # all threads read them

    mass, falling, most = mass_of(
        x, x_adv, grad, clip_min, clip_max, rows, ids, thresholds, lasts, shares, row, samples, slots, size, channels,
        places, 0.0, EACH_LOW, EACH_HIGH, LAST, WIDE, ALIGNED, LANES, BLOCK,
    )  # fmt: skip
    bracket = brackets + row * 5
    tl.store(bracket, mass * 0)
    tl.store(bracket + 1, most)
    tl.store(bracket + 2, mass)
    tl.store(bracket + 3, mass * 0)
    tl.store(bracket + 4, falling)


@triton.jit
def recall(bracket, number):
    """A number that is kept in memory, where it takes no register while a row is read."""
    return tl.load(bracket + number, volatile=True)


@triton.jit(do_not_specialize=["samples", "slots", "size", "channels", "places"])
def l1_shrinkage_in_chunks(
    x,
    x_adv,
    grad,
    eps,
    clip_min,
    clip_max,
    rows,
    ids,
    thresholds,
    lasts,
    shares,
    brackets,
    shrinks,
    samples: tl.int64,
    slots: tl.int64,
    size: tl.int64,
    channels: tl.int64,
    places: tl.int64,
    EACH_EPS: tl.constexpr,
    EACH_LOW: tl.constexpr,
    EACH_HIGH: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGNED: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The least shrinkage with a mass of at most the radius. Its bracket: (below, above, mass below, mass above, how
    many elements fall)."""
    row = tl.program_id(0).to(tl.int64)
    bracket = brackets + row * 5
    sample = entry(ids, row, samples)
    limit = inner_radius(of_sample(eps, sample, sample >= 0, EACH_EPS))
    shrink = tl.full((), 0.0, tl.float64)
    passes = tl.full((), 1, tl.int32)
    searching = (recall(bracket, 2) <= limit) == 0
    while searching:
        tl.debug_barrier()  # before it is read: what the last pass wrote
        shrink = next_probe(
            recall(bracket, 0), recall(bracket, 1), recall(bracket, 2), recall(bracket, 3), recall(bracket, 4), limit,
            passes,
        )  # fmt: skip
        mass, falling, _ = mass_of(
            x, x_adv, grad, clip_min, clip_max, rows, ids, thresholds, lasts, shares, row, samples, slots, size,
            channels, places, shrink, EACH_LOW, EACH_HIGH, LAST, WIDE, ALIGNED, LANES, BLOCK,
        )  # fmt: skip
        inner = mass <= limit
        searching = ((inner == 0) | (limit - mass > limit * 2.0**-30)) & (shrink < recall(bracket, 1))
        tl.debug_barrier()  # before it is written: all have read it
        if inner:
            tl.store(bracket + 1, shrink)
            tl.store(bracket + 3, mass)
        else:
            tl.store(bracket, shrink)
            tl.store(bracket + 2, mass)
            tl.store(bracket + 4, falling)
        passes += 1
    tl.store(shrinks + row, shrink)


@triton.jit(do_not_specialize=["samples", "slots", "size", "channels", "places", "segments"])
def l1_segment(
    x,
    x_adv,
    grad,
    clip_min,
    clip_max,
    rows,
    ids,
    next,
    thresholds,
    lasts,
    shares,
    shrinks,
    samples: tl.int64,
    slots: tl.int64,
    size: tl.int64,
    channels: tl.int64,
    places: tl.int64,
    segments: tl.int32,
    EACH_LOW: tl.constexpr,
    EACH_HIGH: tl.constexpr,
    LAST: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The step of a part of a row."""
    size = rows_of(size, ALIGNED)
    row, segment = row_and_segment(segments, True)
    sample = entry(ids, row, samples)
    slot = entry(rows, row, slots)
    length = tl.where((sample >= 0) & (slot >= 0), size, 0)
    first = segment.to(tl.int64) * BLOCK
    inside, clean, delta, room, low, high = chunk_of(
        x + sample * size, x_adv + slot * size, grad + slot * size, clip_min, clip_max, first, length, channels, places,
        tl.load(thresholds + row), tl.load(lasts + row), tl.load(shares + row), EACH_LOW, EACH_HIGH, LAST, BLOCK,
    )  # fmt: skip
    kept = kept_of(tl.abs(delta), tl.load(shrinks + row), room)
    point = project_point(clean, tl.where(delta > 0, kept, -kept), low, high)
    tl.store(next + (row * size + first) + tl.arange(0, BLOCK), point, mask=inside)


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
    """Three launches."""
    count, shape = next.shape[0], RowShape.of(x)
    each = 2 if torch.float64 in (x.dtype, grad.dtype) else 4
    block = CHUNK * each // 4
    segments = -(-shape.size // block)
    thresholds, lasts = torch.empty((2, count), dtype=torch.int64, device=x.device)
    shares, shrinks = torch.empty((2, count), dtype=torch.float64, device=x.device)
    brackets = torch.empty((count, 5), dtype=torch.float64, device=x.device)
    images, box, index = (x, x_adv, grad), (clip_min, clip_max), (rows, ids)
    moves = (thresholds, lasts, shares)
    sizes = (x.shape[0], x_adv.shape[0], shape.size, shape.channels, shape.places)
    how = {
        "EACH_LOW": per_channel(clip_min),
        "EACH_HIGH": per_channel(clip_max),
        "LAST": shape.last,
        "ALIGNED": aligned(shape.size, x, x_adv, grad, next),
        "BLOCK": block,
        "num_warps": warps(block, each),
        **({} if shape.last else at_most(40)),  # the channels of a chunk would be spilled
        **LAUNCH,
    }
    search = {"WIDE": shape.size >= WIDE, "LANES": block // each}
    each_alpha, each_eps = alpha.shape[0] > 1, eps.shape[0] > 1
    l1_moves_in_chunks[(count,)](
        *images, alpha, *box, *index, nonfinite, *moves, brackets, *sizes, topk, EACH_ALPHA=each_alpha, **search, **how
    )
    l1_shrinkage_in_chunks[(count,)](
        *images, eps, *box, *index, *moves, brackets, shrinks, *sizes, EACH_EPS=each_eps, **search, **how
    )
    l1_segment[(count * segments,)](*images, *box, *index, next, *moves, shrinks, *sizes, segments, **how)
