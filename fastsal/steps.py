"""How an attack moves: from points and their gradients to the next points. One rule per class, all on one operator."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fastsal.judge import Verdict
from fastsal.live import LiveRows
from fastsal.threat import Threat

Moved = tuple[Tensor, Tensor]  # the next points, and which rows had a gradient that is not finite


class StepRule(Protocol):
    """``watches``: the rule asks for loss and rightness of every iterate, the last one too."""

    watches: bool

    def __call__(self, k: int, x_k: Tensor, gradient: Tensor, verdict: Verdict, live: LiveRows) -> Moved:
        """x_{k+1} of the live rows, gathered from x_k and its gradient by ``live.rows``."""

    def result(self, x_k: Tensor, verdict: Verdict) -> Tensor:
        """What the rows return that took all steps; x_k is the last iterate."""


@dataclass
class Fixed:
    """Steps of alpha along the direction of the gradient."""

    threat: Threat
    x: Tensor
    watches = False

    def __call__(self, k: int, x_k: Tensor, gradient: Tensor, verdict: Verdict, live: LiveRows) -> Moved:
        return self.threat.step(self.x, x_k, gradient, live.rows, live.ids, live.room(k))

    def result(self, x_k: Tensor, verdict: Verdict) -> Tensor:
        return x_k


@dataclass
class Momentum(Fixed):
    """Steps along a running sum of gradients, each divided by its L1 norm: v <- decay * v + g / ||g||_1.

    A row whose gradient is not finite keeps its sum and does not move.

    Source: Dong et al., "Boosting Adversarial Attacks with Momentum" (MI-FGSM), 2018.
    """

    decay: float = 1.0
    velocity: Tensor | None = None  # of the rows of x_k

    def __call__(self, k: int, x_k: Tensor, gradient: Tensor, verdict: Verdict, live: LiveRows) -> Moved:
        rowwise = (-1,) + (1,) * (x_k.dim() - 1)
        pull = gradient.to(x_k.dtype)
        length = pull.abs().flatten(1).sum(1)
        usable = length.isfinite()
        pull = pull / length.clamp(min=torch.finfo(x_k.dtype).tiny).view(rowwise)
        before = torch.zeros_like(pull) if self.velocity is None else self.velocity[: len(pull)]
        velocity = torch.where(usable.view(rowwise), self.decay * before + pull, before)
        following, _ = self.threat.step(self.x, x_k, velocity, live.rows, live.ids, live.room(k))
        kept = x_k if live.rows is None else x_k[live.rows]
        usable = usable if live.rows is None else usable[live.rows]
        self.velocity = velocity if live.rows is None else velocity[live.rows]
        return torch.where(usable.view(rowwise), following, kept), ~usable


def checkpoints(steps: int) -> list[int]:
    """After how many steps APGD looks back: p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), p_0 = 0, p_1 = 0.22."""
    before, at, found = 0.0, 0.22, [0]
    while at <= 1:
        found.append(math.ceil(at * steps))
        before, at = at, at + max(at - before - 0.03, 0.06)
    return found


class AutoPGD:
    """APGD: a step that halves itself where it no longer pays, momentum, and a return to the best point.

    The first step is 2 eps. At each checkpoint a row halves its step and goes back to its best point if its loss rose
    in fewer than a share `rho` of the steps since the last checkpoint, or if neither its step nor its best loss has
    changed since then. What is returned is the misclassified point with the largest loss, or where no point was
    misclassified, that with the largest loss (descending: reached its target, least).

    Source: Croce & Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks", 2020, section 3.
    """

    watches = True

    def __init__(self, threat: Threat, x: Tensor, steps: int, descend: bool, rho: float = 0.75) -> None:
        self.threat, self.x, self.descend, self.rho = threat, x, descend, rho
        self.steps, self.looks = steps, checkpoints(steps)
        self.size = 2 * threat.eps.expand(len(x))
        self.since = 0  # the last checkpoint
        self.rises = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        nothing = torch.full((len(x),), -math.inf, dtype=x.dtype, device=x.device)
        self.loss = self.best_loss = self.best_before = self.returned_loss = nothing
        self.broken = self.halved = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.before = self.best = self.best_gradient = self.returned = x

    def __call__(self, k: int, x_k: Tensor, gradient: Tensor, verdict: Verdict, live: LiveRows) -> Moved:
        gradient = gradient.to(x_k.dtype, copy=True)  # kept for longer than the view promises
        self._see(k, x_k, gradient, verdict)
        if k in self.looks and k > 0:
            x_k, gradient = self._look_back(k, x_k, gradient)
        pulled, nonfinite = self._toward(x_k, gradient)
        following = pulled
        if k > 0:
            following = self._projected(x_k + 0.75 * (pulled - x_k) + 0.25 * (x_k - self.before))
        self.before = x_k
        return following, nonfinite

    def result(self, x_k: Tensor, verdict: Verdict) -> Tensor:
        self._see(self.steps, x_k, x_k, verdict)
        return self.returned

    def _toward(self, x_k: Tensor, gradient: Tensor) -> Moved:
        return replace(self.threat, alpha=-self.size if self.descend else self.size).step(self.x, x_k, gradient)

    def _projected(self, point: Tensor) -> Tensor:
        return self.threat.step(self.x, point, torch.zeros_like(point))[0]  # a zero gradient moves nothing

    def _see(self, k: int, x_k: Tensor, gradient: Tensor, verdict: Verdict) -> None:
        """Takes note of an iterate: whether its loss rose, and whether it is the best to go on from, or to return."""
        assert verdict.loss is not None and verdict.right is not None
        loss = -verdict.loss if self.descend else verdict.loss
        loss = loss.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        broken = verdict.right if self.descend else ~verdict.right
        if k == 0:
            self.best, self.best_gradient, self.best_loss, self.best_before = x_k, gradient, loss, loss
            self.returned, self.returned_loss, self.broken = x_k, loss, broken
        else:
            better = loss > self.best_loss
            self.rises = self.rises + (loss > self.loss)
            self.best = _chosen(better, x_k, self.best)
            self.best_gradient = _chosen(better, gradient, self.best_gradient)
            self.best_loss = torch.where(better, loss, self.best_loss)
            better = (broken & ~self.broken) | ((broken == self.broken) & (loss > self.returned_loss))
            self.returned = _chosen(better, x_k, self.returned)
            self.returned_loss = torch.where(better, loss, self.returned_loss)
            self.broken = self.broken | broken
        self.loss = loss

    def _look_back(self, k: int, x_k: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        seldom = self.rises < self.rho * (k - self.since)
        stuck = ~self.halved & (self.best_loss == self.best_before)
        self.halved = seldom | stuck
        self.size = torch.where(self.halved, self.size / 2, self.size)
        self.best_before, self.since, self.rises = self.best_loss, k, torch.zeros_like(self.rises)
        self.loss = torch.where(self.halved, self.best_loss, self.loss)
        return _chosen(self.halved, self.best, x_k), _chosen(self.halved, self.best_gradient, gradient)


def _chosen(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows of `a` where `rows` (M,) is set, of `b` elsewhere."""
    return torch.where(rows.view(-1, *[1] * (a.dim() - 1)), a, b)
