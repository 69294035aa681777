"""The algorithm of the paper, on one screen: Kim & Wang, arXiv 2205.10457, section 2 with the choices of fastsal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastsal.judge import Judge
from fastsal.live import LiveRows
from fastsal.threat import Threat


@dataclass(frozen=True)
class Rule:
    """Where the paper and the authors' code leave a choice, ours; documented in :class:`fastsal.SENSE`."""

    steps: int
    random_start: bool
    ignored: str
    decide_at: str
    truncate: bool


def sensible_adversaries(
    logits: Callable[[Tensor], Tensor],
    judge: Judge,
    threat: Threat,
    x: Tensor,
    noise: Callable[[Tensor | None], Tensor],
    rule: Rule,
) -> LiveRows:
    """Ascends the loss of each row, and stops the row before its cross-entropy crosses the cut."""
    live = LiveRows(x, rule.steps)
    x_k = noise(None)
    before = x if rule.ignored == "clean" else x_k  # what a row returns that is never attacked

    undecided = judge.has_cut
    if undecided and rule.decide_at == "clean" and rule.random_start:
        live.forwarded(len(x), iterate=False)
        right, over = judge.flags(logits(x.clone()), live.ids)
        live.retire(before, x, right, over, 0)
        before, x_k, undecided = x, noise(live.ids), False  # x counts as x_{-1}
        live.compacted()

    for k in range(rule.steps + 1):
        last = k == rule.steps
        tested = undecided or (judge.has_cut and rule.truncate)
        if live.count == 0 or (last and not tested):
            break
        live.forwarded(len(x_k))
        with torch.set_grad_enabled(not last):
            z = logits(x_k.requires_grad_(not last))
        ascent, right, over = judge(z, live.ids, gradient=not last)
        if tested:
            live.retire(before, x_k, right if undecided else None, over, k, last)
            undecided = False
        if last or live.count == 0:
            break
        (gradient,) = torch.autograd.grad(z, x_k, ascent)
        before = x_k.detach()
        x_k, nonfinite = threat.step(x, before, gradient, live.rows, live.ids)
        live.backwarded(len(before), nonfinite)
        live.compacted()

    live.finish(x_k.detach())
    return live
