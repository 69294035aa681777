"""The slim trainer: one flat function, setup, then epochs of attack, step and account."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn

from fastsal import heap
from fastsal.evaluate import accuracy, check_amount, checked_pair, robust_accuracy
from fastsal.methods import METHODS, Settings
from fastsal.progress import bar
from fastsal.threat import Bound, cut_of, norm_order

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass
class TrainResult:
    """What a training run leaves.

    Attributes:
        model: the trained model itself.
        history: one row per epoch: ``epoch`` (from 1), ``loss`` (outer, mean over images), ``train_accuracy`` (of the
            points trained on, in train mode), ``start_accuracy`` (in eval mode, at the attack's random start; None
            without an attack, and for "trades", whose attack does not look at y), ``live_share`` (mean share of rows
            that took a step; 1 for PGD, 0 for natural), ``live_share_by_step`` (a list), ``images_per_second``,
            ``seconds``, ``lr``, and with an `eval_loader` ``natural_accuracy`` and ``robust_accuracy`` (PGD-10 without
            truncation, on at most `eval_rows` images: a curve to watch, not an evaluation). Shares and accuracies are
            in [0, 1].
        interrupted: whether Ctrl-C ended it; the last row is then of a part of an epoch.
    """

    model: Any
    history: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False


class TrainingStopped(ValueError):
    """A loader could not go on after some training. The model holds what it learnt; ``result`` has the history."""

    def __init__(self, message: str, result: TrainResult) -> None:
        super().__init__(message)
        self.result = result


class TrainingDiverged(RuntimeError):
    """The loss, or the weights, were not finite. The model holds its last good state; ``result`` has the history."""

    def __init__(self, message: str, result: TrainResult) -> None:
        super().__init__(message)
        self.result = result


def train(
    model: nn.Module,
    loader: Batches,
    *,
    method: str = "sense",
    eps: float = 8 / 255,
    alpha: float | None = None,
    steps: int = 10,
    c: float = 0.5,
    norm: str = "Linf",
    warmup_epochs: int = 1,
    natural_weight: float = 0.0,
    beta: float = 6.0,
    tau: int = 0,
    clip_min: Bound = 0.0,
    clip_max: Bound = 1.0,
    epochs: int = 10,
    lr: float = 0.05,
    weight_decay: float = 5e-4,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
    eval_loader: Batches | None = None,
    eval_rows: int = 500,
    seed: int | None = None,
    progress: bool = True,
) -> TrainResult:
    """Trains `model` in place against the chosen adversary.

    Args:
        model: a module from inputs to logits (N, C), or to an object with ``.logits``; trained on the device where
            its parameters are, in train mode; its training flags are put back afterwards.
        loader: any re-iterable of (x, y) batches: x (N, ...) in [clip_min, clip_max], fp32 or fp64; y (N,) int64.
        method: "sense" (Kim & Wang), "pgd" (Madry et al.), "trades" (Zhang et al. 2019), "sense-trades" (the loss of
            TRADES on sensible adversaries), "mart" (Wang et al. 2020), "fat" (Zhang et al. 2020) or "natural".
        eps, alpha, steps, c, norm, clip_min, clip_max: the attack in training, as in :class:`fastsal.SENSE`.
        warmup_epochs: epochs of SENSE in which nothing is truncated.
        natural_weight: of "sense", "pgd" and "fat"; weight of a cross-entropy on clean x beside the adversarial one.
        beta: of "trades", "sense-trades" and "mart"; weight of the divergence between clean and perturbed predictions.
        tau: of "fat"; steps that a row takes after it is first misclassified.
        epochs: passes over the loader.
        lr, weight_decay: of the default optimizer, SGD with Nesterov momentum 0.9.
        optimizer: yours instead; lr and weight_decay are then not used.
        scheduler: of your optimizer; its step() is called once per epoch, without arguments. With an optimizer of
            yours nothing else changes the learning rate; without one it rises for a tenth of the run and then falls
            linearly towards zero.
        eval_loader: re-iterable of (x, y); accuracies on it are taken after every epoch.
        eval_rows: how many of its images the PGD-10 accuracy of the curve uses.
        seed: fixes noise, dropout and all else that is drawn here; the global random state is then left alone.
        progress: a bar with loss, accuracy, live share and images per second.

    Returns:
        A :class:`TrainResult`. Ctrl-C ends the run early and returns what there is.

    Raises:
        TrainingDiverged: the loss or the weights were not finite; says where, and the model holds its last good
            state.
        TrainingStopped: a ValueError; `loader` has no batches left for a later epoch, or `eval_loader` failed.
        ValueError, TypeError: an argument or a batch out of the contract, or a loader without batches, naming it.
    """
    settings = Settings(eps, alpha, steps, c, norm, warmup_epochs, natural_weight, beta, tau, clip_min, clip_max)
    _check(model, method, settings, epochs, eval_rows, optimizer, scheduler)
    make_loss = METHODS[method]
    device = next(model.parameters()).device
    schedule = optimizer is None
    if optimizer is None:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay, nesterov=True)
    peak = [group["lr"] for group in optimizer.param_groups]
    result = TrainResult(model)
    good = copy.deepcopy(model.state_dict())
    training = [(module, module.training) for module in model.modules()]

    def diverged(what: str) -> TrainingDiverged:
        model.load_state_dict(good)
        return TrainingDiverged(
            f"{what} (method {method!r}, lr {optimizer.param_groups[0]['lr']:.3g}). The model is back in its last "
            "state with a finite loss; a smaller learning rate is the usual cure",
            result,
        )

    memory = heap.kept_memory() if device.type == "cpu" else nullcontext()
    with memory, nullcontext() if seed is None else torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        noise = torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
        try:
            for epoch in range(epochs):
                tally = _Tally(steps)
                batches = length_hint(loader, 0) or None  # None: it does not say
                shown = bar(loader, batches, f"epoch {epoch + 1}/{epochs}", progress)
                model.train()
                try:
                    for index, batch in enumerate(shown):
                        x, y = checked_pair(batch, device)
                        if not len(y):
                            raise ValueError(f"x: expected at least one row in a batch, got shape {tuple(x.shape)}")
                        if schedule:
                            along = (epoch + (min((index + 0.5) / batches, 1.0) if batches else 0.5)) / epochs
                            for group, top in zip(optimizer.param_groups, peak, strict=True):
                                group["lr"] = top * min(along / 0.1, (1 - along) / 0.9)
                        seed_of_batch = int(torch.empty((), dtype=torch.int64).random_(generator=noise))
                        outer = make_loss(model, x, y, settings, epoch, seed_of_batch)
                        heap.look(loop=True)
                        loss = float(outer.loss.detach())
                        if not math.isfinite(loss):
                            raise diverged(f"the loss is {loss} in epoch {epoch + 1}, batch {index + 1}")
                        _copy_state(model, good)  # these weights gave a finite loss
                        optimizer.zero_grad(set_to_none=True)
                        outer.loss.backward()
                        optimizer.step()
                        tally.add(loss, outer.logits, y, outer.info)
                        shown.set_postfix_str(tally.line(), refresh=False)
                finally:
                    shown.close()
                    if tally.images:
                        result.history.append(tally.row(epoch + 1, optimizer.param_groups[0]["lr"]))
                if not tally.images:
                    message = f"loader: expected batches in epoch {epoch + 1}, got none (is it re-iterable?)"
                    raise TrainingStopped(message, result) if result.history else ValueError(message)
                if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
                    raise diverged(f"the weights are not finite after epoch {epoch + 1}, batch {index + 1}")
                if scheduler is not None:
                    scheduler.step()
                if eval_loader is not None:
                    row = result.history[-1]
                    try:
                        row["natural_accuracy"] = accuracy(model, eval_loader)
                        row["robust_accuracy"] = robust_accuracy(
                            model, eval_loader, eps, norm=norm, rows=eval_rows, clip_min=clip_min, clip_max=clip_max
                        )
                    except (RuntimeError, TypeError, ValueError) as error:
                        raise TrainingStopped(f"eval_loader, after epoch {epoch + 1}: {error}", result) from error
                    if progress:
                        shown.write(
                            f"epoch {epoch + 1}/{epochs}: natural {row['natural_accuracy']:.1%}, "
                            f"PGD-10 {row['robust_accuracy']:.1%} (on {eval_rows} images at most)",
                            file=sys.stderr,
                        )
        except KeyboardInterrupt:
            result.interrupted = True
        finally:
            for module, flag in training:
                module.training = flag
    return result


def _check(
    model: Any, method: str, settings: Settings, epochs: int, eval_rows: int, optimizer: Any, scheduler: Any
) -> None:
    """Refuses what would fail later, or not at all; the attack's own settings for every method."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model: expected at least one parameter with requires_grad=True, got none")
    if method not in METHODS:
        raise ValueError(f"method: expected {', '.join(map(repr, METHODS))}, got {method!r}")
    for name, value, least in (
        ("epochs", epochs, 1),
        ("steps", settings.steps, 0),
        ("warmup_epochs", settings.warmup_epochs, 0),
        ("tau", settings.tau, 0),
        ("eval_rows", eval_rows, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")
    check_amount("eps", settings.eps)
    if settings.alpha is not None:
        check_amount("alpha", settings.alpha)
    check_amount("natural_weight", settings.natural_weight)
    check_amount("beta", settings.beta)
    cut_of(settings.c)
    norm_order(settings.norm)
    if scheduler is None:
        return
    if optimizer is None:
        raise ValueError("scheduler: expected the optimizer it belongs to as well, got optimizer=None")
    alone = callable(getattr(scheduler, "step", None))
    if not alone or isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise TypeError(f"scheduler: expected one with a step() without arguments, got {type(scheduler).__name__}")


def _copy_state(model: nn.Module, into: dict[str, Any]) -> None:
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if isinstance(value, Tensor):
                known = into.get(name)
                if known is None or (known.shape, known.dtype) != (value.shape, value.dtype):  # made or resized since
                    into[name] = value.clone()
                else:
                    known.copy_(value)


class _Tally:
    """The account of one epoch."""

    def __init__(self, steps: int) -> None:
        self.begin = time.perf_counter()
        self.images = 0
        self.loss = 0.0
        self.right = 0
        self.right_at_start: int | None = None
        self.stepped = [0] * steps

    def add(self, loss: float, logits: Tensor, y: Tensor, info: Any) -> None:
        self.images += len(y)
        self.loss += loss * len(y)
        self.right += int((logits.detach().argmax(dim=1) == y).sum())
        if info is not None:
            for k, count in enumerate(info.stepped):
                self.stepped[k] += count
            if info.right is not None:
                self.right_at_start = (self.right_at_start or 0) + int(info.right.sum())

    @property
    def live_share(self) -> float:
        return sum(self.stepped) / max(self.images * len(self.stepped), 1)

    def line(self) -> str:
        rate = self.images / (time.perf_counter() - self.begin)
        start = "" if self.right_at_start is None else f"{self.right_at_start / self.images:.1%} at the start, "
        return (
            f"loss {self.loss / self.images:.3f}, accuracy {start}{self.right / self.images:.1%} trained on, "
            f"live {self.live_share:.0%}, {rate:.0f} images/s"
        )

    def row(self, epoch: int, lr: float) -> dict[str, Any]:
        seconds = time.perf_counter() - self.begin
        return {
            "epoch": epoch,
            "loss": self.loss / self.images,
            "train_accuracy": self.right / self.images,
            "start_accuracy": None if self.right_at_start is None else self.right_at_start / self.images,
            "live_share": self.live_share,
            "live_share_by_step": [count / self.images for count in self.stepped],
            "images_per_second": self.images / seconds,
            "seconds": seconds,
            "lr": lr,
        }
