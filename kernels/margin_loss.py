"""The margin z_other - z_target of each row and its gradient, plain or divided by the spread of the logits (DLR).

The largest logits are found in one pass: each lane keeps its own, then the lanes are merged. The gradient depends on
the logits through no more than their indices, so that a row of any length is read once, in one launch.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .logits import columns_from, label_of, logits_at, one_logit, rows_here, sample_of, tile_of
from .rounding import bits_of, narrow
from .rows import LAUNCH, aligned, device_of, rows_of

ON_CHIP = 2048  # classes that a program looks at at a time; half as many of fp64
NOWHERE = tl.constexpr(0x7FFFFFFF)


@triton.jit
def order_key(z):
    """An integer that orders like z; both zeros are one, and NaN is larger than anything."""
    bits = bits_of(z + 0.0)
    if z.dtype == tl.float64:
        key = bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)
        key = tl.where(z == z, key, 0x7FFFFFFFFFFFFFFF)
    else:
        key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        key = tl.where(z == z, key, 0x7FFFFFFF)
    return key


@triton.jit
def insert(key, index, best, where, DISPLACED: tl.constexpr):
    """Puts (key, index) into its place in a lane, of equal keys the lower index first; returns what it displaces and
    what stays. Only what was DISPLACED may have a lower index than what is there."""
    larger = key > best
    if DISPLACED:
        larger = larger | ((key == best) & (index < where))
    return (
        tl.where(larger, best, key),
        tl.where(larger, where, index),
        tl.where(larger, key, best),
        tl.where(larger, index, where),
    )


@triton.jit
def first_of(best, where):
    """The lowest index of the largest key of each row."""
    largest = tl.max(best, axis=1)
    return tl.min(tl.where(best == largest[:, None], where, NOWHERE), axis=1)


@triton.jit(do_not_specialize=["count", "samples", "classes"])
def margin(
    logits,
    target,
    other,
    ids,
    loss,
    grad,
    count: tl.int64,
    samples: tl.int64,
    classes: tl.int32,
    DLR: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    classes = rows_of(classes, ALIGNED)
    T: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    row, there = rows_here(count, ROWS)
    sample = sample_of(ids, row, there, samples)
    label = label_of(target, sample, classes)
    if T == tl.float64:
        lowest = tl.full((ROWS, COLUMNS), -0x8000000000000000, tl.int64)
    else:
        lowest = tl.full((ROWS, COLUMNS), -0x80000000, tl.int32)
    nowhere = tl.full((ROWS, COLUMNS), NOWHERE, tl.int32)
    a, b, c, d = lowest, lowest, lowest, lowest
    at_a, at_b, at_c, at_d = nowhere, nowhere, nowhere, nowhere
    if (other is None) or DLR:
        for start in range(0, classes, COLUMNS):
            column, inside = columns_from(start, classes, there, COLUMNS)
            key = tl.where(inside, order_key(logits_at(logits, row, column, inside, classes)), lowest)
            index = tl.where(inside, column, nowhere)
            key, index, a, at_a = insert(key, index, a, at_a, False)
            key, index, b, at_b = insert(key, index, b, at_b, True)
            if DLR:
                key, index, c, at_c = insert(key, index, c, at_c, True)
                if other is not None:
                    key, index, d, at_d = insert(key, index, d, at_d, True)
    first = first_of(a, at_a)
    popped = at_a == first[:, None]
    a, at_a = tl.where(popped, b, a), tl.where(popped, at_b, at_a)
    b, at_b = tl.where(popped, c, b), tl.where(popped, at_c, at_b)
    c, at_c = tl.where(popped, d, c), tl.where(popped, at_d, at_c)
    second = first_of(a, at_a)
    third = first
    fourth = first
    if DLR:
        popped = at_a == second[:, None]
        a, at_a = tl.where(popped, b, a), tl.where(popped, at_b, at_a)
        b, at_b = tl.where(popped, c, b), tl.where(popped, at_c, at_b)
        third = first_of(a, at_a)
        if other is not None:
            popped = at_a == third[:, None]
            a = tl.where(popped, b, a)
            at_a = tl.where(popped, at_b, at_a)
            fourth = first_of(a, at_a)

    rival = tl.where(first == label, second, first).to(tl.int64)
    if other is not None:
        rival = label_of(other, sample, classes)
    good = (label >= 0) & (rival >= 0)
    value = one_logit(logits, row, rival, good, classes) - one_logit(logits, row, label, good, classes)
    inverse = value * 0 + 1
    if DLR:
        spread = one_logit(logits, row, first, good, classes)
        if other is None:
            spread = spread - one_logit(logits, row, third, good, classes)
        else:
            z3 = one_logit(logits, row, third, good, classes)
            z4 = one_logit(logits, row, fourth, good, classes)
            spread = spread - (z3 + z4) / 2
        spread = spread + 1e-12
        value = value / spread
        inverse = 1 / spread
    tl.store(loss + row, tl.where(good, value, tl.where(sample >= 0, float("nan"), 0.0)), mask=there)
    for start in range(0, classes, COLUMNS):
        column, inside = columns_from(start, classes, there, COLUMNS)
        slope = (column == rival[:, None]).to(T) - (column == label[:, None]).to(T)
        if DLR:
            spread_slope = (column == third[:, None]).to(T)
            if other is not None:
                spread_slope = (spread_slope + (column == fourth[:, None]).to(T)) / 2
            spread_slope = (column == first[:, None]).to(T) - spread_slope
            slope = (slope - value[:, None] * spread_slope) * inverse[:, None]
        slope = tl.where(good[:, None], slope, 0.0)
        tl.store(grad + (row * classes)[:, None] + column, narrow(slope, grad.dtype.element_ty), mask=inside)


def launch(
    logits: Tensor,
    target: Tensor,
    other: Tensor | None,
    ids: Tensor | None,
    dlr: bool,
    loss: Tensor,
    grad: Tensor,
) -> None:
    """The operands of the operator, then its outputs."""
    count, classes = logits.shape
    if count == 0:
        return
    tile = tile_of(logits, ON_CHIP, ON_CHIP)
    with device_of(logits):
        margin[(-(-count // tile["ROWS"]),)](
            logits,
            target,
            other,
            ids,
            loss,
            grad,
            count,
            target.shape[0],
            classes,
            DLR=dlr,
            ALIGNED=aligned(classes, logits, grad),
            **tile,
            **LAUNCH,
        )
