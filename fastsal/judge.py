"""What the attack asks of the logits: the direction to ascend, and which rows are right, and over the cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsal import backends  # noqa: F401  (binds the operators)

_cross_entropy = torch.ops.fastsal.truncated_cross_entropy.default
_margin = torch.ops.fastsal.margin_loss.default
_kl = torch.ops.fastsal.kl_divergence.default

LOSSES = ("ce", "kl", "margin", "dlr")


@dataclass(frozen=True)
class TargetedMargin:
    """The loss z_other - z_y with one class `other` (N,) int64 per sample, each different from its y.

    dlr: divided as in targeted DLR, by z_1 - (z_3 + z_4) / 2 of the sorted logits.
    """

    other: Tensor
    dlr: bool = False


class Verdict(NamedTuple):
    """Of the rows of one forward: the loss that is ascended (M,), its gradient (M, C), and two flags (M,)."""

    loss: Tensor | None = None
    ascent: Tensor | None = None
    right: Tensor | None = None
    over: Tensor | None = None


@dataclass
class Judge:
    """Logits (M, C) of the rows `ids` -> :class:`Verdict`.

    The cut and rightness are always tested on cross-entropy of y, whatever loss is ascended.
    """

    y: Tensor
    cut: float | None
    loss: object = "ce"  # as loss_of accepts it
    clean: Tensor | None = None  # (N, C) logits at x, for "kl"
    watched: bool = False  # loss and rightness are asked for at every forward, also where nothing is cut
    at_first_sight: Callable[[Tensor], None] = lambda logits: None
    right_at_first: Tensor | None = None
    _seen: bool = False

    @property
    def has_cut(self) -> bool:
        return self.cut is not None

    def __call__(self, logits: Tensor, ids: Tensor | None, gradient: bool = True) -> Verdict:
        scores = logits.detach()
        self._first(scores)
        value = ascent = right = over = None
        if self.has_cut or self.watched or (self.loss == "ce" and gradient):
            cut = float("inf") if self.cut is None else self.cut
            value, ascent, right, over = _cross_entropy(scores, self.y, ids, cut)
            self.right_at_first = right if self.right_at_first is None else self.right_at_first
        if self.loss != "ce" and (gradient or self.watched):
            value, ascent = self._other_loss(scores, ids)
        return Verdict(value, ascent, right, over)

    def _other_loss(self, scores: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        loss = self.loss
        if isinstance(loss, TargetedMargin):
            value, ascent = _margin(scores, self.y, loss.other, ids, loss.dlr)
        elif loss == "margin" or loss == "dlr":
            value, ascent = _margin(scores, self.y, None, ids, loss == "dlr")
        elif loss == "kl":
            value, ascent, _ = _kl(self.clean, scores, ids, False)
        else:
            value, ascent = _of_callable(loss, scores, self.y, ids)
        return value, ascent

    def _first(self, logits: Tensor) -> None:
        if self._seen:
            return
        self._seen = True
        self.at_first_sight(logits)


def _of_callable(loss: Any, scores: Tensor, y: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Loss and gradient of a function of (logits (M, C), labels (M,)) that returns one loss per row.

    It gets fp32 logits where the model computes in 16 bits. Padding gets the label of sample 0.
    """
    labels = y.clone() if ids is None else y[ids.clamp(min=0)]  # its own, to keep or to edit
    with torch.enable_grad():
        logits = scores.float() if scores.dtype.itemsize < 4 else scores.detach()
        logits.requires_grad_()
        value = loss(logits.clone(), labels)  # a clone may be edited in place
        if not isinstance(value, Tensor) or value.shape != (len(scores),) or not value.is_floating_point():
            got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss: expected one loss per row, floating point of shape ({len(scores)},), got {got}")
        found = torch.autograd.grad(value.sum(), logits, allow_unused=True) if value.requires_grad else (None,)
    (ascent,) = found
    if ascent is None:
        what = "others" if value.requires_grad else "losses without a graph"
        raise ValueError(f"loss: expected losses that depend on the logits, got {what}")
    return value.detach(), ascent.to(scores.dtype)


def check_range(labels: list[float], classes: int) -> None:
    """The least and the largest label, where they are known, are classes, or one clear error."""
    if labels and not 0 <= labels[0] <= labels[1] < classes:
        low, high = map(int, labels)
        raise ValueError(f"y: expected labels in [0, {classes}), the classes of the model, got {low} to {high}")


def loss_of(loss: object) -> object:
    """The loss that a user asked for, or one clear error."""
    if isinstance(loss, TargetedMargin) or (isinstance(loss, str) and loss in LOSSES) or callable(loss):
        return loss
    names = ", ".join(map(repr, LOSSES))
    raise ValueError(f"loss: expected {names} or a callable (logits, y) -> one loss per row, got {loss!r}")
