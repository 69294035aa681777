"""Batch norm folded into convolutions: which pairs are found, that nothing changes but rounding, and what is left."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastsal
from fastsal import fold
from fastsal.levers import Levers
from fastsal.view import viewed

N = 5


def settled(model: nn.Module) -> nn.Module:
    """With batch norms that have seen something."""
    generator = torch.Generator().manual_seed(0)
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            part.running_mean.normal_(0, 0.3, generator=generator)
            part.running_var.uniform_(0.3, 2, generator=generator)
            if part.weight is not None:
                nn.init.uniform_(part.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(part.bias, 0, 0.3, generator=generator)
    return model


class Block(nn.Module):
    """conv-norm-relu-conv-norm, and a way to spoil each link."""

    def __init__(self, spoil: str = "") -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 6)
        self.spoil = spoil

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv1(x)
        b = self.norm1(a)
        if self.spoil == "another use of the output":
            b = b + 0.1 * a
        if self.spoil == "a use past torch's functions":
            b = b + Doubled.apply(a)
        if self.spoil == "a use without a gradient":
            b = b + a.detach()
        if self.spoil == "the output in a list":
            b = b + torch.cat([a, a]).chunk(2)[0]
        if self.spoil == "something in between":
            b = self.norm1(F.relu(a))
        if self.spoil == "the norm twice":
            b = self.norm1(b)
        if self.spoil == "the convolution twice":
            b = b + self.conv1(x.flip(-1))
        if self.spoil == "the weight elsewhere":
            b = b * self.conv1.weight.mean()
        if self.spoil == "the weight by itself":
            b = self.norm1(F.conv2d(x, self.conv1.weight, padding=1))
        if self.spoil == "the norm's numbers":
            norm = self.norm1
            b = F.batch_norm(a, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.1, norm.eps)
        if self.spoil == "the norm's bias elsewhere":
            b = b + self.norm1.bias.view(1, -1, 1, 1)
        if self.spoil == "in place":
            b = self.norm1(self.conv1(x).mul_(2))
        return self.head(self.norm2(self.conv2(F.relu(b))).mean((2, 3)))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return 2 * grad


def batch(size: tuple[int, ...] = (3, 7, 7), classes: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(N, *size, generator=generator), torch.randint(classes, (N,), generator=generator)


def pairs_of(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    flow = fold.Flow(list(model.modules()))
    with flow:
        z = model(x.clone().requires_grad_())
    names = {module: name for name, module in model.named_modules()}
    return [(names[a], names[b]) for a, b in flow.pairs(z)]


def test_each_pair_is_found() -> None:
    assert pairs_of(Block().eval(), batch()[0]) == [("conv1", "norm1"), ("conv2", "norm2")]


SPOILED = (
    "another use of the output",
    "a use past torch's functions",
    "a use without a gradient",
    "the output in a list",
    "something in between",
    "the norm twice",
    "the convolution twice",
    "the weight elsewhere",
    "the weight by itself",
    "the norm's numbers",
    "the norm's bias elsewhere",
    "in place",
)


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_pair_with_anything_else_about_it_is_none(spoil: str) -> None:
    model = Block(spoil).eval()
    assert pairs_of(model, batch()[0]) == [("conv2", "norm2")]


@pytest.mark.parametrize("spoil", ["", *SPOILED])
def test_the_attack_is_the_same_but_for_rounding(spoil: str) -> None:
    """In float64, where a wrong fold would be far from rounding; twice, since the second call knows the pairs."""
    model = settled(Block(spoil)).double()
    x, y = batch()
    x = x.double()
    how = {"eps": 0.1, "steps": 3, "c": None, "norm": "L2", "seed": 3}
    expected = fastsal.perturb(model, x, y, fast=False, **how)
    for _ in range(2):
        torch.testing.assert_close(fastsal.perturb(model, x, y, **how), expected, rtol=0, atol=1e-9)


def test_two_calls_around_a_training_step_fold_what_is_there_then() -> None:
    model = settled(Block()).double()
    x, y = batch()
    x = x.double()
    how = {"eps": 0.1, "steps": 3, "c": None, "norm": "L2", "seed": 3}
    fastsal.perturb(model, x, y, **how)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
        model.norm1.running_mean.add_(0.2)
    expected = fastsal.perturb(model, x, y, fast=False, **how)
    torch.testing.assert_close(fastsal.perturb(model, x, y, **how), expected, rtol=0, atol=1e-9)


def test_a_norm_that_was_exchanged_is_noticed() -> None:
    model = settled(Block()).double()
    x, y = batch()
    x = x.double()
    how = {"eps": 0.1, "steps": 2, "c": None, "norm": "L2", "seed": 3}
    fastsal.perturb(model, x, y, **how)
    model.norm1 = nn.InstanceNorm2d(4, affine=True).double()
    expected = fastsal.perturb(model, x, y, fast=False, **how)
    torch.testing.assert_close(fastsal.perturb(model, x, y, **how), expected, rtol=0, atol=1e-9)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(20, 6)), (3, 7), 1),
    "3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), nn.Flatten(), nn.LazyLinear(6)),
        (2, 3, 3, 3),
        1,
    ),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        (4, 6, 6),
        1,
    ),
    "not affine": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        (3, 6, 6),
        1,
    ),
    "reflecting": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"),
            nn.BatchNorm2d(6),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        (3, 6, 6),
        1,
    ),
    "by its batch": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        (3, 6, 6),
        0,
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        (3, 6, 6),
        0,
    ),
    "after a linear layer": (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), (4,), 0),
    "parametrized": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3)),
            nn.BatchNorm2d(6),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        (3, 6, 6),
        0,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_every_kind(name: str) -> None:
    make, size, count = MODELS[name]
    x, y = batch(size)
    model = make().double()
    model(x.double())  # a lazy layer becomes one
    settled(model)
    assert len(pairs_of(model.eval(), x.double())) == count
    how = {"eps": 0.1, "steps": 3, "c": None, "norm": "L2", "seed": 3}
    expected = fastsal.perturb(model, x.double(), y, fast=False, **how)
    for _ in range(2):
        torch.testing.assert_close(fastsal.perturb(model, x.double(), y, **how), expected, rtol=0, atol=1e-9)


def test_what_was_folded_is_said_and_taken_back() -> None:
    model, (x, y) = settled(Block()), batch()
    before, logits = copy.deepcopy(model.state_dict()), model.eval()(x)
    fastsal.perturb(model, x, y, eps=0.1, steps=2, c=None)
    with viewed(model, x, Levers(), "fp32") as view:
        for _ in range(2):
            view.forward(x, gradient=True)
        assert view.notes["fold_batch_norm"] == "on: 2 folded"
        assert "forward" in model.norm1.__dict__
    assert "forward" not in model.norm1.__dict__
    assert torch.equal(model(x), logits)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_call_gives_the_same_bits_whether_or_not_the_pairs_are_known() -> None:
    x, y = batch()
    for how in ({"c": None}, {"c": 0.05}, {"c": 0.05, "decide_at": "clean"}, {"c": None, "loss": "kl"}):
        model = settled(Block())
        first, second = (fastsal.perturb(model, x, y, eps=0.1, steps=3, seed=3, norm="L2", **how) for _ in range(2))
        assert torch.equal(first, second)


class TwoWays(Block):
    """One convolution, two batch norms: which of them is a matter of the moment (AdvProp)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm3, self.auxiliary, self.skipped = nn.BatchNorm2d(4), False, False

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv1(x)
        b = a if self.skipped else (self.norm3 if self.auxiliary else self.norm1)(a)
        return self.head(self.norm2(self.conv2(F.relu(b))).mean((2, 3)))


def test_a_model_that_goes_another_way_at_the_next_call() -> None:
    model = settled(TwoWays()).double()
    x, y = batch()
    how = {"eps": 0.1, "steps": 3, "c": None, "norm": "L2", "seed": 3}
    for change in ({"auxiliary": True}, {"auxiliary": False}, {"skipped": True}, {"skipped": False}):
        vars(model).update(change)
        expected = fastsal.perturb(model, x.double(), y, fast=False, **how)
        torch.testing.assert_close(fastsal.perturb(model, x.double(), y, **how), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["conv1", "norm1"])
def test_a_forward_of_your_own_stays(name: str) -> None:
    model = settled(Block()).double()
    x, y = batch()
    how = {"eps": 0.1, "steps": 3, "c": None, "norm": "L2", "seed": 3}
    fastsal.perturb(model, x.double(), y, **how)
    part = getattr(model, name)
    usual = type(part).forward

    def mine(z: Tensor) -> Tensor:
        return 2 * usual(part, z)

    part.forward = mine
    expected = fastsal.perturb(model, x.double(), y, fast=False, **how)
    torch.testing.assert_close(fastsal.perturb(model, x.double(), y, **how), expected, rtol=0, atol=1e-9)
    assert part.forward is mine


def test_a_norm_whose_statistics_were_taken_away_goes_by_its_batch() -> None:
    model = settled(Block()).double()
    model.norm1.running_mean = model.norm1.running_var = None  # its track_running_stats still says True
    x, y = batch()
    how = {"eps": 0.1, "steps": 3, "c": None, "norm": "L2", "seed": 3}
    expected = fastsal.perturb(model, x.double(), y, fast=False, **how)
    torch.testing.assert_close(fastsal.perturb(model, x.double(), y, **how), expected, rtol=0, atol=1e-9)


def test_an_attack_within_an_attack_on_the_same_model() -> None:
    model = settled(Block()).double()
    x, y = batch()
    x = x.double()
    how = {"eps": 0.1, "steps": 3, "c": None, "norm": "L2", "seed": 3}

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        inner = fastsal.perturb(model, x, labels, **{**how, "eps": 0.01})
        return F.cross_entropy(logits, labels, reduction="none") + (inner - x).detach().flatten(1).sum(1)

    found = fastsal.perturb(model, x, y, loss=loss, **how)
    torch.testing.assert_close(found, fastsal.perturb(model, x, y, fast=False, **how), rtol=0, atol=1e-9)
    assert "forward" not in model.norm1.__dict__


def test_models_are_freed() -> None:
    model = settled(Block())
    model.norm1.root = [model]  # a child that refers back
    fastsal.perturb(model, *batch(), eps=0.1, steps=2, c=None)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_hooks_forbid_it() -> None:
    model, (x, _) = Block(), batch()
    handle = model.conv2.register_forward_hook(lambda *_: None)
    with viewed(model, x, Levers(), "fp32") as view:
        assert view.notes["fold_batch_norm"] == "off: a Conv2d has hooks"
    handle.remove()


def test_recomputed_activations_are_no_obstacle() -> None:
    """torch.utils.checkpoint runs parts of the forward again during the backward, when nothing may have changed."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=False)

    model, (x, y) = settled(Checkpointed()).double(), batch()
    how = {"eps": 0.1, "steps": 3, "c": None, "norm": "L2", "seed": 3}
    expected = fastsal.perturb(model, x.double(), y, fast=False, **how)
    for _ in range(2):
        torch.testing.assert_close(fastsal.perturb(model, x.double(), y, **how), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_tensor_in_place_of_a_parameter_is_not_folded(name: str) -> None:
    model, (x, y) = settled(Block()), batch()
    model.conv1 = nn.Conv2d(*model.conv1.weight.shape[1::-1], 3, padding=1)
    value = getattr(model.conv1, name).detach().clone()
    delattr(model.conv1, name)
    setattr(model.conv1, name, value)
    how = {"eps": 0.1, "steps": 3, "c": None, "norm": "L2", "seed": 3, "precision": "fp32"}
    found = fastsal.perturb(model, x, y, **how)
    torch.testing.assert_close(found, fastsal.perturb(model, x, y, **{**how, "fast": False, "precision": "auto"}))
    assert getattr(model.conv1, name) is value


def test_a_norm_that_loses_its_statistics_in_the_forward_gives_the_error_of_torch() -> None:
    class Loses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = settled(Block())

        def forward(self, x: Tensor) -> Tensor:
            z = self.block(x)
            self.block.norm1.running_mean = None
            return z

    model, (x, y) = Loses(), batch()
    for fast in (True, False):
        with pytest.raises(RuntimeError, match="running_mean must be defined"):
            fastsal.perturb(model, x, y, eps=0.1, steps=3, c=None, fast=fast)
        assert model.block.norm1.running_mean is not None
