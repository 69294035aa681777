"""The examples run, and the figure of the README shows what it says."""

from __future__ import annotations

import importlib.util
import math
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="tested without the repository around it")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Quicker for nets this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def gaussians() -> ModuleType:
    spec = importlib.util.spec_from_file_location("three_gaussians", EXAMPLES / "three_gaussians.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def crossing(model: torch.nn.Linear, y: float) -> float:
    """x where the straight boundary of a linear model has the given y."""
    (a, b), c = (model.weight[1] - model.weight[0]).tolist(), float((model.bias[1] - model.bias[0]).detach())
    return -(b * y + c) / a


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sense_keeps_the_vertical_line_and_pgd_training_gives_it_up(gaussians: ModuleType, seed: int) -> None:
    natural, pgd, sense = (gaussians.run("line", method, seed) for method in ("natural", "pgd", "sense"))
    for kept in (natural, sense):
        assert kept.natural > 0.99 and kept.sure > 0.95
        assert all(abs(crossing(kept.model, y)) < 0.7 for y in (-7.0, 0.0, 7.0))  # the clusters are at -1 and 1
    # What is left of the slope is noise, so the line may lie anywhere: the model is sure of nothing. Its loss cannot
    # fall below log 2, the least that any straight boundary has against this adversary.
    assert pgd.sure < 0.6
    assert pgd.loss == pytest.approx(math.log(2), abs=0.02)
    slopes = [float((kept.model.weight[1] - kept.model.weight[0]).detach().norm()) for kept in (pgd, natural, sense)]
    assert slopes[0] < 0.1 * min(slopes[1:])
    assert natural.worst < 0.2 and sense.worst < 0.2  # none of them is robust, and the figure says so


def test_a_curve_can_be_robust_and_sense_finds_one(gaussians: ModuleType) -> None:
    outcome = gaussians.run("curve", "sense", 0, epochs=15)
    assert outcome.natural > 0.99 and outcome.worst > 0.95


def test_the_bayes_rule_of_the_figure_is_the_bisector(gaussians: ModuleType) -> None:
    """Of (-1, 0) and (1, 7), moved by the prior 1 : 1/2 of the two clusters: 4 x + 14 |y| = 49 + 2 sigma^2 log 2."""
    x = torch.linspace(-6, 6, 25, dtype=torch.float64)
    on_it = torch.stack([x, (49 + 2 * 0.04 * math.log(2) - 4 * x) / 14], dim=1)
    for side in (1.0, -1.0):
        at = gaussians.bayes(on_it * torch.tensor([1.0, side]))
        assert float(at.abs().max()) < 1e-6
        assert bool((gaussians.bayes((on_it + torch.tensor([0.0, 0.1])) * torch.tensor([1.0, side])) > 0).all())


def test_three_gaussians_draws_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pytest.importorskip("matplotlib.image")
    out = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", ["three_gaussians.py", "--quick", "--out", str(out)])
    runpy.run_path(str(EXAMPLES / "three_gaussians.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert len(re.findall(r"^(?:line|curve) +(?:natural|pgd|sense) ", said, re.MULTILINE)) == 6
    assert out.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    height, width, _ = image.imread(out).shape
    assert 1000 <= width <= 1200 and height <= 1100


def test_the_existing_loop_runs_and_learns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["existing_loop.py", "--quick"])
    runpy.run_path(str(EXAMPLES / "existing_loop.py"), run_name="__main__")
    said = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", said)]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert re.search(r"^worst +[\d.]+%", said, re.MULTILINE)


def test_the_existing_loop_is_short_enough_to_read() -> None:
    code = (EXAMPLES / "existing_loop.py").read_text(encoding="utf-8").partition('"""\n\n')[2]
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 25
