"""Logistic regression in an L2 ball without a box, where the sensible adversary is known exactly.

p_y(x) = sigmoid(s (b0 + b.x)) with s = +1 for label 1 and -1 for label 0. The adversary is x itself if
p_y(x) < c; the far end of the ball along -s b / |b| if p_y is still >= c there; and the projection of x onto
the plane p_y = c otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import pytest
import torch
from oracle import attack as oracle_attack
from torch import Tensor, nn

import fastsal

MODELS = 1000
ROWS = 16


class Logistic(nn.Module):
    """Two logits whose difference is b0 + b.x."""

    def __init__(self, b: Tensor, b0: float) -> None:
        super().__init__()
        self.b = nn.Parameter(b)
        self.b0 = nn.Parameter(torch.tensor(b0, dtype=b.dtype))

    def score(self, x: Tensor) -> Tensor:
        return self.b0 + x @ self.b

    def forward(self, x: Tensor) -> Tensor:
        half = self.score(x) / 2
        return torch.stack([-half, half], 1)


class Problem(NamedTuple):
    model: Logistic
    x: Tensor
    y: Tensor
    eps: float
    alpha: float
    steps: int
    c: float
    answer: Tensor
    kind: list[str]


def problem(index: int) -> Problem:
    """A random model, and rows placed from half a radius behind the plane p_y = c to two beyond it."""
    g = torch.Generator().manual_seed(index)

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=g, dtype=torch.float64))

    dim = int(between(1, 41))
    b = torch.randn(dim, generator=g, dtype=torch.float64) * 10 ** between(-1, 1)
    model = Logistic(b, between(-3, 3))
    eps = 10 ** between(-2, 0.5)
    steps = int(between(1, 21))
    alpha = eps / steps * between(1, 2.5)
    c = between(0.5, 0.999) if index % 10 else 0.5

    y = torch.randint(0, 2, (ROWS,), generator=g)
    side = (2 * y - 1).double()
    unit = b / b.norm()
    beyond = eps * (2.5 * torch.rand(ROWS, generator=g, dtype=torch.float64) - 0.5)
    x = torch.randn(ROWS, dim, generator=g, dtype=torch.float64)
    with torch.no_grad():
        wanted = side * math.log(c / (1 - c)) + side * beyond * b.norm()
        x = x + ((wanted - model.score(x)) / b.norm())[:, None] * unit
        room = (side * model.score(x) - math.log(c / (1 - c))) / b.norm()

    travelled = torch.where(room < 0, 0.0, room.clamp(max=eps))
    answer = x - (side * travelled)[:, None] * unit
    kind = ["x" if r < 0 else "far end" if r >= eps else "plane" for r in room.tolist()]
    return Problem(model, x, y, eps, alpha, steps, c, answer, kind)


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return [problem(i) for i in range(MODELS)]


def test_the_attack_meets_the_known_adversary_within_one_step(problems) -> None:
    for i, p in enumerate(problems):
        attack = fastsal.SENSE(
            p.model, p.eps, p.alpha, p.steps, p.c, "L2", random_start=False, clip_min=None, clip_max=None
        )
        distance = (attack(p.x, p.y) - p.answer).norm(dim=1)
        worst = int(distance.argmax())
        assert distance[worst] <= p.alpha * (1 + 1e-9), (
            f"model {i}, row {worst} ({p.kind[worst]}): {distance[worst]:.3e} from the adversary, "
            f"one step is {p.alpha:.3e}"
        )


def test_each_kind_of_row_ends_where_it_should(problems) -> None:
    """Tighter than one step where that is possible, and never beyond the plane."""
    for i, p in enumerate(problems[:200]):
        x_adv, info = fastsal.SENSE(
            p.model, p.eps, p.alpha, p.steps, p.c, "L2", random_start=False, clip_min=None, clip_max=None
        )(p.x, p.y, return_info=True)
        for j, kind in enumerate(p.kind):
            where = f"model {i}, row {j}, {kind}"
            if kind == "x":
                assert torch.equal(x_adv[j], p.x[j]), where
                assert info.ignored[j] and info.stop_step[j] == -1, where
            elif kind == "far end":
                assert (x_adv[j] - p.answer[j]).norm() <= 1e-9 * max(p.eps, 1), where
                assert info.stop_step[j] == p.steps, where
            else:
                assert 0 <= info.stop_step[j] < p.steps, where
        with torch.no_grad():
            p_y = p.model(x_adv).softmax(1).gather(1, p.y[:, None])[:, 0]
        attacked = ~info.ignored
        assert (p_y[attacked] >= p.c - 1e-12).all(), f"model {i} was crossed"


def test_all_three_kinds_and_both_labels_occur(problems) -> None:
    seen = Counter((k, int(y)) for p in problems for k, y in zip(p.kind, p.y, strict=True))
    assert len(seen) == 6
    assert min(seen.values()) >= 0.05 * MODELS * ROWS, seen


def test_the_oracle_meets_it_too(problems) -> None:
    """So that the oracle, on which other tests lean, is itself tied to something known."""
    for p in problems[:200]:
        how = dict(eps=p.eps, alpha=p.alpha, steps=p.steps, c=p.c, norm="L2", clip_min=None, clip_max=None)
        found = oracle_attack(p.model, p.x, p.y, p.x, **how)
        assert ((found.x_adv - p.answer).norm(dim=1) <= p.alpha * (1 + 1e-9)).all()
