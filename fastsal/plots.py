"""Pictures of a run. Needs matplotlib (``pip install fastsal[plots]``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BLUE, ORANGE, GREEN, GREY = "#2563a8", "#d9661f", "#2f8f5b", "#777777"


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install matplotlib (or fastsal[plots])") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def curves(history: Sequence[dict[str, Any]], path: str | Path, title: str = "") -> None:
    """Loss and accuracies by epoch, live share by step (one line per epoch, later ones darker)."""
    plt = _pyplot()
    epochs = [row["epoch"] for row in history]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    left.plot(epochs, [row["loss"] for row in history], "o-", color=GREY)
    left.set(xlabel="epoch", ylabel="outer loss (cross-entropy)", title="loss")
    left.set_ylim(bottom=0)
    for key, label, colour in (
        ("train_accuracy", "training, on returned points", GREY),
        ("natural_accuracy", "held out, natural", BLUE),
        ("robust_accuracy", "held out, PGD-10 (not a full evaluation)", ORANGE),
    ):
        shown = [(row["epoch"], 100 * row[key]) for row in history if row.get(key) is not None]
        if shown:
            middle.plot(*zip(*shown, strict=True), "o-", label=label, color=colour)
    middle.set(xlabel="epoch", ylabel="accuracy in %", ylim=(0, 100), title="accuracy")
    middle.legend(fontsize=8, loc="lower right")
    for axis in (left, middle):
        axis.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    shades = plt.get_cmap("Blues")
    for place, row in enumerate(history):
        shares = [100 * share for share in row["live_share_by_step"]]
        shade = shades(0.35 + 0.6 * place / max(len(history) - 1, 1))
        label = f"epoch {row['epoch']}" if place in (0, len(history) - 1) else None
        right.plot(range(1, len(shares) + 1), shares, "o-", color=shade, label=label, markersize=3)
    right.set(xlabel="attack step", ylabel="live share of the batch in %", ylim=(0, 103), title="rows still attacked")
    right.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    right.legend(fontsize=8)
    for axis in (left, middle, right):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


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
    plt = _pyplot()
    count = len(x)
    figure, axes = plt.subplots(3, count, figsize=(1.45 * count + 0.6, 5.4), squeeze=False, layout="constrained")
    largest = float((x_adv - x).abs().max()) or 1.0
    change = 0.5 + (x_adv - x) / (2 * largest)
    for column in range(count):
        for line, (image, logits) in enumerate(((x, clean_logits), (change, None), (x_adv, adversarial_logits))):
            axis = axes[line][column]
            picture = image[column].clamp(0, 1).permute(1, 2, 0).cpu()
            axis.imshow(picture if picture.shape[2] == 3 else picture[:, :, 0], cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if logits is None:
                axis.set_title(f"change x{0.5 / largest:.1f}", fontsize=8, color=GREY)
            else:
                p = torch.softmax(logits[column].float(), dim=0)
                best = int(p.argmax())
                colour = GREEN if best == int(y[column]) else ORANGE
                axis.set_title(f"{class_names[best]} {float(p[best]):.0%}", fontsize=8, color=colour)
        axes[2][column].set_xlabel(f"true: {class_names[int(y[column])]}", fontsize=8)
    for line, label in enumerate(("clean", "change", "adversarial")):
        axes[line][0].set_ylabel(label, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
