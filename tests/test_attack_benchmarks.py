"""What the measurements of attacks stand on: the loop beside which SENSE is timed, turns, sections of markdown."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastsal

ROOT = Path(__file__).parent.parent
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("tested without the repository: there is no benchmarks/ beside tests/", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks import alternation, checkpoint, equality, marked, plain_attack, trained, where  # noqa: E402

where.choose("cpu")


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 3)).eval()


class FullSize(TorchDispatchMode):
    """Counts the operations outside of the model that make a tensor of a given shape and are no views."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += isinstance(result, Tensor) and result.shape == self.shape and not func.is_view
        return result


def test_the_loop_has_the_full_size_operations_that_are_claimed() -> None:
    """Of three steps less those of two: the first and the last are others."""
    model, x = small_net(), torch.rand(8, 1, 8, 8)
    y, counts = model(x).argmax(1), []
    for steps in (2, 3):
        with FullSize(x.shape) as seen:
            plain_attack.sense(model, x, y, x, 0.1, 0.01, steps, 9.0)
        counts.append(seen.count)
    assert counts[1] - counts[0] == plain_attack.SENSE_OPERATIONS == 15


@pytest.mark.parametrize("c", [0.3, 0.5, 0.7])
def test_the_loop_is_the_attack(c: float) -> None:
    model = nn.Sequential(small_net(), Sharper()).double()
    x = torch.rand(200, 1, 8, 8, dtype=torch.float64)
    y = model(x).argmax(1)
    x_0 = fastsal.functional.random_start(x, 0.1, 1)
    x_adv, info = fastsal.SENSE(model, 0.1, 0.02, 10, c)(x, y, seed=1, return_info=True)
    result, stop = plain_attack.sense(model, x, y, x_0, 0.1, 0.02, 10, -math.log(c))
    assert len(stop.unique()) > 3  # rows stop at several steps
    assert torch.equal(stop, info.stop_step)
    torch.testing.assert_close(result, x_adv, rtol=0, atol=1e-12)


class Sharper(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return 20 * z


def test_no_weight_gradient_is_left_behind() -> None:
    model, x = small_net(), torch.rand(8, 1, 8, 8)
    y = model(x).argmax(1)
    plain_attack.sense(model, x, y, x, 0.1, 0.01, 3, 9.0)
    plain_attack.pgd(model, x, y, x, 0.1, 0.01, 3, weight_gradients=True)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_turns_end_with_the_time_but_not_before_the_third() -> None:
    calls = {"a": lambda: None, "b": lambda: None}
    assert [len(times) for times in alternation.alternate(calls, 5, limit=0.0).values()] == [3, 3]
    assert [len(times) for times in alternation.alternate(calls, 2, limit=0.0).values()] == [2, 2]
    assert [len(times) for times in alternation.alternate(calls, 4).values()] == [4, 4]


def test_a_section_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- a: begin -->\nold\n<!-- a: end -->\n<!-- b: begin -->\nkept\n<!-- b: end -->\n")
    marked.write("a", "1 \\1 2", page)
    assert page.read_text().splitlines() == [
        "above", "<!-- a: begin -->", "1 \\1 2", "<!-- a: end -->", "<!-- b: begin -->", "kept", "<!-- b: end -->",
    ]  # fmt: skip
    with pytest.raises(SystemExit, match=r"page\.md: expected the lines"):
        marked.write("c", "text", page)


def test_the_checkpoint_is_of_a_net_that_learns() -> None:
    test = fastsal.data.load("fashion-mnist-mini").test
    assert test is not None
    with torch.no_grad():
        right = checkpoint.model()(test.images[:500].float() / 255).argmax(1) == test.labels[:500]
    assert 0.7 < float(right.float().mean()) < 0.9


def test_the_distance_to_the_cut_is_that_of_the_iterate() -> None:
    """Rows whose loss at x_0 is moved, by a shift of the logits, to the cut and to twice the tolerance from it."""
    model = checkpoint.model()
    x = fastsal.data.load("fashion-mnist-mini").train.images[:2].float() / 255
    rows = equality.Rows(x, torch.zeros(2, dtype=torch.int64), torch.tensor([7, 8]))
    x_0 = fastsal.functional.random_start(x, trained.EPS, equality.SEED, sample_ids=rows.ids)

    class Shifted(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            known = (points - x_0.to(points.dtype)).abs().flatten(1).amax(1) < 1e-6
            losses = torch.tensor([0.0, 2e-5], dtype=points.dtype) - math.log(trained.C)
            z = torch.expm1(losses).log()  # beside a logit of 0 for the class: log(1 + e^z) is the loss
            return torch.stack([torch.zeros_like(z), torch.where(known, z, 5.0)], 1)

    assert equality.far_from_cut(Shifted(), rows, 0, equality.PLAIN).tolist() == [False, True]
    assert equality.far_from_cut(model, rows, 0, equality.PLAIN).all()


def test_quartiles_are_those_of_the_ratios_within_a_turn() -> None:
    seconds = {"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 1.0]}
    assert alternation.quartiles(seconds, "a", "b") == (2.0, 3.0, 4.0)
    assert alternation.ratio_with_quartiles(seconds, "a", "b") == "3.00 (2.00-4.00)"
    assert alternation.ratio_with_quartiles({"a": [3.0], "b": [2.0]}, "a", "b") == "1.50"
