"""Training methods: how each makes its loss from a batch. One short function each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastsal.attacks import FAT, PGD, SENSE
from fastsal.evaluate import check_labels
from fastsal.functional import kl_divergence
from fastsal.live import AttackInfo
from fastsal.model_view import logits_of
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
    beta: float = 6.0
    tau: int = 0
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
    attack = PGD(model, **_attack(settings))
    return _on_adversaries(model, attack(x, y, seed=seed, return_info=True), x, y, settings)


def sense(model: Any, x: Tensor, y: Tensor, settings: Settings, epoch: int, seed: int) -> Outer:
    """Sensible adversarial training (Kim & Wang 2022): nothing is truncated in the warm-up epochs."""
    attack = SENSE(model, c=settings.c, truncate=epoch >= settings.warmup_epochs, **_attack(settings))
    return _on_adversaries(model, attack(x, y, seed=seed, return_info=True), x, y, settings)


def fat(model: Any, x: Tensor, y: Tensor, settings: Settings, epoch: int, seed: int) -> Outer:
    """Friendly adversarial training (Zhang et al. 2020): a row stops `tau` steps after it is first misclassified."""
    attack = FAT(model, tau=settings.tau, **_attack(settings))
    return _on_adversaries(model, attack(x, y, seed=seed, return_info=True), x, y, settings)


def trades(model: Any, x: Tensor, y: Tensor, settings: Settings, epoch: int, seed: int) -> Outer:
    """TRADES (Zhang et al. 2019): CE(clean) + beta * KL(clean || adv), and adversaries that ascend the latter."""
    attack = PGD(model, loss="kl", **_attack(settings))
    return _trades_loss(model, attack(x, y, seed=seed, return_info=True), x, y, settings)


def sense_trades(model: Any, x: Tensor, y: Tensor, settings: Settings, epoch: int, seed: int) -> Outer:
    """The loss of TRADES on sensible adversaries: KL is ascended, and the cut tested on cross-entropy."""
    truncate = epoch >= settings.warmup_epochs
    attack = SENSE(model, c=settings.c, truncate=truncate, loss="kl", **_attack(settings))
    return _trades_loss(model, attack(x, y, seed=seed, return_info=True), x, y, settings)


def mart(model: Any, x: Tensor, y: Tensor, settings: Settings, epoch: int, seed: int) -> Outer:
    """MART (Wang et al. 2020): boosted CE(adv) + beta * KL(clean || adv) * (1 - p_y(clean)), on PGD's adversaries.

    Boosted: -log p_y - log(1 - the largest other p). The paper takes beta = 5.
    """
    attack = PGD(model, **_attack(settings))
    x_adv, info = attack(x, y, seed=seed, return_info=True)
    adv, clean = _logits(model, x_adv), _logits(model, x)
    check_labels(y, adv)
    at_y = y.unsqueeze(1)
    p_adv = adv.softmax(1)
    other = p_adv.scatter(1, at_y, 0.0).amax(1)
    boosted = cross_entropy(adv, y, reduction="none") - torch.log(1.0001 - other)  # as published: finite at 1
    doubt = 1 - clean.softmax(1).gather(1, at_y).squeeze(1)
    apart = kl_divergence(clean, adv, reduction="none")
    return Outer((boosted + settings.beta * apart * doubt).mean(), adv, info)


def _attack(settings: Settings) -> dict[str, Any]:
    names = ("eps", "alpha", "steps", "norm", "clip_min", "clip_max")
    return {name: getattr(settings, name) for name in names}


def _trades_loss(model: Any, attacked: tuple[Tensor, AttackInfo], x: Tensor, y: Tensor, settings: Settings) -> Outer:
    x_adv, info = attacked
    clean, adv = _logits(model, x), _logits(model, x_adv)
    return Outer(_loss(clean, y) + settings.beta * kl_divergence(clean, adv), adv, info)


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
    logits: Tensor = logits_of(model(x))
    return logits


Method = Callable[[Any, Tensor, Tensor, Settings, int, int], Outer]
METHODS: dict[str, Method] = {
    "sense": sense,
    "pgd": pgd,
    "trades": trades,
    "sense-trades": sense_trades,
    "mart": mart,
    "fat": fat,
    "natural": natural,
}
