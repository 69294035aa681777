"""How often an attack waits for its device: once for the values of its arguments, before the first forward.

Counted on CPU tensors, at the dispatcher: every copy of a number to the host passes there, or is a `tolist`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastsal
from fastsal.facts import Facts

WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique")


class Reached(Exception):
    """The first forward."""


class Waits(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Lengths of what was copied to the host by `tolist`."""
    lengths: list[int] = []
    honest = Tensor.tolist

    def tolist(self: Tensor) -> Any:
        lengths.append(self.numel())
        return honest(self)

    monkeypatch.setattr(Tensor, "tolist", tolist)
    yield lengths


def stopping() -> nn.Module:
    class Stops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise Reached

    return Stops()


def many_values(x: Tensor) -> dict[str, Any]:
    return {
        "eps": torch.full((len(x),), 0.1),
        "alpha": torch.full((len(x),), 0.02),
        "clip_min": torch.tensor([0.0, -1.0, 0.0]),
        "clip_max": torch.tensor([1.0, 1.0, 2.0]),
    }


@pytest.mark.parametrize("plain", [True, False], ids=["floats", "tensors"])
def test_one_wait_for_the_values_of_all_arguments(plain: bool, reads: list[int]) -> None:
    x, y = torch.rand(5, 3, 4), torch.tensor([0, 1, 2, 3, 0])
    attack = fastsal.PGD(stopping(), **({"eps": 0.1, "random_start": False} if plain else many_values(x)))
    attack.rule = attack.rule.__class__(3, False, "clean", "start", True)  # the start looks at values, on a CPU
    with Waits() as waits, pytest.raises(Reached):
        attack(x, y, seed=torch.tensor(1))
    assert waits.seen == []
    assert len(reads) == 1


def test_none_without_checks_on_an_accelerator() -> None:
    """There nothing is read before the first forward: a read of a meta tensor raises, and only checks refuse one."""
    x, y = torch.rand(5, 3, 4, device="meta"), torch.zeros(5, dtype=torch.int64, device="meta")
    eps = torch.full((5,), 0.1, device="meta")
    with pytest.raises(Reached):
        fastsal.PGD(stopping(), eps=eps, check_inputs=False)(x, y)
    with pytest.raises(ValueError, match="x: expected a tensor with values, got one on device meta"):
        fastsal.PGD(stopping(), eps=eps)(x, y)


def test_all_mistakes_of_value_are_still_named() -> None:
    x, y = torch.rand(5, 3, 4), torch.tensor([0, 1, 2, 3, 0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    for change, message in (
        ({"eps": torch.tensor([0.1, -0.1, 0, 0, 0])}, "eps: expected finite and >= 0"),
        ({"alpha": torch.full((5,), float("nan"))}, "alpha: expected finite and >= 0"),
        ({"clip_min": torch.tensor([0.0, float("nan"), 0.0])}, "clip_min: expected numbers"),
        ({"clip_max": torch.tensor([1.0, -3.0, 1.0]), "clip_min": -2.0}, "clip_max: expected at least clip_min"),
        ({"clip_max": torch.tensor([1.0, 0.1, 1.0])}, "x: expected values in"),
    ):
        with pytest.raises(ValueError, match=message):
            fastsal.PGD(model, **{"eps": 0.1, **change})(x, y)
    with pytest.raises(ValueError, match=r"y: expected labels in \[0, 4\), the classes of the model, got 1 to 4"):
        fastsal.PGD(model, eps=0.1)(x, y + 1)


def test_facts_are_read_in_order_and_once() -> None:
    facts, seen = Facts(), []
    facts.expect([torch.tensor(1.0), torch.tensor([2])], lambda numbers: seen.append(("a", numbers)))
    facts.expect([torch.tensor(3.5, dtype=torch.float64)], lambda numbers: seen.append(("b", numbers)))
    facts.read()
    facts.read()
    assert seen == [("a", [1.0, 2.0]), ("b", [3.5])]


def test_a_model_that_has_shown_a_negative_logit_is_not_looked_at_again(reads: list[int]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    attack = fastsal.PGD(model, eps=0.1, steps=1)
    for expected in (2, 1, 1):  # arguments and outputs, then arguments alone
        reads.clear()
        attack(torch.rand(5, 3, 4), torch.tensor([0, 1, 2, 3, 0]))
        assert len(reads) == expected


def test_the_warning_of_probabilities_points_at_the_caller() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Softmax(1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fastsal.PGD(model, eps=0.1)(torch.rand(5, 3, 4), torch.tensor([0, 1, 2, 3, 0]))
    (warning,) = [w for w in caught if "probabilities" in str(w.message)]
    assert warning.filename == __file__
