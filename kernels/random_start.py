"""The start of an attack: uniform noise in the ball, keyed by sample and row-major index, cut by the box.

Linf reads x and writes the start, once each, in one launch. L2 and L1 scale a direction by its length: one launch for
a row that fits on chip, else two, the first of which only makes noise.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .maths import exp_nonpositive, log_positive
from .noise import four_in_a_row, normal_pair, one_of_four, philox, signed_exponential, uniform
from .rounding import inner_radius, into_ball_and_box, project_point
from .rows import (
    LAUNCH,
    RowShape,
    aligned,
    at_most,
    channel_of,
    device_of,
    elements_left,
    entry,
    logical_index,
    lower_bound,
    of_sample,
    per_channel,
    row_and_segment,
    rows_of,
    tile,
    upper_bound,
    warps,
)

SEGMENT = 1024  # elements of a row that one program makes; half as many of fp64
ON_CHIP = 4096  # elements of a row whose length one program can sum, L2 and L1
PARTS = 256  # partial sums that are added up at a time
RADIUS_BLOCK = tl.constexpr(-1)  # the counter block, 2**64 - 1, whose first word draws what a whole row shares


@triton.jit
def key_of(sample_ids, sample, real):
    key = sample
    if sample_ids is not None:
        key = tl.load(sample_ids + sample, mask=real, other=0)
    return key


@triton.jit
def counter_of(index, WIDE: tl.constexpr):
    """The counter block of each element; unless WIDE, its upper half is seen to be zero, which saves registers."""
    block = index >> 2
    if not WIDE:
        block = block.to(tl.uint32)
    return block.to(tl.int64)


@triton.jit
def offsets(at, channels, places, WIDE: tl.constexpr):
    """What an element is indexed by, in 32 bits unless WIDE."""
    if not WIDE:
        at = at.to(tl.int32)
        channels = channels.to(tl.int32)
        places = places.to(tl.int32)
    return at, channels, places


@triton.jit
def word_at(seed, key, index, WIDE: tl.constexpr, ROLLED: tl.constexpr = False):
    a, b, c, d = philox(seed, key, counter_of(index, WIDE), ROLLED)
    return one_of_four(index, a, b, c, d)


@triton.jit
def normal_at(seed, key, index, WIDE: tl.constexpr):
    a, b, c, d = philox(seed, key, counter_of(index, WIDE))
    second = (index & 2) == 2
    even, odd = normal_pair(tl.where(second, c, a), tl.where(second, d, b))
    return tl.where((index & 1) == 1, odd, even)


@triton.jit
def exponential_at(seed, key, index, WIDE: tl.constexpr):
    return signed_exponential(word_at(seed, key, index, WIDE, True))


@triton.jit
def one_by_one(
    noise_at: tl.constexpr, T: tl.constexpr, seed, key, first, channels, places, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """What `noise_at` makes, in T, of the BLOCK elements from offset `first` of a row in channels_last: of every four
    one after the other, since four chains of Philox at once take twice the registers."""
    place = tl.arange(0, 4)[None, :]
    made = tl.zeros((BLOCK // 4, 4), T)
    at, channels, places = offsets(first + 4 * tl.arange(0, BLOCK // 4), channels, places, WIDE)
    for each in tl.range(0, 4, loop_unroll_factor=1):
        own = noise_at(seed, key, logical_index(at + each, channels, places, True), WIDE)
        made = tl.where(place == each, own[:, None], made)
    return tl.reshape(made, (BLOCK,))


@triton.jit
def words_of(seed, key, first, channels, places, LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The word of each of the BLOCK elements from offset `first` (a multiple of 4) of a row."""
    if LAST:
        words = one_by_one(word_at, tl.uint32, seed, key, first, channels, places, WIDE, BLOCK)
    else:
        a, b, c, d = philox(seed, key, first // 4 + tl.arange(0, BLOCK // 4))
        words = four_in_a_row(a, b, c, d)
    return words


@triton.jit
def normals_of(seed, key, first, channels, places, LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The standard normal of each of those elements, fp64."""
    if LAST:
        normals = one_by_one(normal_at, tl.float64, seed, key, first, channels, places, WIDE, BLOCK)
    else:
        a, b, c, d = philox(seed, key, first // 4 + tl.arange(0, BLOCK // 4))
        n0, n1 = normal_pair(a, b)
        n2, n3 = normal_pair(c, d)
        normals = four_in_a_row(n0, n1, n2, n3)
    return normals


@triton.jit
def noise_of(
    seed, key, first, channels, places, L2: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """The direction of an L2 or an L1 start, not yet scaled."""
    if L2:
        noise = normals_of(seed, key, first, channels, places, LAST, WIDE, BLOCK)
    elif LAST:
        noise = one_by_one(exponential_at, tl.float64, seed, key, first, channels, places, WIDE, BLOCK)
    else:
        noise = signed_exponential(words_of(seed, key, first, channels, places, LAST, WIDE, BLOCK))
    return noise


@triton.jit
def mass_of(noise, inside, L2: tl.constexpr):
    """What the elements of a row add to the square of its L2 norm, or to its L1 norm."""
    each = noise * noise if L2 else tl.abs(noise)
    return tl.sum(tl.where(inside, each, 0.0), axis=0)


@triton.jit
def scale_of(seed, key, mass, radius, size, L2: tl.constexpr):
    """What makes of the direction a uniform point of the ball, from the word that the row shares."""
    word, _, _, _ = philox(seed, key, tl.full((), RADIUS_BLOCK, tl.int64), True)
    logarithm = log_positive(uniform(word, tl.float64))
    if L2:
        # u^(1/size): the share of the radius
        share = exp_nonpositive(logarithm / tl.maximum(size, 1).to(tl.float64)) / tl.sqrt(mass)
    else:
        share = 1 / (mass - logarithm)
    return share * inner_radius(radius)


@triton.jit(do_not_specialize=["samples", "size", "channels", "places", "segments"])
def linf_start(
    x,
    eps,
    seed,
    sample_ids,
    clip_min,
    clip_max,
    ids,
    start,
    samples: tl.int64,
    size: tl.int64,
    channels: tl.int64,
    places: tl.int64,
    segments: tl.int32,
    EACH_EPS: tl.constexpr,
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
    real = sample >= 0
    first = segment.to(tl.int64) * BLOCK
    within = tl.arange(0, BLOCK)
    inside = within < elements_left(size, first, real, BLOCK)
    word = words_of(tl.load(seed), key_of(sample_ids, sample, real), first, channels, places, LAST, WIDE, BLOCK)
    clean = tl.load(x + (sample * size + first) + within, mask=inside, other=0)
    radius = of_sample(eps, sample, real, EACH_EPS)

    channel = within
    if EACH_LOW or EACH_HIGH:
        at, channels, places = offsets(first + within, channels, places, WIDE)
        channel = channel_of(at, channels, places, LAST)
    low = lower_bound(clip_min, channel, inside, EACH_LOW, clean.dtype)
    high = upper_bound(clip_max, channel, inside, EACH_HIGH, clean.dtype)
    noise = radius * (uniform(word, clean.dtype) * 2 - 1)
    point = into_ball_and_box(clean + noise, clean, radius, low, high)
    tl.store(start + (row * size + first) + within, point, mask=inside)


@triton.jit(do_not_specialize=["samples", "size", "segments"])
def noise_mass(
    seed,
    sample_ids,
    ids,
    masses,
    samples: tl.int64,
    size: tl.int64,
    segments: tl.int32,
    L2: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A part of the length of a row's direction, in the order of its counters, whatever the memory format."""
    row, segment = row_and_segment(segments, True)
    sample = entry(ids, row, samples)
    real = sample >= 0
    first = segment.to(tl.int64) * BLOCK
    inside = tl.arange(0, BLOCK) < elements_left(size, first, real, BLOCK)
    noise = noise_of(tl.load(seed), key_of(sample_ids, sample, real), first, 1, 1, L2, False, False, BLOCK)
    tl.store(masses + row * segments + segment, mass_of(noise, inside, L2))


@triton.jit(do_not_specialize=["samples", "size", "channels", "places", "segments"])
def scaled_start(
    x,
    eps,
    seed,
    sample_ids,
    clip_min,
    clip_max,
    ids,
    start,
    masses,
    samples: tl.int64,
    size: tl.int64,
    channels: tl.int64,
    places: tl.int64,
    segments: tl.int32,
    L2: tl.constexpr,
    EACH_EPS: tl.constexpr,
    EACH_LOW: tl.constexpr,
    EACH_HIGH: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A row on chip, or, given the `masses` of its segments, one of them."""
    size = rows_of(size, ALIGNED)
    row, segment = row_and_segment(segments, masses is not None)
    sample = entry(ids, row, samples)
    real = sample >= 0
    first = segment.to(tl.int64) * BLOCK
    within = tl.arange(0, BLOCK)
    inside = within < elements_left(size, first, real, BLOCK)
    radius = of_sample(eps, sample, real, EACH_EPS)
    key = key_of(sample_ids, sample, real)
    seed = tl.load(seed)
    if masses is None:
        noise = noise_of(seed, key, first, channels, places, L2, LAST, WIDE, BLOCK)
        noise = noise * scale_of(seed, key, mass_of(noise, inside, L2), radius, size, L2)
    else:
        # the length first: it needs many registers, and so do the elements of the row
        mass = tl.full((), 0.0, tl.float64)
        for part in range(0, segments, PARTS):
            at_part = part + tl.arange(0, PARTS)
            mass += tl.sum(tl.load(masses + row * segments + at_part, mask=at_part < segments, other=0), axis=0)
        scale = scale_of(seed, key, mass, radius, size, L2)
        noise = scale * noise_of(seed, key, first, channels, places, L2, LAST, WIDE, BLOCK)
    clean = tl.load(x + (sample * size + first) + within, mask=inside, other=0)
    channel = within
    if EACH_LOW or EACH_HIGH:
        at, channels, places = offsets(first + within, channels, places, WIDE)
        channel = channel_of(at, channels, places, LAST)
    low = lower_bound(clip_min, channel, inside, EACH_LOW, clean.dtype)
    high = upper_bound(clip_max, channel, inside, EACH_HIGH, clean.dtype)
    tl.store(start + (row * size + first) + within, project_point(clean, noise, low, high), mask=inside)


def launch(
    x: Tensor,
    eps: Tensor,
    seed: Tensor,
    sample_ids: Tensor | None,
    clip_min: Tensor | None,
    clip_max: Tensor | None,
    ids: Tensor | None,
    p: float,
    start: Tensor,
) -> None:
    """The operands of the operator, dense and in one memory format, then its output."""
    count, shape = start.shape[0], RowShape.of(x)
    if count == 0 or shape.size == 0:
        return
    operands = (x, eps, seed, sample_ids, clip_min, clip_max, ids, start)
    sizes = (x.shape[0], shape.size, shape.channels, shape.places)
    kinds = {
        "EACH_EPS": eps.shape[0] > 1,
        "EACH_LOW": per_channel(clip_min),
        "EACH_HIGH": per_channel(clip_max),
        "ALIGNED": aligned(shape.size, x, start),
        "LAST": shape.last,
        "WIDE": shape.size >= 2**31,
    }
    vector = 16 // x.element_size()
    block = tile(shape.size, 32 * vector, SEGMENT * vector // 4)
    segments = -(-shape.size // block)
    with device_of(x):
        if p == math.inf:
            linf_start[(count * segments,)](
                *operands,
                *sizes,
                segments,
                **kinds,
                SPLIT=segments > 1,
                BLOCK=block,
                num_warps=warps(block, vector),
                **LAUNCH,
            )
            return
        masses, how = None, {}
        if shape.size <= ON_CHIP:
            block, segments = tile(shape.size, 128, ON_CHIP), 1
            how["num_warps"] = warps(block, 8)
            if shape.last:
                how |= at_most(128)  # left alone, the compiler takes 64 for sm_80 and spills
        else:
            how["num_warps"] = warps(block, vector)
            how |= at_most(40)
            masses = torch.empty((count, segments), dtype=torch.float64, device=x.device)
            noise_mass[(count * segments,)](
                seed,
                sample_ids,
                ids,
                masses,
                *sizes[:2],
                segments,
                L2=p == 2.0,
                BLOCK=block,
                num_warps=warps(block, 4),
                **at_most(40),
                **LAUNCH,
            )
        scaled_start[(count * segments,)](
            *operands,
            masses,
            *sizes,
            segments,
            L2=p == 2.0,
            **kinds,
            BLOCK=block,
            PARTS=tile(segments, 32, PARTS),
            **how,
            **LAUNCH,
        )
