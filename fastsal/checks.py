"""The checks that every operator's contract is made of: one clear error that says name, expected, got.

Shapes, dtypes and devices are looked at on the host. The second half looks at values, and so waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)
GRADIENTS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MIN_CLASSES, MAX_CLASSES = 2, 100_000
NORMS = (math.inf, 2.0, 1.0)  # the values that an operator's argument `p` takes


def fail(kind: type[Exception], operator: str, name: str, expected: str, got: object) -> None:
    raise kind(f"fastsal.{operator}: {name}: expected {expected}, got {got}")


def shape(operator: str, name: str, tensor: Tensor, expected: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(expected):
        fail(ValueError, operator, name, f"shape {tuple(expected)}", tuple(tensor.shape))


def dtype(operator: str, name: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    if tensor.dtype not in allowed:
        fail(TypeError, operator, name, " or ".join(str(dtype) for dtype in allowed), tensor.dtype)


def device(operator: str, device: torch.device, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            fail(ValueError, operator, name, f"device {device}", tensor.device)


def batch(operator: str, name: str, x: Tensor) -> None:
    if x.dim() < 1:
        fail(ValueError, operator, name, "a batch dimension, shape (N, ...)", tuple(x.shape))


def index(operator: str, name: str, index: Tensor | None, length: int | None = None) -> None:
    if index is None:
        return
    dtype(operator, name, index, (torch.int64,))
    if index.dim() != 1 or (length is not None and index.shape[0] != length):
        fail(ValueError, operator, name, f"shape ({'M' if length is None else length},)", tuple(index.shape))


def per_sample(operator: str, name: str, value: Tensor, x: Tensor) -> None:
    dtype(operator, name, value, (x.dtype,))
    if value.dim() != 1 or (value.shape[0] != 1 and value.shape[0] != x.shape[0]):
        fail(ValueError, operator, name, f"shape (1,) or ({x.shape[0]},)", tuple(value.shape))


def bound(operator: str, name: str, value: Tensor | None, x: Tensor) -> None:
    if value is None:
        return
    dtype(operator, name, value, (x.dtype,))
    channels = x.shape[1] if x.dim() > 1 else 1
    if value.dim() != 1 or (value.shape[0] != 1 and value.shape[0] != channels):
        fail(ValueError, operator, name, f"shape (1,) or ({channels},), one per channel", tuple(value.shape))


def norm(operator: str, p: float) -> None:
    if p not in NORMS:
        fail(ValueError, operator, "p", "inf, 2.0 or 1.0", p)


def logits(operator: str, name: str, scores: Tensor, fewest: int = MIN_CLASSES, why: str = "") -> None:
    dtype(operator, name, scores, GRADIENTS)
    if scores.dim() != 2 or not fewest <= scores.shape[1] <= MAX_CLASSES:
        expected = f"shape (M, C) with {fewest} <= C <= {MAX_CLASSES}{why}"
        fail(ValueError, operator, name, expected, tuple(scores.shape))


# --------------------------------------------------------------------------------------- value checks


def in_range(operator: str, name: str, index: Tensor | None, low: int, high: int) -> None:
    """Every element in [low, high); the first that is not is named."""
    if index is None or index.numel() == 0:
        return
    wrong = (index < low) | (index >= high)
    if bool(wrong.any()):
        at = int(wrong.to(torch.int8).argmax())
        fail(ValueError, operator, name, f"values in [{low}, {high})", f"{int(index[at])} at position {at}")


def finite(operator: str, name: str, value: Tensor, nonnegative: bool) -> None:
    wrong = ~torch.isfinite(value)
    if nonnegative:
        wrong |= value < 0
    if bool(wrong.any()):
        at = int(wrong.to(torch.int8).argmax())
        expected = "finite and >= 0" if nonnegative else "finite"
        fail(ValueError, operator, name, expected, f"{value[at].item()} at position {at}")


def channel_view(bound: Tensor, x: Tensor) -> Tensor:
    """A (1,) or (C,) bound, shaped to broadcast against x of shape (N, C, ...)."""
    return bound if bound.shape[0] == 1 else bound.view(1, -1, *[1] * (x.dim() - 2))


def in_box(operator: str, x: Tensor, ids: Tensor | None, clip_min: Tensor | None, clip_max: Tensor | None) -> None:
    """The samples `ids` of x, or all of them; padding (-1) asks for none."""
    for name, bound in (("clip_min", clip_min), ("clip_max", clip_max)):
        if bound is not None and bool(bound.isnan().any()):
            fail(ValueError, operator, name, "numbers", bound.tolist())
    samples = torch.arange(x.shape[0], device=x.device) if ids is None else ids[ids >= 0]
    rows = x if ids is None else x[samples]
    low = torch.full_like(rows, -math.inf) if clip_min is None else channel_view(clip_min, x).expand_as(rows)
    high = torch.full_like(rows, math.inf) if clip_max is None else channel_view(clip_max, x).expand_as(rows)
    inside = torch.isfinite(rows) & (rows >= low) & (rows <= high)
    if not bool(inside.all()):
        at = tuple(int(place) for place in (~inside).nonzero()[0])
        box = f"[{low[at].item():.9g}, {high[at].item():.9g}]"
        got = f"{rows[at].item():.9g} in row {int(samples[at[0]])} at {at[1:]}"
        fail(ValueError, operator, "x", f"finite values in [clip_min, clip_max], here {box}", got)
