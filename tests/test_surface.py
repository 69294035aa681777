"""The surface that users expect of an attack, line by line. Each of these is broken by some library today."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastsal

N, CLASSES = 12, 4
SHAPES = {2: (N, 20), 3: (N, 5, 4), 4: (N, 2, 5, 4), 5: (N, 2, 3, 2, 2)}


def linear(shape: tuple[int, ...] = SHAPES[4], dtype: torch.dtype = torch.float32) -> nn.Module:
    """Sensitive enough for SENSE to stop rows at different steps."""
    torch.manual_seed(11)
    width = int(np.prod(shape[1:]))
    net = nn.Sequential(nn.Flatten(), nn.Linear(width, 24), nn.Tanh(), nn.Linear(24, CLASSES))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(4)
    return net.to(dtype)


def batch(
    shape: tuple[int, ...] = SHAPES[4], dtype: torch.dtype = torch.float32, model: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """Inputs, and labels of which most are right."""
    g = torch.Generator().manual_seed(12)
    x = torch.rand(shape, generator=g, dtype=dtype)
    with torch.no_grad():
        y = (model or linear(shape, dtype))(x).argmax(1)
    y[::6] = (y[::6] + 1) % CLASSES
    return x, y


KINDS: dict[str, Callable[..., Any]] = {
    "SENSE": lambda model, **k: fastsal.SENSE(model, **{"eps": 0.2, "steps": 4, "c": 0.5, **k}),
    "PGD": lambda model, **k: fastsal.PGD(model, **{"eps": 0.2, "steps": 4, **k}),
}
each_attack = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
each_norm = pytest.mark.parametrize("norm", ["Linf", "L2"])


# ------------------------------------------------------------------ names and ways to call


def test_the_defaults_are_those_that_people_compare_with() -> None:
    model, (x, y) = linear(), batch()
    default = fastsal.SENSE(model)(x, y, seed=1)
    spelled = fastsal.SENSE(
        model,
        eps=8 / 255,
        alpha=1.5 / 255,
        steps=10,
        c=0.5,
        norm="Linf",
        random_start=True,
        loss="ce",
        targeted=False,
        ignored="clean",
        decide_at="start",
        truncate=True,
        clip_min=0.0,
        clip_max=1.0,
        check_inputs=True,
    )(x, y, seed=1)
    torch.testing.assert_close(default, spelled, rtol=0, atol=1e-6)
    default = fastsal.PGD(model)(x, y, seed=1)
    spelled = fastsal.PGD(
        model,
        eps=8 / 255,
        alpha=1.5 / 255,
        steps=10,
        norm="Linf",
        random_start=True,
        loss="ce",
        targeted=False,
        clip_min=0.0,
        clip_max=1.0,
        check_inputs=True,
    )(x, y, seed=1)
    torch.testing.assert_close(default, spelled, rtol=0, atol=1e-6)


def test_the_arguments_may_be_given_by_position() -> None:
    model, (x, y) = linear(), batch()
    by_name = fastsal.SENSE(model, eps=0.2, alpha=0.05, steps=3, c=0.7, norm="L2")(x, y, seed=1)
    assert torch.equal(fastsal.SENSE(model, 0.2, 0.05, 3, 0.7, "L2")(x, y, seed=1), by_name)
    by_name = fastsal.PGD(model, eps=0.2, alpha=0.05, steps=3, norm="L2")(x, y, seed=1)
    assert torch.equal(fastsal.PGD(model, 0.2, 0.05, 3, "L2")(x, y, seed=1), by_name)


@each_attack
def test_attack_perturb_is_the_call(make) -> None:
    model, (x, y) = linear(), batch()
    attack = make(model)
    assert torch.equal(attack(x, y, seed=3), attack.perturb(x, y, seed=3))
    x_adv, info = attack.perturb(x, y, seed=3, sample_ids=torch.arange(N), return_info=True)
    assert torch.equal(x_adv, attack(x, y, seed=3)) and info.stop_step.shape == (N,)


def test_the_pure_function_is_the_attack() -> None:
    model, (x, y) = linear(), batch()
    for k in (dict(c=0.5), dict(c=0.3, norm="L2", ignored="start", decide_at="clean", truncate=False)):
        made = fastsal.SENSE(model, eps=0.2, steps=4, **k)(x, y, seed=3)
        assert torch.equal(fastsal.perturb(model, x, y, eps=0.2, steps=4, seed=3, **k), made)
    made = fastsal.PGD(model, eps=0.2, steps=4, loss="margin")(x, y, seed=3)
    pure = fastsal.perturb(model, x, y, eps=0.2, steps=4, c=None, loss="margin", seed=3)
    assert torch.equal(pure, made)


def test_without_a_threshold_sense_is_pgd() -> None:
    model, (x, y) = linear(), batch()
    for norm in ("Linf", "L2"):
        pgd = fastsal.PGD(model, 0.2, steps=4, norm=norm)(x, y, seed=3)
        sense, info = fastsal.SENSE(model, 0.2, steps=4, c=None, norm=norm)(x, y, seed=3, return_info=True)
        assert torch.equal(pgd, sense)
        assert not info.ignored.any() and (info.stop_step == 4).all()


def test_info_has_the_promised_types() -> None:
    model, (x, y) = linear(), batch()
    _, info = fastsal.SENSE(model, 0.2, steps=4)(x, y, seed=3, return_info=True)
    assert info.stop_step.shape == (N,) and info.stop_step.dtype == torch.int64
    assert info.ignored.shape == (N,) and info.ignored.dtype == torch.bool
    assert info.nonfinite.shape == (N,) and info.nonfinite.dtype == torch.bool
    assert all(type(n) is int for n in [*info.live, info.row_forwards, info.row_backwards])
    assert all(type(s) is float for s in info.live_share)
    assert 0 < info.ignored.sum() < N and (info.stop_step[info.ignored] == -1).all()


@pytest.mark.parametrize("norm", [np.inf, float("inf"), "Linf"], ids=repr)
def test_names_of_the_linf_norm(norm) -> None:
    model, (x, y) = linear(), batch()
    expected = fastsal.PGD(model, 0.2, steps=3)(x, y, seed=1)
    assert torch.equal(fastsal.PGD(model, 0.2, steps=3, norm=norm)(x, y, seed=1), expected)


@pytest.mark.parametrize("norm", [2, 2.0, np.float64(2), "L2"], ids=repr)
def test_names_of_the_l2_norm(norm) -> None:
    model, (x, y) = linear(), batch()
    expected = fastsal.PGD(model, 0.2, steps=3, norm="L2")(x, y, seed=1)
    assert torch.equal(fastsal.PGD(model, 0.2, steps=3, norm=norm)(x, y, seed=1), expected)
    assert not torch.equal(fastsal.PGD(model, 0.2, steps=3)(x, y, seed=1), expected)


# ------------------------------------------------------------------ what comes back


@each_attack
@each_norm
def test_the_result_is_detached(make, norm) -> None:
    model, (x, y) = linear(), batch()
    x.requires_grad_()
    x_adv = make(model, norm=norm)(x, y)
    assert not x_adv.requires_grad and x_adv.grad_fn is None
    assert x.requires_grad and x.grad is None
    for k in (dict(eps=0.0), dict(steps=0)):
        x_adv = make(model, norm=norm, **k)(x, y)
        assert not x_adv.requires_grad and x_adv.grad_fn is None


@each_attack
def test_the_result_of_a_non_leaf_is_detached(make) -> None:
    model, (x, y) = linear(), batch()
    scale = torch.ones((), requires_grad=True)
    x_adv = make(model)(x * scale, y)
    assert not x_adv.requires_grad and scale.grad is None


@each_attack
@each_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_result_has_the_dtype_and_shape_of_x(make, norm, dtype) -> None:
    model, (x, y) = linear(dtype=dtype), batch(dtype=dtype)
    x_adv = make(model, norm=norm)(x, y)
    assert x_adv.dtype == dtype and x_adv.shape == x.shape


@each_attack
def test_the_result_is_on_the_device_of_x(make) -> None:
    model, (x, y) = linear(), batch()
    assert make(model)(x, y).device == x.device


@each_attack
@each_norm
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_result_has_the_memory_format_of_x(make, norm, layout) -> None:
    shape = (N, 3, 6, 5)
    model, (x, y) = linear(shape, torch.float64), batch(shape, torch.float64)
    fmt = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
    laid = x.contiguous(memory_format=fmt)
    x_adv, info = make(model, norm=norm)(laid, y, seed=1, return_info=True)
    assert x_adv.stride() == laid.stride()
    assert x_adv.is_contiguous(memory_format=fmt)
    plain, plain_info = make(model, norm=norm)(x, y, seed=1, return_info=True)
    torch.testing.assert_close(x_adv, plain, rtol=0, atol=1e-9)
    assert torch.equal(info.stop_step, plain_info.stop_step)


@each_norm
def test_the_noise_does_not_depend_on_the_memory_format(norm) -> None:
    x = torch.rand(N, 3, 6, 5)
    start = fastsal.functional.random_start
    plain = start(x, 0.1, seed=1, norm=norm)
    assert torch.equal(start(x.contiguous(memory_format=torch.channels_last), 0.1, seed=1, norm=norm), plain)
    spread = x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    assert not spread.is_contiguous()
    assert torch.equal(start(spread, 0.1, seed=1, norm=norm), plain)


@each_attack
@each_norm
def test_inputs_of_any_stride(make, norm) -> None:
    """Slices, transposes and broadcast rows: nothing the user has to know about."""
    model, (x, y) = linear(dtype=torch.float64), batch(dtype=torch.float64)
    expected = make(model, norm=norm)(x, y, seed=1)
    padded = torch.zeros(2 * N, 2, 5, 9, dtype=torch.float64)
    padded[::2, :, :, ::2][:, :, :, :4] = x
    sliced = padded[::2, :, :, ::2][:, :, :, :4]
    swapped = x.transpose(2, 3).contiguous().transpose(2, 3)
    for z in (sliced, swapped):
        assert torch.equal(z, x) and not z.is_contiguous()
        torch.testing.assert_close(make(model, norm=norm)(z, y, seed=1), expected, rtol=0, atol=1e-9)
    repeated = x[:1].expand(N, -1, -1, -1)
    torch.testing.assert_close(
        make(model, norm=norm)(repeated, y, seed=1),
        make(model, norm=norm)(repeated.contiguous(), y, seed=1),
        rtol=0,
        atol=1e-9,
    )


@each_attack
@each_norm
@pytest.mark.parametrize("k", [{}, dict(random_start=False), dict(steps=0), dict(eps=0.0)], ids=str)
def test_x_and_y_are_unchanged_and_not_aliased(make, norm, k) -> None:
    model, (x, y) = linear(), batch()
    x_before, y_before = x.clone(), y.clone()
    x_adv = make(model, norm=norm, **k)(x, y)
    assert torch.equal(x, x_before) and torch.equal(y, y_before)
    x_adv.fill_(7)
    assert torch.equal(x, x_before)


@each_attack
@each_norm
def test_under_a_no_grad_caller(make, norm) -> None:
    model, (x, y) = linear(), batch()
    expected = make(model, norm=norm)(x, y, seed=1)
    with torch.no_grad():
        x_adv = make(model, norm=norm)(x, y, seed=1)
        assert not torch.is_grad_enabled()
    assert torch.equal(x_adv, expected)
    assert torch.is_grad_enabled()


@each_attack
@each_norm
def test_under_an_inference_mode_caller(make, norm) -> None:
    model, (x, y) = linear(), batch()
    expected = make(model, norm=norm)(x, y, seed=1)
    with torch.inference_mode():
        inside = x.clone()  # an inference tensor
        x_adv = make(model, norm=norm)(inside, y.clone(), seed=1)
        by_prediction = make(model, norm=norm)(inside, seed=1)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(x_adv, expected)
    assert torch.equal(by_prediction, make(model, norm=norm)(x, seed=1))


@each_attack
def test_an_inference_tensor_outside_inference_mode(make) -> None:
    model, (x, y) = linear(), batch()
    with torch.inference_mode():
        inside, labels = x.clone(), y.clone()
    assert torch.equal(make(model)(inside, labels, seed=1), make(model)(x, y, seed=1))


# ------------------------------------------------------------------ eps, alpha, box


@each_attack
@each_norm
def test_eps_may_differ_per_sample(make, norm) -> None:
    model, (x, y) = linear(dtype=torch.float64), batch(dtype=torch.float64)
    eps = torch.linspace(0.0, 0.5, N, dtype=torch.float64)
    for alpha in (None, 0.03):
        together = make(model, norm=norm, eps=eps, alpha=alpha)(x, y, seed=1)
        for i, e in enumerate(eps.tolist()):
            alone = make(model, norm=norm, eps=e, alpha=alpha)
            one = alone(x[i : i + 1], y[i : i + 1], seed=1, sample_ids=torch.tensor([i]))
            torch.testing.assert_close(together[i : i + 1], one, rtol=0, atol=1e-9)
        assert torch.equal(together[0], x[0])  # a radius of zero: x, and no noise


@each_attack
@each_norm
def test_alpha_may_differ_per_sample(make, norm) -> None:
    model, (x, y) = linear(dtype=torch.float64), batch(dtype=torch.float64)
    alpha = torch.linspace(0.01, 0.2, N, dtype=torch.float64)
    together = make(model, norm=norm, alpha=alpha)(x, y, seed=1)
    for i, a in enumerate(alpha.tolist()):
        one = make(model, norm=norm, alpha=a)(x[i : i + 1], y[i : i + 1], seed=1, sample_ids=torch.tensor([i]))
        torch.testing.assert_close(together[i : i + 1], one, rtol=0, atol=1e-9)


@each_norm
def test_eps_and_alpha_per_sample_hold_in_float32(norm) -> None:
    model, (x, y) = linear(), batch()
    for dtype in (torch.float32, torch.float64):
        eps = torch.linspace(0.01, 0.5, N, dtype=dtype)
        x_adv = fastsal.PGD(model, eps, eps / 3, 4, norm)(x, y, seed=1)
        delta = (x_adv.double() - x.double()).flatten(1)
        size = delta.norm(dim=1) if norm == "L2" else delta.abs().amax(1)
        assert (size <= eps.double()).all() and (size > 0.5 * eps.double()).all()


@each_norm
def test_alpha_none_is_1875_eps_over_steps(norm) -> None:
    model, (x, y) = linear(dtype=torch.float64), batch(dtype=torch.float64)
    for steps in (1, 3, 10):
        default = fastsal.PGD(model, 0.2, None, steps, norm)(x, y, seed=1)
        spelled = fastsal.PGD(model, 0.2, 1.875 * 0.2 / steps, steps, norm)(x, y, seed=1)
        torch.testing.assert_close(default, spelled, rtol=0, atol=1e-12)


@each_attack
@each_norm
def test_the_box_as_two_floats(make, norm) -> None:
    model, (x, y) = linear(), batch()
    x = 2 * x - 1
    x_adv = make(model, norm=norm, eps=0.5, clip_min=-1.0, clip_max=1.0)(x, y, seed=1)
    assert x_adv.min() >= -1 and x_adv.max() <= 1
    assert x_adv.min() < -0.9 and x_adv.max() > 0.9


@each_attack
@each_norm
def test_the_box_per_channel(make, norm) -> None:
    """Normalised inputs: each channel has its own box."""
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    low, high = -mean / std, (1 - mean) / std
    for shape in [(N, 3), (N, 3, 5), (N, 3, 4, 4), (N, 3, 2, 2, 2)]:
        model = linear(shape)
        x, y = batch(shape)
        per = [-1, *[1] * (len(shape) - 2)]
        low_x, high_x = low.reshape(per), high.reshape(per)
        x = torch.minimum(torch.maximum(low_x + x * (high_x - low_x), low_x), high_x)
        x_adv = make(model, norm=norm, eps=1.5, clip_min=low, clip_max=high)(x, y, seed=1)
        assert (x_adv >= low_x).all() and (x_adv <= high_x).all()
        if norm == "Linf" and make is KINDS["PGD"]:
            assert (x_adv == low_x).any() and (x_adv == high_x).any()


@each_attack
@each_norm
def test_a_box_per_channel_equals_the_box_of_floats(make, norm) -> None:
    model, (x, y) = linear(), batch()
    floats = make(model, norm=norm, clip_min=0.0, clip_max=1.0)(x, y, seed=1)
    tensors = make(model, norm=norm, clip_min=torch.zeros(2), clip_max=torch.ones(2))(x, y, seed=1)
    mixed = make(model, norm=norm, clip_min=0.0, clip_max=torch.ones(2))(x, y, seed=1)
    assert torch.equal(floats, tensors) and torch.equal(floats, mixed)


@each_attack
@each_norm
def test_no_box_at_all(make, norm) -> None:
    model, (x, y) = linear(), batch()
    x = 100 * x - 50
    x_adv = make(model, norm=norm, clip_min=None, clip_max=None)(x, y, seed=1)
    assert x_adv.isfinite().all() and x_adv.min() < -10 and x_adv.max() > 10
    half_open = fastsal.PGD(model, 3.0, steps=4, clip_min=None, clip_max=50.0)(x, y, seed=1)
    assert half_open.max() <= 50 and half_open.min() < -50


@each_attack
@each_norm
@pytest.mark.parametrize("k", [dict(eps=0.0), dict(eps=0), dict(steps=0)], ids=str)
def test_nothing_to_do_returns_x_without_noise(make, norm, k) -> None:
    model, (x, y) = linear(), batch()
    assert torch.equal(make(model, norm=norm, **k)(x, y), x)
    assert torch.equal(make(model, norm=norm, **k)(x), x)
    x_adv, info = make(model, norm=norm, **k)(x, y, return_info=True)
    assert torch.equal(x_adv, x) and info.stop_step.shape == (N,)


@each_attack
@each_norm
@pytest.mark.parametrize("k", [{}, dict(eps=0.0), dict(steps=0), dict(random_start=False)], ids=str)
def test_an_x_barely_outside_the_box_is_clamped_and_is_then_x(make, norm, k) -> None:
    model, (x, y) = linear(), batch()
    x[:, 0, 0, 0] = -9e-7
    x[:, 1, 0, 0] = 1 + 9e-7
    clamped = x.clamp(0, 1)
    attack = make(model, norm=norm, **k)
    x_adv, info = attack(x, y, seed=1, return_info=True)
    assert torch.equal(x_adv, attack(clamped, y, seed=1))
    assert torch.equal(x_adv[info.ignored], clamped[info.ignored])


@each_attack
@each_norm
def test_it_is_clamped_into_the_box_that_was_given(make, norm) -> None:
    model, (x, y) = linear(), batch()
    channels = torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 5.0])
    for low, high in ((-1.0, 1.0), (-1.0, None), (None, 1.0), channels):
        bounds = [None if v is None else torch.as_tensor(v).reshape(-1, 1, 1) for v in (low, high)]
        z = x.clone() if low is not channels[0] else x + torch.tensor([0.0, 3.0]).reshape(-1, 1, 1)
        if bounds[0] is not None:
            z[0] = bounds[0] - 9e-7
        if bounds[1] is not None:
            z[1] = bounds[1] + 9e-7
        attack = make(model, norm=norm, clip_min=low, clip_max=high)
        clamped = z.clamp(*bounds)
        assert not torch.equal(z, clamped)
        assert torch.equal(attack(z, y, seed=1), attack(clamped, y, seed=1)), (low, high)


# ------------------------------------------------------------------ labels and losses


@each_norm
def test_a_targeted_attack_descends_towards_y(norm) -> None:
    model, (x, y) = linear(), batch()
    target = (y + 1) % CLASSES
    x_adv = fastsal.PGD(model, 0.4, steps=10, norm=norm, targeted=True)(x, target, seed=1)
    with torch.no_grad():
        p = torch.stack([model(z).softmax(1).gather(1, target[:, None])[:, 0] for z in (x, x_adv)])
    assert (p[1] >= p[0]).all() and p[1].mean() > p[0].mean()


def test_targeted_needs_no_threshold() -> None:
    model = linear()
    complains(lambda: fastsal.SENSE(model, targeted=True)(*batch(), seed=1), "targeted")
    complains(lambda: fastsal.perturb(model, *batch(), targeted=True, c=0.5), "targeted")
    x, y = batch()
    sense = fastsal.SENSE(model, 0.2, steps=3, c=None, targeted=True)(x, y, seed=1)
    assert torch.equal(sense, fastsal.PGD(model, 0.2, steps=3, targeted=True)(x, y, seed=1))


@each_attack
@each_norm
def test_y_none_means_the_models_own_predictions(make, norm) -> None:
    model, (x, _) = linear(), batch()
    model.train()
    predicted = model(x).argmax(1)
    for attack in (make(model, norm=norm), make(model, norm=norm, random_start=False)):
        assert torch.equal(attack(x, seed=1), attack(x, predicted, seed=1))
        assert torch.equal(attack(x, None, seed=1), attack(x, predicted, seed=1))
        assert torch.equal(attack.perturb(x, seed=1), attack(x, predicted, seed=1))


@each_norm
def test_the_margin_loss_raises_the_margin(norm) -> None:
    model, (x, y) = linear(dtype=torch.float64), batch(dtype=torch.float64)
    x_adv = fastsal.PGD(model, 0.3, steps=8, norm=norm, loss="margin")(x, y, seed=1)
    with torch.no_grad():
        margin = [
            m.masked_fill(torch.eye(CLASSES).bool()[y], -np.inf).amax(1) - m.gather(1, y[:, None])[:, 0]
            for m in (model(x), model(x_adv))
        ]
    assert (margin[1] > margin[0]).all()


# ------------------------------------------------------------------ seeds


@each_attack
@each_norm
def test_the_same_seed_is_the_same_result_bit_for_bit(make, norm) -> None:
    model, (x, y) = linear(), batch()
    attack = make(model, norm=norm)
    assert torch.equal(attack(x, y, seed=5), attack(x, y, seed=5))
    assert torch.equal(make(model, norm=norm)(x, y, seed=5), attack(x, y, seed=5))
    assert not torch.equal(attack(x, y, seed=5), attack(x, y, seed=6))


@each_norm
def test_the_noise_is_keyed_by_sample_and_not_by_batch(norm) -> None:
    x = torch.rand(N, 3, 6, 5)
    ids = torch.randperm(10**6)[:N] + 2**33
    start = fastsal.functional.random_start
    whole = start(x, 0.1, seed=5, sample_ids=ids, norm=norm)
    for parts in (torch.arange(N).split(1), torch.arange(N).split(5), (torch.randperm(N),)):
        for p in parts:
            assert torch.equal(start(x[p], 0.1, seed=5, sample_ids=ids[p], norm=norm), whole[p])
    same = start(x[:1].expand(N, -1, -1, -1), 0.1, seed=5, sample_ids=ids, norm=norm)
    assert len({row.numpy().tobytes() for row in same}) == N


@each_attack
@each_norm
def test_the_same_ids_give_the_same_result_under_any_batch_split(make, norm) -> None:
    model, (x, y) = linear(dtype=torch.float64), batch(dtype=torch.float64)
    attack, ids = make(model, norm=norm), torch.arange(N) * 7 + 3
    whole = attack(x, y, seed=5, sample_ids=ids)
    for size in (1, 5):
        parts = [attack(x[p], y[p], seed=5, sample_ids=ids[p]) for p in torch.arange(N).split(size)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-9)


@each_attack
def test_sample_ids_are_counted_from_zero_by_default(make) -> None:
    model, (x, y) = linear(), batch()
    assert torch.equal(make(model)(x, y, seed=5), make(model)(x, y, seed=5, sample_ids=torch.arange(N)))


@each_attack
@each_norm
def test_without_a_seed_exactly_one_integer_is_drawn(make, norm) -> None:
    model, (x, y) = linear(), batch()
    torch.manual_seed(99)
    torch.empty((), dtype=torch.int64).random_()
    expected = torch.get_rng_state()
    for k in ({}, dict(steps=1), dict(steps=9, eps=0.01)):
        torch.manual_seed(99)
        make(model, norm=norm, **k)(x, y)
        assert torch.equal(torch.get_rng_state(), expected), k
    torch.manual_seed(99)
    make(model, norm=norm)(x)
    assert torch.equal(torch.get_rng_state(), expected)


@each_attack
def test_the_global_seed_decides_when_none_is_given(make) -> None:
    model, (x, y) = linear(), batch()
    attack = make(model)
    torch.manual_seed(99)
    first, second = attack(x, y), attack(x, y)
    torch.manual_seed(99)
    assert torch.equal(attack(x, y), first)
    assert not torch.equal(first, second)
    torch.manual_seed(99)
    drawn = int(torch.empty((), dtype=torch.int64).random_())
    assert torch.equal(attack(x, y, seed=drawn), first)


@each_attack
@each_norm
def test_a_seed_leaves_the_global_rng_alone(make, norm) -> None:
    model, (x, y) = linear(), batch()
    before = torch.get_rng_state()
    make(model, norm=norm)(x, y, seed=5)
    make(model, norm=norm)(x, seed=5)
    fastsal.functional.random_start(x, 0.1, seed=5, norm=norm)
    assert torch.equal(torch.get_rng_state(), before)


@each_attack
@each_norm
def test_a_generator_decides_and_leaves_the_global_rng_alone(make, norm) -> None:
    model, (x, y) = linear(), batch()
    attack = make(model, norm=norm)
    before = torch.get_rng_state()
    g = torch.Generator().manual_seed(4)
    first, second = attack(x, y, generator=g), attack(x, y, generator=g)
    again = attack(x, y, generator=torch.Generator().manual_seed(4))
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_extreme_seeds_and_ids_are_fine() -> None:
    model, (x, y) = linear(), batch()
    results = []
    for seed in (0, -1, 2**63 - 1, -(2**63), 2**32):
        results.append(fastsal.PGD(model, 0.2, steps=2)(x, y, seed=seed))
    for a, b in itertools.combinations(results, 2):
        assert not torch.equal(a, b)
    ids = torch.full((N,), 2**63 - 1)
    assert fastsal.PGD(model, 0.2, steps=2)(x, y, seed=0, sample_ids=ids).isfinite().all()


# ------------------------------------------------------------------ shapes and models


@each_attack
@each_norm
@pytest.mark.parametrize("rank", SHAPES)
def test_any_input_rank_from_two_up(make, norm, rank) -> None:
    """The rank is only a shape: the same numbers give the same attack."""
    shape = SHAPES[rank]
    model, flat = linear(shape, torch.float64), (N, int(np.prod(shape[1:])))
    x, y = batch(shape, torch.float64)
    x_adv = make(model, norm=norm)(x, y, seed=1)
    assert x_adv.shape == shape
    expected = make(model, norm=norm)(x.reshape(flat), y, seed=1)
    torch.testing.assert_close(x_adv.reshape(flat), expected, rtol=0, atol=1e-9)


@each_attack
@each_norm
@pytest.mark.parametrize("rank", SHAPES)
def test_an_empty_batch(make, norm, rank) -> None:
    shape = (0, *SHAPES[rank][1:])
    x, y = torch.rand(shape), torch.zeros(0, dtype=torch.int64)
    x_adv, info = make(linear(SHAPES[rank]), norm=norm)(x, y, return_info=True)
    assert x_adv.shape == shape and x_adv.dtype == torch.float32
    assert info.stop_step.shape == (0,) and info.ignored.shape == (0,)
    assert info.row_forwards == 0 and info.row_backwards == 0
    assert make(linear(SHAPES[rank]), norm=norm)(x).shape == shape


@each_attack
@each_norm
def test_a_batch_of_one(make, norm) -> None:
    model, (x, y) = linear(), batch()
    assert make(model, norm=norm)(x[:1], y[:1]).shape == (1, *x.shape[1:])


@each_attack
def test_two_classes(make) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(40, 2))
    x = torch.rand(6, 40)
    assert make(model)(x, torch.tensor([0, 1] * 3)).shape == x.shape


@each_attack
@each_norm
def test_float64_models_run_in_float64(make, norm) -> None:
    """Not through float32 on the way: with eps = 1e-11 there would be nothing left."""
    model, (x, y) = linear(dtype=torch.float64), batch(dtype=torch.float64)
    seen = []

    class Seeing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, z: Tensor) -> Tensor:
            seen.append(z.dtype)
            return self.inner(z)

    x_adv, info = make(Seeing(), norm=norm, eps=1e-11)(x, y, seed=1, return_info=True)
    assert x_adv.dtype == torch.float64 and set(seen) == {torch.float64}
    moved = (x_adv - x).flatten(1).abs().amax(1)
    assert (moved[~info.ignored] > 0).all() and (moved <= 1e-11).all()


@each_attack
@each_norm
def test_models_that_return_an_object_with_logits(make, norm) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear()

        def forward(self, x: Tensor) -> SimpleNamespace:
            return SimpleNamespace(loss=None, logits=self.inner(x))

    x, y = batch()
    expected = make(linear(), norm=norm)(x, y, seed=1)
    assert torch.equal(make(Wrapped(), norm=norm)(x, y, seed=1), expected)
    assert torch.equal(make(Wrapped(), norm=norm)(x, seed=1), make(linear(), norm=norm)(x, seed=1))


@each_attack
def test_a_plain_function_is_a_model(make) -> None:
    model, (x, y) = linear(), batch()
    expected = make(model)(x, y, seed=1)
    assert torch.equal(make(lambda z: model(z))(x, y, seed=1), expected)
    assert torch.equal(make(model.forward)(x, y, seed=1), expected)
    assert all(p.grad is None for p in model.parameters())


@each_attack
def test_an_input_that_is_a_parameter(make) -> None:
    model, (x, y) = linear(), batch()
    x_adv = make(model)(nn.Parameter(x), y, seed=1)
    assert type(x_adv) is Tensor and torch.equal(x_adv, make(model)(x, y, seed=1))


@each_attack
def test_a_data_parallel_wrapper_is_no_obstacle(make) -> None:
    x, y = batch()
    expected = make(linear())(x, y, seed=1)
    torch.testing.assert_close(make(nn.DataParallel(linear()))(x, y, seed=1), expected)


@each_attack
def test_a_model_that_calls_view_is_no_obstacle(make) -> None:
    """`.view` refuses channels_last activations."""

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(48, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).view(len(x), -1))

    model = Views().double()
    x, y = batch((N, 3, 6, 5), torch.float64, model)
    assert make(model)(x, y).shape == x.shape


@each_attack
def test_weights_changed_between_calls_count(make) -> None:
    """The attack keeps nothing of the model from call to call, however the weights were changed."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Linear(96, CLASSES))
    with torch.no_grad():
        model[4].weight.mul_(20)
    model = model.double()
    x, y = batch((N, 3, 6, 5), torch.float64, model.eval())
    attack = make(model)
    before = attack(x, y, seed=1)
    model[4].weight.data.neg_()
    model[1].running_var.data.mul_(3)
    after = attack(x, y, seed=1)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, make(model)(x, y, seed=1), rtol=0, atol=0)


@each_attack
def test_a_model_in_train_mode_is_attacked_in_eval_mode(make) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten(), nn.Linear(96, CLASSES))
    model = model.double()
    x, y = batch((N, 3, 6, 5), torch.float64, model.eval())
    in_eval = make(model)(x, y, seed=1)
    in_train = make(model.train())(x, y, seed=1)
    torch.testing.assert_close(in_train, in_eval, rtol=0, atol=1e-9)


# ------------------------------------------------------------------ threshold


class Scripted(nn.Module):
    """Logits written down per forward: forward k returns table[k] (its last row from then on) for every row."""

    def __init__(self, *table: list[float], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.table = [torch.tensor(t, dtype=dtype) for t in table]
        self.slope = nn.Parameter(torch.arange(float(len(table[0])), dtype=dtype))
        self.calls = 0

    def __deepcopy__(self, memo: dict) -> Scripted:
        return self

    def forward(self, x: Tensor) -> Tensor:
        now = self.table[min(self.calls, len(self.table) - 1)]
        self.calls += 1
        s = x.flatten(1).sum(1, keepdim=True) * self.slope
        return now + s - s.detach()  # the value of the table, the gradient of the slope


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [2, 4])
def test_a_tie_with_the_cut_is_inside(dtype, classes) -> None:
    """Equal logits: CE is log(classes) and so is the cut. The lowest class is right, the others are not."""
    x = torch.full((classes, 6), 0.5, dtype=dtype)
    y = torch.arange(classes)
    model = Scripted([0.0] * classes, dtype=dtype)
    x_adv, info = fastsal.SENSE(model, 0.1, steps=3, c=1 / classes)(x, y, seed=0, return_info=True)
    assert info.ignored.tolist() == [False] + [True] * (classes - 1)
    assert info.stop_step.tolist() == [3] + [-1] * (classes - 1)
    assert torch.equal(x_adv[1:], x[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_unit_beyond_a_tie_is_over(dtype) -> None:
    x, y = torch.full((2, 6), 0.5, dtype=dtype), torch.zeros(2, dtype=torch.int64)
    just_below = float(np.nextafter(1.0, 0)) if dtype == torch.float64 else 1 - 2.0**-20
    _, info = fastsal.SENSE(Scripted([0.0, 0.0], dtype=dtype), 0.1, steps=3, c=0.5 / just_below)(
        x, y, seed=0, return_info=True
    )
    assert info.ignored.all()


def test_a_nan_at_the_start_is_ignored() -> None:
    x, y = torch.full((3, 6), 0.5), torch.zeros(3, dtype=torch.int64)
    for c in (0, 0.5):
        for logits in ([np.nan, np.nan], [np.nan, 0.0], [9.0, np.nan]):
            x_adv, info = fastsal.SENSE(Scripted(logits), 0.1, steps=3, c=c)(x, y, seed=0, return_info=True)
            assert info.ignored.all() and torch.equal(x_adv, x)


@pytest.mark.parametrize("c", [0, 0.5])
def test_a_nan_on_the_way_is_over_and_its_step_is_not_returned(c) -> None:
    """Good, good, NaN: the row stops at the iterate of the second forward, x_1."""
    x, y = torch.full((3, 6), 0.5), torch.zeros(3, dtype=torch.int64)
    model = Scripted([5.0, 0.0], [5.0, 0.0], [np.nan, 0.0])
    x_adv, info = fastsal.SENSE(model, 0.1, 0.02, 6, c, random_start=False)(x, y, return_info=True)
    assert not info.ignored.any() and info.stop_step.tolist() == [1] * 3
    torch.testing.assert_close(x_adv, x + 0.02)
    assert model.calls == 3


def test_an_infinite_loss_is_inside_at_c_zero() -> None:
    x, y = torch.full((2, 6), 0.5), torch.zeros(2, dtype=torch.int64)
    model = Scripted([5.0, 0.0], [-np.inf, 0.0])
    _, info = fastsal.SENSE(model, 0.1, 0.02, 4, 0, random_start=False)(x, y, return_info=True)
    assert info.stop_step.tolist() == [4, 4]


def test_rightness_is_tested_once() -> None:
    """With c below one half a later iterate may be misclassified and still inside the cut."""
    x, y = torch.full((2, 6), 0.5), torch.zeros(2, dtype=torch.int64)
    slightly_wrong = [0.0, 0.1]
    _, info = fastsal.SENSE(Scripted([0.1, 0.0], slightly_wrong), 0.1, steps=4, c=0.3)(x, y, seed=0, return_info=True)
    assert info.stop_step.tolist() == [4, 4]
    _, info = fastsal.SENSE(Scripted(slightly_wrong), 0.1, steps=4, c=0.3)(x, y, seed=0, return_info=True)
    assert info.ignored.all()


def test_a_row_over_the_cut_at_the_start_is_never_attacked() -> None:
    x, y = torch.full((2, 6), 0.5), torch.zeros(2, dtype=torch.int64)
    model = Scripted([0.1, 0.0])
    clean = fastsal.SENSE(model, 0.1, steps=4, c=0.9)(x, y, seed=0)
    noisy = fastsal.SENSE(model, 0.1, steps=4, c=0.9, ignored="start")(x, y, seed=0)
    assert torch.equal(clean, x)
    assert torch.equal(noisy, fastsal.functional.random_start(x, 0.1, seed=0))


def test_decided_at_clean_a_row_that_crosses_at_the_start_returns_x() -> None:
    x, y = torch.full((2, 6), 0.5), torch.zeros(2, dtype=torch.int64)
    for ignored in ("clean", "start"):
        model = Scripted([5.0, 0.0], [0.0, 5.0])
        x_adv, info = fastsal.SENSE(model, 0.1, steps=4, decide_at="clean", ignored=ignored)(
            x, y, seed=0, return_info=True
        )
        assert torch.equal(x_adv, x) and model.calls == 2
        assert info.stop_step.tolist() == [-1, -1] and not info.ignored.any()


def test_without_truncation_ignored_rows_stay_ignored_and_the_others_run_to_the_end() -> None:
    x, y = torch.full((2, 6), 0.5), torch.tensor([0, 1])
    model = Scripted([5.0, 0.0], [0.0, 5.0])
    x_adv, info = fastsal.SENSE(model, 0.1, steps=4, truncate=False)(x, y, seed=0, return_info=True)
    assert info.ignored.tolist() == [False, True] and info.stop_step.tolist() == [4, -1]
    assert torch.equal(x_adv[1], x[1]) and model.calls == 4


# ------------------------------------------------------------------ gradients that are not finite


class PoisonGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, where: Tensor, value: float) -> Tensor:
        ctx.save_for_backward(where)
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (where,) = ctx.saved_tensors
        return grad.masked_fill(where[: len(grad)], ctx.value), None, None


class Poisoned(nn.Module):
    """The gradient of one element of the first row of the batch is not a number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.inner, self.value = linear(), value

    def forward(self, x: Tensor) -> Tensor:
        where = torch.zeros_like(x, dtype=torch.bool)
        where[0, 0, 0, :2] = True
        return self.inner(PoisonGradient.apply(x, where, self.value))


@each_norm
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_moves_nothing_and_is_flagged(norm, value) -> None:
    """Its element in Linf, its row in L2. The rest moves as ever."""
    x, y = batch()
    attack = fastsal.PGD(Poisoned(value), 0.2, steps=3, norm=norm)
    x_adv, info = attack(x, y, seed=1, return_info=True)
    x_0 = fastsal.functional.random_start(x, 0.2, seed=1, norm=norm)
    healthy = fastsal.PGD(linear(), 0.2, steps=3, norm=norm)(x, y, seed=1)
    assert x_adv.isfinite().all()
    assert info.nonfinite.tolist() == [True] + [False] * (N - 1)
    if norm == "Linf":
        assert torch.equal(x_adv[0, 0, 0, :2], x_0[0, 0, 0, :2])
        assert not torch.equal(x_adv[0], x_0[0])
    else:
        assert torch.equal(x_adv[0], x_0[0])
    torch.testing.assert_close(x_adv[1:], healthy[1:])


@each_attack
@each_norm
def test_a_model_that_is_nan_all_over_returns_numbers(make, norm) -> None:
    x, y = batch()
    x_adv, info = make(nn.Sequential(linear(), Times(float("nan"))), norm=norm)(x, y, seed=1, return_info=True)
    assert x_adv.isfinite().all()
    if make is KINDS["PGD"]:
        assert torch.equal(x_adv, fastsal.functional.random_start(x, 0.2, seed=1, norm=norm))
        assert info.nonfinite.all()
    else:
        assert torch.equal(x_adv, x) and info.ignored.all()


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, z: Tensor) -> Tensor:
        return z * self.factor


@each_norm
def test_a_zero_gradient_makes_a_zero_step(norm) -> None:
    x, y = batch()
    x_adv, info = fastsal.PGD(nn.Sequential(linear(), Times(0.0)), 0.2, steps=3, norm=norm)(
        x, y, seed=1, return_info=True
    )
    assert torch.equal(x_adv, fastsal.functional.random_start(x, 0.2, seed=1, norm=norm))
    assert not info.nonfinite.any()


# ------------------------------------------------------------------ errors


def complains(call: Callable[[], Any], name: str, *said: str) -> None:
    """One clear error: it names the argument, what was expected and what came."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    message = str(caught.value)
    assert re.search(rf"(?<![A-Za-z_]){re.escape(name)}(?![A-Za-z_])", message), f"{name!r} is not in: {message}"
    lower = message.lower()
    for word in ("expected", "got", *said):
        assert word.lower() in lower, f"{word!r} is not in: {message}"
    assert len(message) < 400, "an error is a sentence or two"


@each_attack
def test_error_x_outside_the_box(make) -> None:
    model, (x, y) = linear(), batch()
    for value, bad in ((-2e-6, "-"), (1 + 2e-6, "1"), (255.0, "255")):
        outside = x.clone()
        outside[3, 1, 2, 2] = value
        complains(lambda z=outside: make(model)(z, y), "x", bad)
        complains(lambda z=outside: make(model, eps=0.0)(z, y), "x", bad)


@each_attack
def test_error_x_outside_a_box_per_channel(make) -> None:
    model, (x, y) = linear(), batch()
    high = torch.tensor([1.0, 0.5])
    inside = x.clone()
    inside[:, 1] *= 0.5
    assert make(model, clip_max=high)(inside, y).shape == x.shape
    inside[0, 1, 0, 0] = 0.75
    complains(lambda: make(model, clip_max=high)(inside, y), "x")


@each_attack
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_error_x_not_finite(make, value) -> None:
    model, (x, y) = linear(), batch()
    x[1, 1, 1, 1] = value
    complains(lambda: make(model)(x, y), "x")


@each_attack
def test_error_label_range(make) -> None:
    model, (x, y) = linear(), batch()
    for value in (-1, CLASSES, 10**12):
        wrong = y.clone()
        wrong[4] = value
        complains(lambda w=wrong: make(model)(x, w), "y", str(value))


@each_attack
def test_error_label_shape(make) -> None:
    model, (x, y) = linear(), batch()
    complains(lambda: make(model)(x, y[:-1]), "y", str(N), str(N - 1))
    complains(lambda: make(model)(x, y[:, None]), "y")
    complains(lambda: make(model)(x, y[0]), "y")


@each_attack
def test_error_label_dtype(make) -> None:
    model, (x, y) = linear(), batch()
    complains(lambda: make(model)(x, y.float()), "y", "int64", "float32")
    complains(lambda: make(model)(x, torch.zeros(N, CLASSES)), "y")


@each_attack
def test_error_labels_that_are_no_tensor(make) -> None:
    model, (x, y) = linear(), batch()
    complains(lambda: make(model)(x, y.tolist()), "y", "tensor", "list")
    complains(lambda: make(model)(x.numpy(), y), "x", "tensor", "ndarray")


@each_attack
def test_error_mismatched_devices(make) -> None:
    model, (x, y) = linear(), batch()
    complains(lambda: make(model)(x, y.to("meta")), "y", "meta", "cpu")
    complains(lambda: make(linear().to("meta"))(x, y), "model", "meta", "cpu")


@each_attack
def test_error_mismatched_dtypes(make) -> None:
    x, y = batch()
    complains(lambda: make(linear(dtype=torch.float64))(x, y), "model", "float64", "float32")
    complains(lambda: make(linear())(x.double(), y), "model", "float64", "float32")


@each_attack
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_error_sixteen_bit_x_says_what_to_do(make, dtype) -> None:
    x, y = batch()
    complains(lambda: make(linear(dtype=dtype))(x.to(dtype), y), "x", "x.float()", str(dtype).removeprefix("torch."))


@each_attack
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_error_x_that_is_not_floating_point(make, dtype) -> None:
    x, y = batch()
    complains(lambda: make(linear())(x.to(dtype), y), "x", str(dtype).removeprefix("torch."))


@each_attack
@pytest.mark.parametrize("shape", [(), (N,)], ids=str)
def test_error_x_without_a_batch(make, shape) -> None:
    complains(lambda: make(linear())(torch.rand(shape), torch.zeros(N, dtype=torch.int64)), "x")


BAD_SIZES = [
    -0.1,
    np.nan,
    np.inf,
    "0.1",
    torch.full((N - 1,), 0.1),
    torch.full((N, 1), 0.1),
    torch.full((N,), -0.1),
    torch.full((N,), np.nan),
]


@each_attack
@pytest.mark.parametrize("alpha", [None, 0.05])
def test_error_eps(make, alpha) -> None:
    for eps in BAD_SIZES:
        complains(lambda e=eps: make(linear(), eps=e, alpha=alpha)(*batch()), "eps")


@each_attack
def test_error_alpha(make) -> None:
    for alpha in BAD_SIZES:
        complains(lambda a=alpha: make(linear(), alpha=a)(*batch()), "alpha")


@each_attack
@pytest.mark.parametrize("steps", [-1, 2.5, "3", None])
def test_error_steps(make, steps) -> None:
    complains(lambda: make(linear(), steps=steps)(*batch()), "steps")


@pytest.mark.parametrize("c", [-0.01, 1.01, np.nan, 50, "0.5"])
def test_error_c(c) -> None:
    complains(lambda: fastsal.SENSE(linear(), c=c)(*batch()), "c")
    complains(lambda: fastsal.perturb(linear(), *batch(), c=c), "c")


@each_attack
@pytest.mark.parametrize("norm", ["L3", 3, "linfty", None, 0])
def test_error_norm(make, norm) -> None:
    complains(lambda: make(linear(), norm=norm)(*batch()), "norm")


@each_attack
def test_error_loss(make) -> None:
    complains(lambda: make(linear(), loss="mse")(*batch()), "loss", "mse")


@pytest.mark.parametrize("name", ["ignored", "decide_at"])
def test_error_choices(name) -> None:
    complains(lambda: fastsal.SENSE(linear(), **{name: "noisy"})(*batch()), name, "clean", "start", "noisy")


@each_attack
def test_error_box(make) -> None:
    model, (x, y) = linear(), batch()
    complains(lambda: make(model, clip_min=1.0, clip_max=0.0)(x, y), "clip_min")
    complains(lambda: make(model, clip_max=torch.ones(3))(x, y), "clip_max", "3", "2")
    complains(lambda: make(model, clip_min=float("nan"))(x, y), "clip_min")


@each_attack
def test_error_sample_ids(make) -> None:
    model, (x, y) = linear(), batch()
    complains(lambda: make(model)(x, y, sample_ids=torch.arange(N - 1)), "sample_ids")
    complains(lambda: make(model)(x, y, sample_ids=torch.rand(N)), "sample_ids")


@each_attack
def test_error_seed(make) -> None:
    model, (x, y) = linear(), batch()
    complains(lambda: make(model)(x, y, seed="tomorrow"), "seed")
    complains(lambda: make(model)(x, y, seed=1, generator=torch.Generator()), "seed")


@each_attack
def test_error_model_output(make) -> None:
    x, y = batch()
    complains(lambda: make(nn.Sequential(nn.Conv2d(2, 4, 1)))(x, y), "model", "(12, 4, 5, 4)")
    complains(lambda: make(nn.Sequential(nn.Flatten(), nn.Linear(40, 1), nn.Flatten(0)))(x, y), "model")

    class Strings(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "cat"

    complains(lambda: make(Strings())(x, y), "model", "str")


@each_attack
def test_unchecked_inputs_give_the_same_result_when_they_are_right(make) -> None:
    model, (x, y) = linear(), batch()
    unchecked = make(model, check_inputs=False)(x, y, seed=1)
    assert torch.equal(unchecked, make(model)(x, y, seed=1))


# ------------------------------------------------------------------ warnings


@each_attack
def test_logits_cause_no_warning(make) -> None:
    model, (x, y) = linear(), batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(model)(x, y)
        make(model)(x)


@pytest.mark.parametrize("make", ["fastsal.SENSE", "fastsal.PGD"])
def test_outputs_that_look_like_probabilities_warn_exactly_once(make) -> None:
    """In a process of its own, because once is once."""
    program = f"""
        import warnings, torch, fastsal
        from torch import nn
        model = nn.Sequential(nn.Linear(5, 3), nn.Softmax(1))
        x, y = torch.rand(8, 5), torch.zeros(8, dtype=torch.int64)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            attack = {make}(model, 0.1, steps=4)
            for _ in range(3):
                attack(x, y)
        print(*[w.message for w in caught if "probabilit" in str(w.message)], sep="\\n")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.strip().splitlines()) == 1, done.stdout
    assert "logits" in done.stdout
