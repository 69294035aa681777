"""Training methods: how each makes its loss from a batch. One short function each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from fastsal.attack import PGD, SENSE
from fastsal.evaluate import check_labels
from fastsal.live import AttackInfo
from fastsal.threat import Bound


@dataclass(frozen=True)
class Settings:
    """What a method may need; the names and units are those of :func:`fastsal.train`."""

    eps: float = 8 / 255
    alpha: float | None = None
    steps: int = 10
    c: float = 0.5
    norm: str = "Linf"
    warmup_epochs: int = 1
    natural_weight: float = 0.0
    clip_min: Bound = 0.0
    clip_max: Bound = 1.0


@dataclass(frozen=True)
class Outer:
    """The outer loss of a batch; ``logits`` are those of the points trained on, ``info`` is None without an attack."""

    loss: Tensor
    logits: Tensor
    info: AttackInfo | None


def natural(model: Any, x: Tensor, y: Tensor, settings: Settings, epoch: int, seed: int) -> Outer:
    """Plain cross-entropy on clean inputs."""
    logits = _logits(model, x)
    return Outer(_loss(logits, y), logits, None)


def pgd(model: Any, x: Tensor, y: Tensor, settings: Settings, epoch: int, seed: int) -> Outer:
    """PGD adversarial training (Madry et al. 2018)."""
    attack = PGD(
        model,
        settings.eps,
        settings.alpha,
        settings.steps,
        settings.norm,
        clip_min=settings.clip_min,
        clip_max=settings.clip_max,
    )
    return _on_adversaries(model, attack(x, y, seed=seed, return_info=True), x, y, settings)


def sense(model: Any, x: Tensor, y: Tensor, settings: Settings, epoch: int, seed: int) -> Outer:
    """Sensible adversarial training (Kim & Wang 2022): nothing is truncated in the warm-up epochs."""
    attack = SENSE(
        model,
        settings.eps,
        settings.alpha,
        settings.steps,
        settings.c,
        settings.norm,
        truncate=epoch >= settings.warmup_epochs,
        clip_min=settings.clip_min,
        clip_max=settings.clip_max,
    )
    return _on_adversaries(model, attack(x, y, seed=seed, return_info=True), x, y, settings)


def _on_adversaries(model: Any, attacked: tuple[Tensor, AttackInfo], x: Tensor, y: Tensor, settings: Settings) -> Outer:
    """Cross-entropy on every returned row, ignored ones included, and `natural_weight` times that of clean x."""
    x_adv, info = attacked
    logits = _logits(model, x_adv)
    loss = _loss(logits, y)
    if settings.natural_weight:
        loss = loss + settings.natural_weight * _loss(_logits(model, x), y)
    return Outer(loss, logits, info)


def _loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy; a label that is no class is an error, -100 as well, which torch would leave out."""
    check_labels(y, logits)
    return cross_entropy(logits, y)


def _logits(model: Any, x: Tensor) -> Tensor:
    output = model(x)
    logits: Tensor = getattr(output, "logits", output)
    return logits


Method = Callable[[Any, Tensor, Tensor, Settings, int, int], Outer]
METHODS: dict[str, Method] = {"sense": sense, "pgd": pgd, "natural": natural}
