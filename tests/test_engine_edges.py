"""What users do to an attack that a specification does not think of."""

from __future__ import annotations

import functools
import pickle

import pytest
import torch
from torch import Tensor, nn

import fastsal


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.rand(12, 2, 5, 5), torch.arange(12) % 3


def test_torchscript_models_are_attacked() -> None:
    model, (x, y) = net().eval(), batch()
    expected = fastsal.SENSE(model, 0.1, c=0.1)(x, y, seed=3)
    for scripted in (torch.jit.script(model), torch.jit.trace(model, x)):
        assert torch.allclose(fastsal.SENSE(scripted, 0.1, c=0.1)(x, y, seed=3), expected, atol=1e-6)


@pytest.mark.parametrize(
    "wrap", [lambda m: m.forward, lambda m: functools.partial(m), lambda m: functools.partial(m.forward)]
)
def test_a_bound_method_or_a_partial_counts_as_its_module(wrap) -> None:
    model, (x, y) = net().train(), batch()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    x_adv = fastsal.PGD(wrap(model), 0.1)(x, y, seed=3)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(x_adv, fastsal.PGD(model, 0.1)(x, y, seed=3))


def test_a_buffer_that_the_forward_adds_is_gone_again() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()
            self.register_buffer("empty", None)

        def forward(self, x: Tensor) -> Tensor:
            self.empty = torch.ones(2)
            if "late" not in self._buffers:
                self.register_buffer("late", torch.zeros(1))
            return self.inner(x)

    model, (x, y) = Adds(), batch()
    names = set(model.state_dict())
    fastsal.PGD(model, 0.1)(x, y)
    assert set(model.state_dict()) == names and model.empty is None


def test_a_parameter_that_the_forward_unfreezes_is_frozen_again() -> None:
    class Unfreezes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net().requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            self.inner.requires_grad_(True)
            return self.inner(x)

    model, (x, y) = Unfreezes(), batch()
    fastsal.PGD(model, 0.1)(x, y)
    assert not any(p.requires_grad for p in model.parameters())


def test_inference_parameters_are_refused_by_name() -> None:
    with torch.inference_mode():
        model = net()
    with pytest.raises(ValueError, match=r"model: expected .* got inference tensors"):
        fastsal.PGD(model, 0.1)(*batch())


def test_a_graph_that_saved_the_buffers_survives_the_attack() -> None:
    model, (x, y) = net().train(), batch()
    loss = model(x).square().sum()  # batch norm saves its running statistics
    fastsal.SENSE(model, 0.1)(x, y)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_failed_attack_leaves_the_callers_generator_as_it_was() -> None:
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()

    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("broken")

    for attack in (fastsal.SENSE(net(), eps=-1.0), fastsal.SENSE(broken)):
        with pytest.raises((ValueError, RuntimeError)):
            attack(*batch(), generator=generator)
        assert torch.equal(generator.get_state(), before)


def test_settings_changed_later_take_effect() -> None:
    model, (x, y) = net().eval(), batch()
    attack = fastsal.SENSE(model, 0.1, c=0.9)
    attack.c = None
    assert torch.equal(attack(x, y, seed=3), fastsal.PGD(model, 0.1)(x, y, seed=3))


def test_attacks_can_be_pickled() -> None:
    model, (x, y) = net().eval(), batch()
    attack = fastsal.SENSE(model, 0.1, c=0.1)
    again = pickle.loads(pickle.dumps(attack))
    assert torch.equal(attack(x, y, seed=3), again(x, y, seed=3))


@pytest.mark.parametrize("choice", [{"decide_at": "clean"}, {"y": None}, {}], ids=str)
def test_a_model_that_edits_its_input_does_not_change_x(choice) -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not x.requires_grad:
                x.mul_(0.5)
            return x.flatten(1)[:, :3]

    x, y = batch()
    kept = x.clone()
    options = {k: v for k, v in choice.items() if k != "y"}
    fastsal.SENSE(InPlace(), 0.1, c=0.1, **options)(x, choice.get("y", y), seed=3)
    assert torch.equal(x, kept)


def test_the_default_device_does_not_matter() -> None:
    model, (x, y) = net().eval(), batch()
    expected_state = torch.get_rng_state()
    expected = fastsal.PGD(model, 0.1)(x, y)
    torch.set_rng_state(expected_state)
    with torch.device("meta"):
        assert torch.equal(fastsal.PGD(model, 0.1)(x, y), expected)


def test_models_that_return_a_tuple_are_attacked_and_trained_by_its_first_entry() -> None:
    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return super().forward(x), "and what else it has to say"

    model, x, y = Pair(6, 3), torch.rand(4, 6), torch.tensor([0, 1, 2, 0])
    plain = nn.Linear(6, 3)
    plain.load_state_dict(model.state_dict())
    attack = dict(eps=0.1, steps=2, c=None, seed=0)
    assert torch.equal(fastsal.perturb(model, x, y, **attack), fastsal.perturb(plain, x, y, **attack))
    for method in ("natural", "sense", "trades"):
        fastsal.train(model, [(x, y)], method=method, epochs=1, steps=2, progress=False)


def test_parameters_without_values_are_refused_by_name() -> None:
    x, y = torch.rand(4, 6), torch.tensor([0, 1, 2, 0])
    half = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3, device="meta"))
    with pytest.raises(ValueError, match="model: expected parameters with values, got some on device meta"):
        fastsal.PGD(half)(x, y)
    with pytest.raises(ValueError, match="model: expected initialised parameters, got lazy ones"):
        fastsal.PGD(nn.LazyLinear(3))(x, y)
