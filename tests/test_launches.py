"""What a step of an attack asks of the device beside the model: loss, retire, step. Counted at the dispatcher."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastsal

# What makes no work for the device: views, fresh memory, and the copy of the live count, which the budget leaves apart.
FREE = {"slice", "view", "detach", "alias", "_unsafe_view", "empty", "empty_like", "select", "_local_scalar_dense"}


class Launches(TorchDispatchMode):
    """Names of the operations outside of the model, one list for each forward and what follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[str]] = [[]]
        self.in_model = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not self.in_model and name not in FREE:
            self.steps[-1].append(name)
        return func(*args, **(kwargs or {}))


def counted_model(launches: Launches) -> nn.Module:
    """A linear classifier whose own operations, forward and backward, are not counted."""
    weight = torch.randn(12, 10)

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            launches.steps.append([])
            launches.in_model = True
            logits = x.flatten(1) @ weight
            launches.in_model = False
            return logits

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Tensor:
            launches.in_model = True
            grad = (upstream @ weight.T).view(-1, 3, 4)
            launches.in_model = False
            return grad

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Linear.apply(x)

    return Model()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_step_of_sense_is_three_launches(norm: str) -> None:
    launches = Launches()
    attack = fastsal.SENSE(counted_model(launches), eps=0.3, steps=5, c=0.2, norm=norm, check_inputs=False)
    x, y = torch.rand(30, 3, 4), torch.randint(10, (30,))
    with launches:
        attack(x, y, seed=1)
    forwards = launches.steps[1:]
    assert len(forwards) == 6
    for names in forwards[:-1]:
        assert names == ["truncated_cross_entropy", "retire", "pgd_step"]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_step_of_pgd_is_two_launches(norm: str) -> None:
    launches = Launches()
    attack = fastsal.PGD(counted_model(launches), eps=0.3, steps=5, norm=norm, check_inputs=False)
    with launches:
        attack(torch.rand(30, 3, 4), torch.randint(10, (30,)), seed=1)
    assert launches.steps[1:] == [["truncated_cross_entropy", "pgd_step"]] * 5
