"""The strategy for accelerators, on tensors without values: from the first forward to the last nothing asks for one.

Under FakeTensorMode ``.item()``, ``nonzero`` and truth tests of tensors raise, in autograd too. What moves data to the
host raises nothing there, so that a mode of our own forbids it. Only the counts of live rows are given.

``FASTSAL_FAKE_DEVICE=cuda`` runs the same on fake cuda tensors, which takes a CUDA build of torch and no GPU. The
engine of autograd asks even then for a context on the device: the model's backward is left out and its gradient given.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastsal
from fastsal.live import Counts
from fastsal.weights import Weights

DEVICE = os.environ.get("FASTSAL_FAKE_DEVICE", "cpu")
STEPS, SAMPLES = 5, 64
NO_LAUNCH = {"detach", "view", "alias", "slice", "_unsafe_view", "expand", "select", "unsqueeze", "empty", "t"}
NO_LAUNCH |= {"empty_strided", "as_strided", "permute", "transpose", "_reshape_alias", "empty_like", "device"}
FORBIDDEN = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "_unique2", "masked_select"}


class Given(Counts):
    """Counts that were recorded elsewhere."""

    def __init__(self, numbers: list[int]) -> None:
        super().__init__()
        self.numbers = numbers

    def push(self, live: Tensor) -> None:
        assert live.shape == (1,)

    def wait(self, step: int) -> int:
        return self.numbers[step]


class NothingToTheHost(TorchDispatchMode):
    """Forbids what waits for a device, and counts launches: one list per forward, without those of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[list[str]] = [[]]
        self.in_model = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in FORBIDDEN, f"{name} waits for the device"
        moved = name == "_to_copy" and (kwargs or {}).get("device") is not None
        assert not (moved and len(self.launches) > 1), "a copy to another device"
        if not self.in_model and name not in NO_LAUNCH:
            self.launches[-1].append(name)
        return func(*args, **(kwargs or {}))


class Net(nn.Module):
    """Convolutions of its own, whose launches are not those of the attack."""

    def __init__(self, mode: NothingToTheHost) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
        self.mode, self.sizes = mode, []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        self.mode.launches.append([])
        self.mode.in_model = True
        z = self.layers(Backward.apply(x, self.mode))
        self.mode.in_model = False
        return z.clone() if not z.requires_grad else Enter.apply(z, self.mode)


class Enter(torch.autograd.Function):
    """Its backward is the first of the model's."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, mode: NothingToTheHost) -> Tensor:
        ctx.mode = mode
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.mode.in_model = True
        return grad, None


class Backward(torch.autograd.Function):
    """Its backward is the last of the model's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mode: NothingToTheHost) -> Tensor:
        ctx.mode = mode
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.mode.in_model = False
        return grad, None


@contextmanager
def without_values(monkeypatch: pytest.MonkeyPatch, numbers: list[int]) -> Iterator[tuple[NothingToTheHost, Net]]:
    monkeypatch.setattr(fastsal.attack, "Counts", lambda: Given(numbers))
    with ExitStack() as modes:
        modes.enter_context(FakeTensorMode())
        mode = modes.enter_context(NothingToTheHost())
        with torch.device(DEVICE):
            net = Net(mode)
        if DEVICE != "cpu":
            monkeypatch.setattr(torch.autograd, "grad", lambda z, leaf, ascent, **how: (torch.empty_like(leaf),))
        yield mode, net


def run(attack: fastsal.attack.Attack, dtype: torch.dtype = torch.float32) -> Any:
    """From the first forward on: arguments are looked at before, in one wait of their own (tests/test_waits.py)."""
    x, y = torch.rand(SAMPLES, 3, 8, 8, dtype=dtype, device=DEVICE), torch.randint(10, (SAMPLES,), device=DEVICE)
    with torch.no_grad():
        threat = attack._threat(x, fastsal.facts.Facts())
        return attack._run(threat, x, y, [], torch.zeros((), dtype=torch.int64, device=DEVICE), None)[0]


LEVERS = fastsal.Levers(live_rows="buckets")
ATTACKS: dict[str, dict[str, Any]] = {
    "SENSE": {"c": 0.5},
    "SENSE, decided at x": {"c": 0.5, "decide_at": "clean"},
    "SENSE, warm-up": {"c": 0.5, "truncate": False},
    "SENSE, L2": {"c": 0.5, "norm": "L2"},
    "SENSE, L1": {"c": 0.5, "norm": "L1"},
    "SENSE-TRADES": {"c": 0.5, "loss": "kl"},
    "SENSE, bf16": {"c": 0.5, "precision": "bf16"},
    "PGD": {"c": None},
    "PGD, margin": {"c": None, "loss": "margin"},
    "PGD, momentum": {"c": None, "momentum": 1.0},
    "PGD, normalised": {"c": None, "normalize": ([0.5] * 3, [0.2] * 3)},
    "FAT": {"c": None, "tau": 1},
    "APGD": {"c": None, "step_rule": "apgd"},
}


SOME_STAY, ALL_LEAVE = [64, 40, 33, 20, 3, 1, 1], [64, 10, 0, 0, 0, 0, 0]
each_course = pytest.mark.parametrize("numbers", [SOME_STAY, ALL_LEAVE], ids=["some stay", "all leave"])


@pytest.mark.parametrize("name", ATTACKS)
@each_course
def test_nothing_is_asked_of_the_device(name, numbers, monkeypatch) -> None:
    how = {"precision": "fp32", **ATTACKS[name]}
    attack = fastsal.attack.Attack(None, 0.1, None, STEPS, fast=LEVERS, check_inputs=False, **how)
    with without_values(monkeypatch, numbers) as (_, net):
        attack.model = net
        live = run(attack)
    assert live.result.shape == (SAMPLES, 3, 8, 8) and live.stop.shape == (SAMPLES,)
    assert net.sizes == sorted(net.sizes, reverse=True) and len(net.sizes) >= 4


@pytest.mark.parametrize(
    ("numbers", "sizes"), [(SOME_STAY, [64, 64, 64, 48, 48, 24]), (ALL_LEAVE, [64, 64, 64, 16])], ids=str
)
def test_the_batches_follow_the_counts_two_steps_behind(numbers, sizes, monkeypatch) -> None:
    attack = fastsal.SENSE(None, 0.1, steps=STEPS, fast=LEVERS, precision="fp32", check_inputs=False)
    with without_values(monkeypatch, numbers) as (_, net):
        attack.model = net
        run(attack)
    assert net.sizes == sizes


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_sense_is_three_launches_of_any_kind(norm, precision, monkeypatch) -> None:
    """Beside the model's: judge, retire, step; in bf16 the points are cast, which belongs to the model's precision."""
    with without_values(monkeypatch, [64, 40, 33, 20, 3, 1]) as (mode, net):
        attack = fastsal.SENSE(net, 0.1, steps=STEPS, norm=norm, fast=LEVERS, precision=precision, check_inputs=False)
        run(attack)
    step = ["truncated_cross_entropy", "retire", "pgd_step"] + ["_to_copy"] * (precision == "bf16")
    for names in mode.launches[2:-1]:
        assert [name for name in names if name != "zero_"] == step  # padding begins with zeros, on a CPU each time


def test_weights_without_values_are_exchanged_like_others() -> None:
    with FakeTensorMode(), ExitStack() as swaps:
        convolution = nn.Conv2d(3, 4, 3)
        Weights([convolution], swaps, bf16=True, channels_last=True, graphs=None).lay_out()
        assert convolution.weight.dtype == torch.bfloat16
        assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
        assert convolution.bias is not None and convolution.bias.dtype == torch.bfloat16
