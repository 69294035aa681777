"""KL(p_clean || p_adv) of each row, and its gradients with respect to both logits.

A row that fits on chip is read once; a longer one twice: the divergence comes of sums that are kept thread by thread.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .logits import (
    add_terms,
    columns_from,
    inverse_of,
    joined_terms,
    lanes_of,
    log_of,
    logits_at,
    rescaled,
    rows_here,
    sample_of,
    tile_of,
    without_nan,
)
from .maths import exp_nonpositive
from .rounding import narrow
from .rows import LAUNCH, aligned, device_of, rows_of

ON_CHIP = 4096  # classes of a row that one program holds
CHUNK = 2048  # classes that it looks at at a time otherwise; half as many of fp64


@triton.jit
def store_slopes(
    adv_grad, clean_grad, row, column, inside, classes, real, p, q, ratio, value, BOTH: tl.constexpr
):  # fmt: skip
    """The gradients of a tile; `ratio`: log p - log q, which counts for nothing where p is zero."""
    at = (row * classes)[:, None] + column
    slope = tl.where(real[:, None], q - p, 0.0)
    tl.store(adv_grad + at, narrow(slope, adv_grad.dtype.element_ty), mask=inside)
    if BOTH:
        slope = p * (tl.where(p == 0, 0.0, ratio) - value[:, None])
        slope = tl.where(real[:, None], slope, 0.0)
        tl.store(clean_grad + at, narrow(slope, clean_grad.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count", "samples", "classes"])
def divergence(
    clean,
    adv,
    ids,
    loss,
    adv_grad,
    clean_grad,
    count: tl.int64,
    samples: tl.int64,
    classes: tl.int32,
    BOTH: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Whole rows on chip."""
    classes = rows_of(classes, ALIGNED)
    row, there = rows_here(count, ROWS)
    sample = sample_of(ids, row, there, samples)
    real = sample >= 0
    column, inside = columns_from(0, classes, there, COLUMNS)
    _, known = columns_from(0, classes, real, COLUMNS)
    z = logits_at(clean, sample, column, known, classes)
    w = logits_at(adv, row, column, inside, classes)
    z = z - tl.max(without_nan(z), axis=1)[:, None]
    w = w - tl.max(without_nan(w), axis=1)[:, None]
    p = tl.where(inside, exp_nonpositive(z), 0.0)
    q = tl.where(inside, exp_nonpositive(w), 0.0)
    total_p = tl.sum(p, axis=1)
    total_q = tl.sum(q, axis=1)
    shift = log_of(total_q) - log_of(total_p)
    p = p * inverse_of(total_p)[:, None]
    q = q * inverse_of(total_q)[:, None]
    ratio = (z - w) + shift[:, None]
    value = tl.sum(tl.where(p == 0, 0.0, p * ratio), axis=1)
    tl.store(loss + row, tl.where(real, value, 0.0), mask=there)
    store_slopes(adv_grad, clean_grad, row, column, inside, classes, real, p, q, ratio, value, BOTH)


@triton.jit
def retold(sums, mass, before_p, before_q, after_p, after_q):
    """A sum of e^(z - top_p) * ((z - top_p) - (w - top_q)) from larger tops; `mass`: that of e^(z - before_p)."""
    moved = (after_p - before_p) - (after_q - before_q)
    moved = tl.where((before_p == float("-inf")) | (before_q == float("-inf")), 0.0, moved)  # nothing was summed
    factor = rescaled(1.0, before_p, after_p)
    return tl.where(factor == 0, 0.0, (sums - mass * moved) * factor)  # what has no weight left may be infinite


@triton.jit(do_not_specialize=["count", "samples", "classes"])
def divergence_in_chunks(
    clean,
    adv,
    ids,
    loss,
    adv_grad,
    clean_grad,
    count: tl.int64,
    samples: tl.int64,
    classes: tl.int32,
    BOTH: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A row of any length: once for both softmaxes and the divergence, once for the gradients."""
    classes = rows_of(classes, ALIGNED)
    T: tl.constexpr = tl.float64 if adv.dtype.element_ty == tl.float64 else tl.float32
    row, there = rows_here(count, ROWS)
    sample = sample_of(ids, row, there, samples)
    real = sample >= 0
    LANES: tl.constexpr = COLUMNS // (2 if T == tl.float64 else 4)  # a thread each
    tops_p = tl.full((ROWS, LANES), float("-inf"), T)
    tops_q = tl.full((ROWS, LANES), float("-inf"), T)
    totals_p = tl.zeros((ROWS, LANES), T)
    totals_q = tl.zeros((ROWS, LANES), T)
    sums = tl.zeros((ROWS, LANES), T)  # of e^(z - top_p) * ((z - top_p) - (w - top_q))
    barred = tl.full((ROWS, LANES), float("-inf"), T)  # the largest z of a class that is impossible for adv
    for start in range(0, classes, COLUMNS):
        column, inside = columns_from(start, classes, there, COLUMNS)
        _, known = columns_from(start, classes, real, COLUMNS)
        z = lanes_of(logits_at(clean, sample, column, known, classes), LANES, ALIGNED)
        w = lanes_of(logits_at(adv, row, column, inside, classes), LANES, ALIGNED)
        before_p = tops_p
        before_q = tops_q
        mass = totals_p
        tops_p, totals_p, term = add_terms(tops_p, totals_p, z)
        tops_q, totals_q, _ = add_terms(tops_q, totals_q, w)
        never = (w == float("-inf")) & (z > float("-inf"))
        barred = tl.maximum(barred, tl.max(tl.where(never, z, float("-inf")), axis=2))
        gap = (z - tops_p[:, :, None]) - (w - tops_q[:, :, None])
        gap = tl.where(never | (term == 0), 0.0, term * gap)
        sums = retold(sums, mass, before_p, before_q, tops_p, tops_q) + tl.sum(gap, axis=2)
    top_p, total_p = joined_terms(tops_p, totals_p)
    top_q, total_q = joined_terms(tops_q, totals_q)
    whole = tl.sum(retold(sums, totals_p, tops_p, tops_q, top_p[:, None], top_q[:, None]), axis=1)
    inverse_p = inverse_of(total_p)
    inverse_q = inverse_of(total_q)
    shift = log_of(total_q) - log_of(total_p)
    value = whole * inverse_p + shift
    # only now it shows whether such a class has a probability for clean that is more than 0, and adv a distribution
    likely = exp_nonpositive(tl.max(barred, axis=1) - top_p) * inverse_p > 0
    value = tl.where(likely & (total_q == total_q), float("inf"), value)
    tl.store(loss + row, tl.where(real, value, 0.0), mask=there)
    for start in range(0, classes, COLUMNS):
        column, inside = columns_from(start, classes, there, COLUMNS)
        _, known = columns_from(start, classes, real, COLUMNS)
        z = logits_at(clean, sample, column, known, classes) - top_p[:, None]
        w = logits_at(adv, row, column, inside, classes) - top_q[:, None]
        p = exp_nonpositive(z) * inverse_p[:, None]
        q = exp_nonpositive(w) * inverse_q[:, None]
        ratio = (z - w) + shift[:, None]
        store_slopes(adv_grad, clean_grad, row, column, inside, classes, real, p, q, ratio, value, BOTH)


def launch(
    clean: Tensor,
    adv: Tensor,
    ids: Tensor | None,
    both: bool,
    loss: Tensor,
    adv_grad: Tensor,
    clean_grad: Tensor,
) -> None:
    """The operands of the operator, then its outputs; `clean_grad` has no rows unless `both`."""
    count, classes = adv.shape
    if count == 0:
        return
    tile = tile_of(adv, ON_CHIP, CHUNK)
    with device_of(adv):
        (divergence if classes <= ON_CHIP else divergence_in_chunks)[(-(-count // tile["ROWS"]),)](
            clean,
            adv,
            ids,
            loss,
            adv_grad,
            clean_grad,
            count,
            clean.shape[0],
            classes,
            BOTH=both,
            ALIGNED=aligned(classes, clean, adv, adv_grad, *([clean_grad] if both else [])),
            **tile,
            **LAUNCH,
        )
