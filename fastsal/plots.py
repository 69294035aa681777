"""Pictures of a run. Needs matplotlib (``pip install fastsal[plots]``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BLUE, ORANGE, GREY, INK = "#1f5fa8", "#d1580f", "#767676", "#222222"  # told apart by colour-blind eyes, too


def _figure(width: float, height: float) -> Any:
    """A figure by itself: the caller's pyplot, its figures and its backend are left alone."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install matplotlib (or fastsal[plots])") from error
    return Figure(figsize=(width, height), layout="constrained")


def curves(history: Sequence[dict[str, Any]], path: str | Path, title: str = "") -> None:
    """Loss and accuracies by epoch, live share by step (one line per epoch, later ones darker).

    history: rows of :class:`fastsal.TrainResult`, at least one.
    """
    figure = _figure(13, 4.4)
    left, middle, right = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["loss"] for row in history], "o-", color=INK, label="outer loss, points trained on")
    left.set(xlabel="epoch", ylabel="cross-entropy", title="Loss")
    left.set_ylim(bottom=0)
    for key, label, colour, marker in (
        ("natural_accuracy", "held out, natural", BLUE, "o"),
        ("robust_accuracy", "held out, PGD-10 (no full evaluation)", ORANGE, "s"),
        ("train_accuracy", "training, on the points trained on", GREY, "^"),
    ):
        shown = [(row["epoch"], 100 * row[key]) for row in history if row.get(key) is not None]
        if shown:
            middle.plot(*zip(*shown, strict=True), marker + "-", label=label, color=colour)
    middle.set(xlabel="epoch", ylabel="accuracy in %", ylim=(0, 100), title="Accuracy")
    _live_share(right, history)
    for axis in (left, middle, right):
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:  # under the axes, where it hides nothing
            axis.legend(
                loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False, fontsize=9, ncols=_columns(axis)
            )
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _columns(axis: Any) -> int:
    labels = axis.get_legend_handles_labels()[1]
    return 1 if max(map(len, labels)) > 12 else 4


def _live_share(axis: Any, history: Sequence[dict[str, Any]]) -> None:
    """One line per epoch; the first, the last and some between are named."""
    from matplotlib import colormaps

    steps = len(history[0]["live_share_by_step"])
    last = len(history) - 1
    named = {round(place * last / 3) for place in range(4)}
    for place, row in enumerate(history if steps else []):
        shares = [100 * share for share in row["live_share_by_step"]]
        shade = colormaps["Blues"](0.35 + 0.6 * place / max(last, 1))
        label = f"epoch {row['epoch']}" if place in named else None
        axis.plot(range(1, steps + 1), shares, "o-", color=shade, label=label, markersize=4, clip_on=False)
    if not any(any(row["live_share_by_step"]) for row in history):
        axis.text(0.5, 0.5, "no row was attacked", transform=axis.transAxes, ha="center", color=GREY)
    axis.set(
        xlabel="attack step",
        ylabel="rows that take the step, in %",
        xlim=(0.5, max(steps, 1) + 0.5),
        ylim=(0, 100),
        title="Live share: rows still attacked",
    )


def examples(
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    clean_logits: Tensor,
    adversarial_logits: Tensor,
    class_names: Sequence[str],
    path: str | Path,
    title: str = "",
) -> None:
    """Clean, perturbation (amplified) and adversarial image of each row, with the predictions.

    x, x_adv: (N, C, H, W) in [0, 1] with C 1 or 3; y (N,); logits (N, K).
    """
    count, channels = x.shape[0], x.shape[1]
    x, x_adv, y = x.cpu(), x_adv.cpu(), y.cpu()
    figure = _figure(1.5 * count + 0.7, 6.2)
    axes = figure.subplots(3, count, squeeze=False)
    change = x_adv - x
    largest = float(change.abs().max()) or 1.0
    grey = {"cmap": "gray", "vmin": 0, "vmax": 1}
    signed = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
    if channels == 3:
        change = 0.5 + change / (2 * largest)
    for column in range(count):
        for line, (images, how) in enumerate(((x, grey), (change, signed), (x_adv, grey))):
            axis = axes[line][column]
            picture = images[column].permute(1, 2, 0).numpy()
            axis.imshow(picture if channels == 3 else picture[:, :, 0], **how)
            axis.set(xticks=[], yticks=[])
        for line, logits in ((0, clean_logits), (2, adversarial_logits)):
            p = torch.softmax(logits[column].double().cpu(), dim=0)
            best = int(p.argmax())
            right = best == int(y[column])
            axes[line][column].set_title(
                f"{'✓' if right else '✗'} {class_names[best]}\n{float(p[best]):.0%}",
                fontsize=9,
                color=BLUE if right else ORANGE,
            )
        axes[2][column].set_xlabel(f"true:\n{class_names[int(y[column])]}", fontsize=9)
    key = "grey: none" if channels == 3 else "red: lighter, blue: darker"
    for line, label in enumerate(("clean", f"change, ±{largest:.3g} at most\n{key}", "adversarial")):
        axes[line][0].set_ylabel(label, fontsize=9)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=110)
