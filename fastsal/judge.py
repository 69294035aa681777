"""What the attack asks of the logits: the direction to ascend, and which rows are right, and over the cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastsal import backends  # noqa: F401  (binds the operators)

_cross_entropy = torch.ops.fastsal.truncated_cross_entropy.default
_margin = torch.ops.fastsal.margin_loss.default

Verdict = tuple[Tensor | None, Tensor | None, Tensor | None]
NOT_YET = ("kl", "dlr")


@dataclass(frozen=True)
class TargetedMargin:
    """The loss z_other - z_y with one class `other` (N,) int64 per sample, each different from its y."""

    other: Tensor


@dataclass
class Judge:
    """Logits (M, C) of the rows `ids` -> d loss / d logits, right (M,), over (M,).

    The cut and rightness are always tested on cross-entropy of y, whatever loss is ascended.
    """

    y: Tensor
    cut: float | None
    loss: str
    other: Tensor | None  # the class held against y, for a targeted margin
    at_first_sight: Callable[[Tensor], None]
    right_at_first: Tensor | None = None
    _seen: bool = False

    @property
    def has_cut(self) -> bool:
        return self.cut is not None

    def __call__(self, logits: Tensor, ids: Tensor | None, gradient: bool = True) -> Verdict:
        scores = logits.detach()
        self._first(scores)
        ascent = right = over = None
        if self.cut is not None or (self.loss == "ce" and gradient):
            cut = float("inf") if self.cut is None else self.cut
            _, ascent, right, over = _cross_entropy(scores, self.y, ids, cut)
            self.right_at_first = right if self.right_at_first is None else self.right_at_first
        if self.loss == "margin" and gradient:
            _, ascent = _margin(scores, self.y, self.other, ids)
        return ascent, right, over

    def flags(self, logits: Tensor, ids: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return self(logits, ids, gradient=False)[1:]

    def _first(self, logits: Tensor) -> None:
        if self._seen:
            return
        self._seen = True
        self.at_first_sight(logits)


def check_range(labels: list[float], classes: int) -> None:
    """The least and the largest label, where they are known, are classes, or one clear error."""
    if labels and not 0 <= labels[0] <= labels[1] < classes:
        low, high = map(int, labels)
        raise ValueError(f"y: expected labels in [0, {classes}), the classes of the model, got {low} to {high}")


def loss_of(loss: object) -> tuple[str, Tensor | None]:
    """(name, class held against y) of the loss that a user asked for, or one clear error."""
    if isinstance(loss, TargetedMargin):
        return "margin", loss.other
    if isinstance(loss, str) and loss in ("ce", "margin"):
        return loss, None
    if callable(loss) or (isinstance(loss, str) and loss in NOT_YET):
        raise NotImplementedError(f"loss: {loss!r} is not yet built, expected 'ce' or 'margin'")
    raise ValueError(f"loss: expected 'ce' or 'margin', got {loss!r}")
