"""The algorithm of the paper, on one screen: Kim & Wang, arXiv 2205.10457, section 2 with the choices of fastsal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastsal.judge import Judge, Verdict
from fastsal.live import LiveRows
from fastsal.steps import StepRule
from fastsal.view import View


@dataclass(frozen=True)
class Rule:
    """Where the paper and the authors' code leave a choice, ours; documented in :class:`fastsal.SENSE`."""

    steps: int
    random_start: bool
    ignored: str
    decide_at: str
    truncate: bool
    tau: int | None = None

    @property
    def decides_at_clean(self) -> bool:
        return self.decide_at == "clean" and self.random_start


class Patience:
    """Who has stood misclassified for more than `tau` steps: friendly adversaries (FAT, Zhang et al. 2020)."""

    def __init__(self, tau: int, y: Tensor) -> None:
        self.left = torch.full_like(y, tau)

    def spent(self, right: Tensor, ids: Tensor | None) -> Tensor:
        if ids is None:
            ids = torch.arange(len(right), device=right.device)
        samples = ids.clamp(min=0)
        spent = ~right & (self.left[samples] <= 0) & (ids >= 0)
        self.left.index_add_(0, samples, -(~right & (ids >= 0)).to(self.left.dtype))
        return spent


def sensible_adversaries(
    view: View,
    judge: Judge,
    move: StepRule,
    live: LiveRows,
    x: Tensor,
    noise: Callable[[Tensor | None], Tensor],
    rule: Rule,
) -> None:
    """Ascends the loss of each row, and stops the row before its cross-entropy crosses the cut."""
    x_k = noise(None)
    before = x if rule.ignored == "clean" else x_k  # what a row returns that is never attacked

    undecided = judge.has_cut
    if undecided and rule.decides_at_clean:
        assert judge.clean is not None
        _, _, right, over = judge(judge.clean, live.ids, gradient=False)
        live.retire(before, x, right, over, 0)
        before, x_k, undecided = x, noise(live.ids), False  # x counts as x_{-1}
        live.compacted()
    patience = None if rule.tau is None else Patience(rule.tau, judge.y)

    verdict = Verdict()
    for k in range(rule.steps + 1):
        last = k == rule.steps
        tested = undecided or (judge.has_cut and rule.truncate)
        if k > 1 and not tested and patience is None:
            x_k = live.shrunk(x_k)
        if live.count == 0 or (last and not (tested or move.watches)):
            break
        live.forwarded(len(x_k))
        leaf, z = view.forward(x_k, gradient=not last)
        verdict = judge(z, live.ids, gradient=not last)
        if tested:
            live.retire(before, x_k, verdict.right if undecided else None, verdict.over, k, last)
            undecided = False
        elif patience is not None and verdict.right is not None:
            live.leave_here(x_k, patience.spent(verdict.right, live.ids), k)
        if last or live.count == 0:
            break
        assert verdict.ascent is not None
        gradient = view.gradient(z, leaf, verdict.ascent)
        before = x_k
        x_k, nonfinite = move(k, x_k, gradient, verdict, live)
        live.backwarded(len(before), nonfinite)
        live.compacted()

    live.finish(move.result(x_k, verdict))
