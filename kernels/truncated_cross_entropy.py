"""Cross-entropy of each row, its gradient, and the two flags of the attack. Plain: it is the caller who truncates.

A row that fits on chip is read once; a longer one twice, with a softmax that is put together lane by lane.
"""

from __future__ import annotations

import struct

import triton
import triton.language as tl
from torch import Tensor

from .logits import (
    add_terms,
    columns_from,
    inverse_of,
    joined_terms,
    label_of,
    lanes_of,
    log_of,
    logits_at,
    one_logit,
    rows_here,
    sample_of,
    tile_of,
    without_nan,
)
from .maths import exp_nonpositive
from .rounding import narrow
from .rows import LAUNCH, aligned, device_of, rows_of

ON_CHIP = 8192  # classes of a row that one program holds
CHUNK = 2048  # classes that it looks at at a time otherwise; half as many of fp64


@triton.jit
def store_row(loss, right, over, cut, row, there, sample, label, total, own, top, first, has_nan):
    """The loss and the flags of each row. No label: NaN, and neither right nor within the cut. Padding: zero."""
    value = log_of(total) - (own - top)
    value = tl.where(label >= 0, value, float("nan"))
    value = tl.where(sample >= 0, value, 0.0)
    limit = cut.to(tl.int64).to(tl.float64, bitcast=True).to(value.dtype)
    is_right = (label >= 0) & (first == label) & (has_nan == 0)
    is_over = (label < 0) | ((value <= limit) == 0)
    tl.store(loss + row, value, mask=there)
    tl.store(right + row, is_right, mask=there)
    tl.store(over + row, is_over, mask=there)


@triton.jit(do_not_specialize=["cut", "count", "samples", "classes"])
def cross_entropy(
    logits,
    target,
    ids,
    loss,
    grad,
    right,
    over,
    cut: tl.int64,
    count: tl.int64,
    samples: tl.int64,
    classes: tl.int32,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Whole rows on chip."""
    classes = rows_of(classes, ALIGNED)
    row, there = rows_here(count, ROWS)
    sample = sample_of(ids, row, there, samples)
    label = label_of(target, sample, classes)
    column, inside = columns_from(0, classes, there, COLUMNS)
    z = logits_at(logits, row, column, inside, classes)
    top = tl.max(without_nan(z), axis=1)
    term = tl.where(inside, exp_nonpositive(z - top[:, None]), 0.0)
    total = tl.sum(term, axis=1)
    own = one_logit(logits, row, label, label >= 0, classes)
    first = tl.min(tl.where(z == top[:, None], column, classes), axis=1)
    has_nan = tl.max((z != z).to(tl.int32), axis=1)
    store_row(loss, right, over, cut, row, there, sample, label, total, own, top, first, has_nan)
    slope = term * inverse_of(total)[:, None] - tl.where(column == label[:, None], 1.0, 0.0)
    slope = tl.where((label >= 0)[:, None], slope, 0.0)
    tl.store(grad + (row * classes)[:, None] + column, narrow(slope, grad.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["cut", "count", "samples", "classes"])
def cross_entropy_in_chunks(
    logits,
    target,
    ids,
    loss,
    grad,
    right,
    over,
    cut: tl.int64,
    count: tl.int64,
    samples: tl.int64,
    classes: tl.int32,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A row of any length: once for its softmax, once for its gradient."""
    classes = rows_of(classes, ALIGNED)
    T: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    row, there = rows_here(count, ROWS)
    sample = sample_of(ids, row, there, samples)
    label = label_of(target, sample, classes)
    LANES: tl.constexpr = COLUMNS // (2 if T == tl.float64 else 4)  # a thread each
    tops = tl.full((ROWS, LANES), float("-inf"), T)
    totals = tl.zeros((ROWS, LANES), T)
    firsts = tl.zeros((ROWS, LANES), tl.int32)  # where the largest logit stands first; -1 from a NaN on
    for start in range(0, classes, COLUMNS):
        column, inside = columns_from(start, classes, there, COLUMNS)
        z = lanes_of(logits_at(logits, row, column, inside, classes), LANES, ALIGNED)
        before = tops
        tops, totals, _ = add_terms(tops, totals, z)
        first = tl.min(tl.where(z == tops[:, :, None], lanes_of(column, LANES, ALIGNED), classes), axis=2)
        firsts = tl.where((tops > before) & (firsts >= 0), first, firsts)
        firsts = tl.where(tl.max((z != z).to(tl.int32), axis=2) == 0, firsts, -1)
    top, total = joined_terms(tops, totals)
    own = one_logit(logits, row, label, label >= 0, classes)
    first = tl.min(tl.where(tops == top[:, None], firsts, classes), axis=1)
    has_nan = (tl.min(firsts, axis=1) < 0).to(tl.int32)
    store_row(loss, right, over, cut, row, there, sample, label, total, own, top, first, has_nan)
    inverse = inverse_of(total)[:, None]
    for start in range(0, classes, COLUMNS):
        column, inside = columns_from(start, classes, there, COLUMNS)
        z = logits_at(logits, row, column, inside, classes)
        slope = exp_nonpositive(z - top[:, None]) * inverse - tl.where(column == label[:, None], 1.0, 0.0)
        slope = tl.where((label >= 0)[:, None], slope, 0.0)
        tl.store(grad + (row * classes)[:, None] + column, narrow(slope, grad.dtype.element_ty), mask=inside)


def launch(
    logits: Tensor,
    target: Tensor,
    ids: Tensor | None,
    cut: float,
    loss: Tensor,
    grad: Tensor,
    right: Tensor,
    over: Tensor,
) -> None:
    """The operands of the operator, then its outputs."""
    count, classes = logits.shape
    if count == 0:
        return
    tile = tile_of(logits, ON_CHIP, CHUNK)
    with device_of(logits):
        (cross_entropy if classes <= ON_CHIP else cross_entropy_in_chunks)[(-(-count // tile["ROWS"]),)](
            logits,
            target,
            ids,
            loss,
            grad,
            right,
            over,
            struct.unpack("<q", struct.pack("<d", cut))[0],  # a float would arrive in fp32
            count,
            target.shape[0],
            classes,
            ALIGNED=aligned(classes, logits, grad),
            **tile,
            **LAUNCH,
        )
