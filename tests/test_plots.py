"""Pictures: they open, show what they should, and nothing lies on top of anything."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastsal import plots

pytest.importorskip("matplotlib")
from matplotlib import pyplot
from matplotlib.image import imread


def history(epochs: int, steps: int = 10, held_out: bool = True, live: float = 0.7) -> list[dict[str, Any]]:
    found = []
    for epoch in range(1, epochs + 1):
        row: dict[str, Any] = {
            "epoch": epoch,
            "loss": 2.3 / epoch,
            "train_accuracy": 1 - 0.9 / epoch,
            "live_share_by_step": [live * 0.95**k for k in range(steps)],
        }
        if held_out:
            row |= {"natural_accuracy": 1 - 0.8 / epoch, "robust_accuracy": 0.5 - 0.4 / epoch}
        found.append(row)
    return found


def batch(count: int, channels: int) -> dict[str, Any]:
    x = torch.rand(count, channels, 12, 12)
    return {
        "x": x,
        "x_adv": (x + 0.1 * torch.randn(x.shape).sign()).clamp(0, 1),
        "y": torch.arange(count) % 4,
        "clean_logits": torch.eye(4).repeat(count, 1)[:count] * 5,
        "adversarial_logits": torch.eye(4).roll(1, 0).repeat(count, 1)[:count] * 5,
        "class_names": ("aquarium fish", "T-shirt/top", "pickup truck", "Ankle boot"),
    }


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were drawn."""
    drawn: list[Any] = []
    honest = plots._figure

    def remembering(width: float, height: float) -> Any:
        drawn.append(honest(width, height))
        return drawn[-1]

    monkeypatch.setattr(plots, "_figure", remembering)
    return drawn


def pixels(path: Path) -> Any:
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return imread(path)


def overlap(a: Any, b: Any) -> bool:
    """Whether two boxes share more than a pixel."""
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1


def texts(figure: Any) -> list[Any]:
    """Titles and axis labels of all panels, and the title of the figure."""
    found = [part for axis in figure.axes for part in (axis.title, axis.xaxis.label, axis.yaxis.label)]
    return [text for text in [*found, figure._suptitle] if text is not None and text.get_text()]


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_curves_are_drawn_for_any_number_of_epochs(epochs: int, tmp_path: Path, figures: list[Any]) -> None:
    plots.curves(history(epochs), tmp_path / "curves.png", "a title")
    assert len(np.unique(pixels(tmp_path / "curves.png").reshape(-1, 4), axis=0)) > 50
    loss, accuracy, live = figures[0].axes
    assert list(loss.lines[0].get_xdata()) == list(range(1, epochs + 1))
    assert len(accuracy.lines) == 3 and len(live.lines) == epochs
    assert len(live.get_legend().get_texts()) == min(epochs, 4)
    assert list(live.lines[0].get_xdata()) == list(range(1, 11))
    assert live.lines[0].get_ydata()[0] == pytest.approx(70)
    for axis in figures[0].axes:
        assert all(float(tick).is_integer() for tick in axis.get_xticks())


@pytest.mark.parametrize("epochs", [1, 5])
def test_no_legend_hides_data_and_no_label_another(epochs: int, tmp_path: Path, figures: list[Any]) -> None:
    title = "sense, c = 0.5, Linf eps = 0.03137, preactresnet18 on a-data-set-with-a-long-name.npz"
    plots.curves(history(epochs), tmp_path / "curves.png", title)
    figure = figures[0]
    for axis in figure.axes:
        box = axis.get_legend().get_window_extent()
        assert not overlap(box, axis.bbox)
        assert figure.bbox.padded(3).containsx(box.x0) and figure.bbox.padded(3).containsx(box.x1)
        assert figure.bbox.padded(3).containsy(box.y0)
    boxes = [text.get_window_extent() for text in texts(figure)]
    boxes += [axis.get_legend().get_window_extent() for axis in figure.axes]
    assert not any(overlap(a, b) for a, b in itertools.combinations(boxes, 2))


def test_a_run_without_held_out_images_without_attack_or_in_part_is_drawn(tmp_path: Path, figures: list[Any]) -> None:
    plots.curves(history(3, held_out=False), tmp_path / "a.png")
    plots.curves(history(2, live=0.0), tmp_path / "b.png")
    plots.curves(history(2, steps=0), tmp_path / "c.png")
    interrupted = [*history(2), {**history(1, held_out=False)[0], "epoch": 3}]
    plots.curves(interrupted, tmp_path / "d.png")
    assert [len(figure.axes[1].lines) for figure in figures] == [1, 3, 3, 3]
    assert any("no row was attacked" in text.get_text() for text in figures[1].axes[2].texts)
    assert not figures[0].axes[2].texts
    assert [len(line.get_xdata()) for line in figures[3].axes[1].lines] == [2, 2, 3]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 8])
def test_examples_show_clean_change_and_adversarial(
    count: int, channels: int, tmp_path: Path, figures: list[Any]
) -> None:
    given = batch(count, channels)
    plots.examples(**given, path=tmp_path / "examples.png", title="Examples")
    assert len(np.unique(pixels(tmp_path / "examples.png").reshape(-1, 4), axis=0)) > 50
    axes = np.array(figures[0].axes).reshape(3, count)
    for column in range(count):
        clean, change, adversarial = (axis.images[0].get_array() for axis in axes[:, column])
        x, x_adv = (given[name][column].permute(1, 2, 0).numpy().squeeze() for name in ("x", "x_adv"))
        np.testing.assert_array_equal(clean, x)
        np.testing.assert_array_equal(adversarial, x_adv)
        grey = x_adv - x if channels == 1 else 2 * abs(given["x_adv"] - given["x"]).max().item() * (change - 0.5)
        np.testing.assert_allclose(grey if channels == 3 else change, x_adv - x, atol=1e-6)
        name, wrong = given["class_names"][column % 4], given["class_names"][(column - 1) % 4]
        assert axes[0, column].get_title().startswith(f"✓ {name}\n")
        assert axes[2, column].get_title().startswith(f"✗ {wrong}\n")
        assert axes[2, column].get_xlabel() == f"true:\n{name}"
    assert not any(
        overlap(a.get_window_extent(), b.get_window_extent()) for a, b in itertools.combinations(texts(figures[0]), 2)
    )


def test_examples_without_any_change_are_drawn(tmp_path: Path) -> None:
    given = batch(4, 1)
    plots.examples(**{**given, "x_adv": given["x"]}, path=tmp_path / "same.png")
    assert pixels(tmp_path / "same.png").shape[0] > 300


def test_nothing_of_the_callers_pyplot_is_touched(tmp_path: Path) -> None:
    pyplot.switch_backend("svg")
    mine = pyplot.figure()
    try:
        plots.curves(history(1), tmp_path / "curves.png")
        plots.examples(**batch(1, 1), path=tmp_path / "examples.png")
        assert pyplot.get_backend() == "svg" and pyplot.get_fignums() == [mine.number]
    finally:
        pyplot.close(mine)
        pyplot.switch_backend("agg")


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plots.curves(history(1), tmp_path / "curves.png")
