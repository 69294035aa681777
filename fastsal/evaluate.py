"""The sceptic's evaluation: several attacks, never truncated, the worst of them counted row by row."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from numbers import Real
from operator import length_hint
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastsal import heap
from fastsal.attack import Attack, _check_batch
from fastsal.attacks import PGD
from fastsal.judge import TargetedMargin, check_range
from fastsal.levers import Levers
from fastsal.model_view import RandomState, attacked
from fastsal.precision import without_autocast
from fastsal.progress import bar
from fastsal.threat import Bound, Threat, norm_name, norm_order
from fastsal.version import __version__

Batches = Iterable[tuple[Tensor, Tensor]]
SEEDS = 2**62  # so that the seeds counted up from it are int64 too

_cross_entropy = torch.ops.fastsal.truncated_cross_entropy.default


@dataclass
class Report:
    """Accuracies in [0, 1] over all rows; ``counts`` are rows that stay right.

    ``robust_accuracy`` has one entry per attack, and ``worst``: rows that survive every attack and are right when
    clean. ``intervals`` are Wilson's, 95 %, for the natural accuracy (``natural``) and each entry.
    ``nonfinite_gradient_rows`` has, per attack, the rows that met a gradient that was not finite, each counted once.
    """

    natural_accuracy: float
    robust_accuracy: dict[str, float]
    counts: dict[str, int]
    intervals: dict[str, tuple[float, float]]
    samples: int
    eps: float
    norm: str
    attacks: dict[str, dict[str, Any]]
    seeds: dict[str, int]
    note: str = "not AutoAttack: margin-T is the strongest attack here"
    nonfinite_gradient_rows: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def table(self) -> str:
        """The report as text, one line per attack."""
        head = f"{'attack':<12} {'accuracy':>9}   {'95 % interval':<17} {'rows right':>14}"
        lines = [f"{self.norm}, eps = {self.eps:.6g}, {self.samples} images", head, "-" * len(head)]
        for name in ["natural", *self.robust_accuracy]:
            share = self.natural_accuracy if name == "natural" else self.robust_accuracy[name]
            low, high = self.intervals[name]
            lines.append(
                f"{name:<12} {share:>8.2%}   {low:>7.2%} - {high:<7.2%} {self.counts[name]:>7} of {self.samples}"
            )
        lines.append(f"worst: rows that survive all of the above ({self.note})")
        lines += [
            f"{name}: {count} of {self.samples} rows met a gradient that was not finite: the attack is blind there, "
            "its number is an upper bound"
            for name, count in self.nonfinite_gradient_rows.items()
            if count
        ]
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Writes the report as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def wilson(right: int, samples: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927)."""
    if samples == 0:
        return 0.0, 1.0
    share = right / samples
    middle = share + z * z / (2 * samples)
    spread = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    scale = 1 + z * z / samples
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def evaluate(
    model: Any,
    loader: Batches,
    eps: float = 8 / 255,
    *,
    norm: str = "Linf",
    steps: int = 40,
    margin_steps: int = 10,
    margin_classes: int = 9,
    seed: int = 0,
    clip_min: Bound = 0.0,
    clip_max: Bound = 1.0,
    progress: bool = True,
) -> Report:
    """Natural accuracy, and robust accuracy under FGSM, PGD-k and a targeted margin attack. Nothing is truncated.

    - FGSM: one step of length eps, no random start (Goodfellow et al. 2015).
    - PGD-k: `steps` steps of 2.5 eps / steps on cross-entropy, random start (Madry et al. 2018).
    - margin-T: `margin_steps` steps of 2.5 eps / margin_steps on z_t - z_y, random start, for each of the
      `margin_classes` other classes t with the largest clean logits, on the rows that the classes before left
      standing. Untargeted cross-entropy flatters truncated training; this does not.

    Each attack runs on all rows that are right when clean, so its accuracy stands by itself; `worst` counts the rows
    that survive every one. A row is broken when its final point is misclassified by the model in eval mode; ties go to
    the lowest class index, and NaN logits are never right. Attacked and judged is the model in its own precision: an
    autocast around the call is left meanwhile.

    Args:
        model: a callable from (N, ...) to logits (N, C), or to an object with ``.logits``; left as it was found.
        loader: iterable of (x, y): x in [clip_min, clip_max], fp32 or fp64; y (N,) int64.
        eps: radius in the units of x, finite and >= 0.
        norm: "Linf", "L2" or "L1".
        steps: k of PGD-k.
        margin_steps, margin_classes: of margin-T.
        seed: an integer in [0, 2**62) that fixes the noise; row i of the loader's order has sample id i, however
            batches are cut.
        clip_min, clip_max: the box; a float, (C,) for one value per channel, or None.
        progress: a bar over batches.

    Returns:
        A :class:`Report`; ``print(report.table())``, ``report.save("report.json")``.

    Raises:
        ValueError, TypeError: an argument or a batch out of the contract, naming it; a loader without rows.
    """
    check_amount("eps", eps)
    norm = norm_name(norm_order(norm))
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise ValueError(f"seed: expected an integer in [0, 2**62), got {seed!r}")
    attacks = _attacks(eps, steps, margin_steps, margin_classes)
    # as models are judged: in fp32, and every forward by the model's own code, which a recording would skip
    options: dict[str, Any] = {"clip_min": clip_min, "clip_max": clip_max, "precision": "fp32"}
    options["fast"] = Levers(cuda_graphs=False)
    counts = dict.fromkeys(["natural", *attacks, "worst"], 0)
    nonfinite = dict.fromkeys(attacks, 0)
    samples = 0
    batches = length_hint(loader, 0) or None  # None: it does not say
    for x, y in bar(_placed(model, loader), batches, "evaluate", progress):
        Threat.around(x, norm, eps, 0.0, clip_min, clip_max).admit(x)
        with without_autocast(x.device.type), heap.kept(x.device.type):
            batch = _Batch(model, x, y, samples)
            worst = batch.natural.clone()
            for name, how in attacks.items():
                run = _margin_targeted if name == "margin-T" else _untargeted
                stands = run(batch, how, eps, norm, seed, options)
                counts[name] += int(stands.sum())
                nonfinite[name] += int(batch.nonfinite.sum())
                worst &= stands
        counts["natural"] += int(batch.natural.sum())
        counts["worst"] += int(worst.sum())
        samples += len(y)
    if samples == 0:
        raise ValueError("loader: expected at least one row, got none")
    shares = {name: count / samples for name, count in counts.items()}
    return Report(
        natural_accuracy=shares.pop("natural"),
        robust_accuracy=shares,
        counts=counts,
        intervals={name: wilson(count, samples) for name, count in counts.items()},
        samples=samples,
        eps=float(eps),
        norm=norm,
        attacks=attacks,
        seeds={"noise": seed},
        nonfinite_gradient_rows=nonfinite,
        versions={
            "fastsal": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
    )


def _attacks(eps: float, steps: int, margin_steps: int, margin_classes: int) -> dict[str, dict[str, Any]]:
    for name, value in (("steps", steps), ("margin_steps", margin_steps), ("margin_classes", margin_classes)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")
    return {
        "FGSM": {"loss": "ce", "steps": 1, "alpha": float(eps), "random_start": False},
        f"PGD-{steps}": {"loss": "ce", "steps": steps, "alpha": float(2.5 * eps / steps), "random_start": True},
        "margin-T": {
            "loss": "z_t - z_y",
            "steps": margin_steps,
            "alpha": float(2.5 * eps / margin_steps),
            "random_start": True,
            "classes": margin_classes,
        },
    }


class _Batch:
    """One batch as the attacks need it: where the model is right when clean, and each row's identity."""

    def __init__(self, model: Any, x: Tensor, y: Tensor, first: int) -> None:
        self.model, self.x, self.y = model, x, y
        self.ids = torch.arange(first, first + len(y), device=x.device)
        self.logits = _forward(model, x)
        check_labels(y, self.logits)
        self.natural = _right(self.logits, y)
        self.forget()

    def forget(self) -> None:
        # (N,) bool: rows that met a gradient that was not finite, in any run of the attack at hand
        self.nonfinite = torch.zeros_like(self.natural)

    def attack(self, rows: Tensor, attack: Attack, seed: int) -> Tensor:
        """Which of `rows` (indices) the model still gets right at the end of `attack`."""
        if len(rows) == 0:
            return torch.zeros(0, dtype=torch.bool, device=self.x.device)
        x, y = self.x[rows], self.y[rows]
        x_adv, info = attack(x, y, seed=seed, sample_ids=self.ids[rows], return_info=True)
        self.nonfinite[rows[info.nonfinite]] = True
        return _right(_forward(self.model, x_adv), y)


def _untargeted(
    batch: _Batch, how: dict[str, Any], eps: float, norm: object, seed: int, options: dict[str, Any]
) -> Tensor:
    attack = PGD(batch.model, eps, how["alpha"], how["steps"], norm, random_start=how["random_start"], **options)
    batch.forget()
    stands = batch.natural.clone()
    rows = stands.nonzero().squeeze(1)
    stands[rows] = batch.attack(rows, attack, seed)
    return stands


def _margin_targeted(
    batch: _Batch, how: dict[str, Any], eps: float, norm: object, seed: int, options: dict[str, Any]
) -> Tensor:
    """Towards each of the other classes in turn, the likeliest first, on the rows that still stand."""
    batch.forget()
    stands = batch.natural.clone()
    others = batch.logits.scatter(1, batch.y.unsqueeze(1), -math.inf).argsort(dim=1, descending=True, stable=True)
    for place in range(min(how["classes"], others.shape[1] - 1)):
        rows = stands.nonzero().squeeze(1)
        attack = PGD(
            batch.model, eps, how["alpha"], how["steps"], norm, loss=TargetedMargin(others[rows, place]), **options
        )
        stands[rows] = batch.attack(rows, attack, seed + 1 + place)
    return stands


def accuracy(model: Any, loader: Batches) -> float:
    """Share of rows in [0, 1] that the model, in eval mode, gets right. Left as it was found."""
    right = rows = 0
    for x, y in _placed(model, loader):
        logits = _forward(model, x)
        check_labels(y, logits)
        right += int(_right(logits, y).sum())
        rows += len(y)
    if rows == 0:
        raise ValueError("loader: expected at least one row, got none")
    return right / rows


def robust_accuracy(
    model: Any,
    loader: Batches,
    eps: float,
    *,
    norm: object = "Linf",
    steps: int = 10,
    rows: int | None = None,
    seed: int = 0,
    clip_min: Bound = 0.0,
    clip_max: Bound = 1.0,
) -> float:
    """Share in [0, 1] of the first `rows` rows that PGD (2.5 eps / steps a step) leaves right. A quick look only."""
    check_amount("eps", eps)
    right = seen = 0
    how = {"alpha": float(2.5 * eps / steps), "steps": steps, "random_start": True}
    for x, y in _placed(model, loader):
        if rows is not None:
            x, y = x[: rows - seen], y[: rows - seen]
        Threat.around(x, norm, eps, 0.0, clip_min, clip_max).admit(x)
        batch = _Batch(model, x, y, seen)
        stands = _untargeted(batch, how, eps, norm, seed, {"clip_min": clip_min, "clip_max": clip_max})
        right, seen = right + int(stands.sum()), seen + len(y)
        if seen == rows:
            break
    if seen == 0:
        raise ValueError("loader: expected at least one row, got none")
    return right / seen


def _forward(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad(), RandomState(x.device), attacked(model, x) as logits:
        return logits(x)


def _right(logits: Tensor, y: Tensor) -> Tensor:
    right: Tensor = _cross_entropy(logits, y, None, math.inf)[2]
    return right


def _placed(model: Any, loader: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches on the device of the model, checked."""
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    for batch in loader:
        yield checked_pair(batch, None if parameter is None else parameter.device)


def checked_pair(batch: Any, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """(x, y) of a loader's batch, on `device` (None: where they are), or one clear error."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        parts = f" of {', '.join(type(part).__name__ for part in batch)}" if isinstance(batch, (tuple, list)) else ""
        raise TypeError(f"loader: expected batches (x, y) of two tensors, got {type(batch).__name__}{parts}")
    x, y = batch if device is None else (part.to(device) for part in batch)
    _check_batch(x, y, None, False)
    return x, y


def check_amount(name: str, value: Any) -> None:
    """A number, finite and >= 0, or one clear error."""
    if isinstance(value, bool) or not isinstance(value, Real):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise TypeError(f"{name}: expected a float, got {got}")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{name}: expected finite and >= 0, got {value!r}")


def check_labels(y: Tensor, logits: Tensor) -> None:
    """Labels y (N,) are classes of logits (N, C), or one clear error."""
    check_range([float(edge) for edge in torch.aminmax(y)] if len(y) else [], logits.shape[1])
