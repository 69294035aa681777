"""Rows of logits: tiles of them, their labels, and the softmax of a row too long for a tile."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .maths import exp_nonpositive, log_positive, reciprocal
from .rounding import wide
from .rows import at_most, in_range, tile, warps

SMALL = 512  # elements of a tile of several short rows


def tile_of(logits: Tensor, on_chip: int, chunk: int) -> dict[str, Any]:
    """How a kernel is launched: on a tile of several short rows, of a row that fits on chip, or of a chunk of one, with
    few registers."""
    classes = logits.shape[1]
    if classes > on_chip:
        each = 2 if logits.element_size() == 8 else 4
        columns = chunk * each // 4
        return {"ROWS": 1, "COLUMNS": columns, "num_warps": warps(columns, each), **at_most(40)}
    columns = tile(classes, 16, on_chip)
    rows = max(SMALL // columns, 1)
    return {"ROWS": rows, "COLUMNS": columns, "num_warps": warps(rows * columns, 4 if rows > 1 else 8)}


@triton.jit
def rows_here(count, ROWS: tl.constexpr):
    """The rows of this program, and which of them are there."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return row, row < count


@triton.jit
def sample_of(ids, row, there, samples):
    """The sample of each row, or -1 for padding and what is out of range."""
    sample = row
    if ids is not None:
        sample = tl.load(ids + row, mask=there, other=-1)
    return tl.where(there, in_range(sample, samples), -1)


@triton.jit
def label_of(labels, sample, classes):
    """The label of each sample, or -1 where there is none."""
    return in_range(tl.load(labels + sample, mask=sample >= 0, other=-1), classes)


@triton.jit
def columns_from(first, classes, there, COLUMNS: tl.constexpr):
    """(column, inside) of a tile: (1, COLUMNS) and (ROWS, COLUMNS)."""
    column = (first + tl.arange(0, COLUMNS))[None, :]
    return column, there[:, None] & (column < classes)


@triton.jit
def logits_at(logits, row, column, inside, classes):
    """A tile of logits in the dtype of the loss; -inf outside."""
    at = (row * classes)[:, None] + column
    return wide(tl.load(logits + at, mask=inside, other=float("-inf")))


@triton.jit
def one_logit(logits, row, column, there, classes):
    """One logit of each row."""
    return wide(tl.load(logits + row * classes + column, mask=there, other=0))


@triton.jit
def without_nan(z):
    return tl.where(z == z, z, float("-inf"))


@triton.jit
def log_of(total):
    return log_positive(total.to(tl.float64)).to(total.dtype)


@triton.jit
def inverse_of(total):
    return reciprocal(total.to(tl.float64)).to(total.dtype)


@triton.jit
def rescaled(total, before, after):
    """A sum of exp(z - before) as one of exp(z - after)."""
    return total * tl.where(before == after, 1.0, exp_nonpositive(before - after))


@triton.jit
def lanes_of(tile, LANES: tl.constexpr, ALIGNED: tl.constexpr):
    """A tile as (rows, lanes, group), each group in one thread: neighbours where loads are wide, else what lies LANES
    apart."""
    rows: tl.constexpr = tile.shape[0]
    group: tl.constexpr = tile.shape[1] // LANES
    if ALIGNED:
        groups = tl.reshape(tile, (rows, LANES, group))
    else:
        groups = tl.permute(tl.reshape(tile, (rows, group, LANES)), (0, 2, 1))
    return groups


@triton.jit
def add_terms(top, total, z):
    """(largest logit so far, sum of exp(z - largest)) of each lane with a group of logits more, z (rows, lanes, group),
    and what each of these added."""
    higher = tl.maximum(top, tl.max(without_nan(z), axis=2))
    term = tl.where(z == float("-inf"), 0.0, exp_nonpositive(z - higher[:, :, None]))
    return higher, rescaled(total, top, higher) + tl.sum(term, axis=2), term


@triton.jit
def joined_terms(top, total):
    """(largest logit, sum) of a row from those of its lanes; NaN where no logit is larger than -inf."""
    largest = tl.max(top, axis=1)
    whole = tl.sum(rescaled(total, top, largest[:, None]), axis=1)
    return largest, tl.where(largest == float("-inf"), float("nan"), whole)
