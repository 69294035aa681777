"""Momentum, APGD's step sizes and friendly stops against loops of their own, in float64, and what they promise."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from torch import Tensor, nn

import fastsal

STEPS, SEED = 12, 5
EPS = {"Linf": 0.06, "L2": 0.9, "L1": 6.0}


def start(x: Tensor, eps: float, norm: str) -> Tensor:
    return fastsal.functional.random_start(x, eps, seed=SEED, norm=norm)


def gradient(model: nn.Module, x: Tensor, y: Tensor, loss: str = "ce") -> tuple[Tensor, Tensor, Tensor]:
    """Losses, gradients and which rows are right."""
    x = x.detach().requires_grad_()
    z = model(x)
    losses = oracle.LOSSES[loss](z, y)
    return losses.detach(), torch.autograd.grad(losses.sum(), x)[0], z.argmax(1) == y


def close(found: Tensor, expected: Tensor, share: float = 1e-4) -> None:
    assert ((found - expected).abs() > 1e-9).double().mean() <= share


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_momentum_agrees_with_a_loop_of_its_own(mlp, norm, decay) -> None:
    eps, alpha = EPS[norm], EPS[norm] / 4
    x_k, velocity = start(mlp.x, eps, norm), torch.zeros_like(mlp.x)
    for _ in range(STEPS):
        _, g, _ = gradient(mlp.model, x_k, mlp.y)
        velocity = decay * velocity + g / oracle.rowwise(g.abs().flatten(1).sum(1), g)
        x_k = oracle.step(mlp.x, x_k, velocity, eps, alpha, norm, 0.0, 1.0)
    attack = fastsal.PGD(mlp.model, eps, alpha, STEPS, norm, momentum=decay)
    # which elements an L1 step moves is a matter of rank: a near tie changes a row from there on
    close(attack(mlp.x, mlp.y, seed=SEED), x_k, 5e-4 if norm == "L1" else 1e-4)


def test_momentum_belongs_to_its_row_when_others_leave(mlp) -> None:
    """With a cut rows leave at every step: what is left ends where it would without them."""
    how = dict(eps=EPS["Linf"], steps=STEPS, c=0.2, momentum=0.9, sample_ids=torch.arange(len(mlp.x)))
    whole, info = fastsal.perturb(mlp.model, mlp.x, mlp.y, seed=SEED, return_info=True, **how)
    assert len(set(info.live)) > 4
    ids = torch.arange(0, len(mlp.x), 3)
    how["sample_ids"] = ids
    close(fastsal.perturb(mlp.model, mlp.x[ids], mlp.y[ids], seed=SEED, **how), whole[ids])


def test_a_row_without_a_finite_gradient_keeps_its_momentum_and_does_not_move() -> None:
    class Cliff(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            infinite = (x[:, :1] - 0.52).abs().sqrt()  # in its slope at 0.52
            return x @ torch.tensor([[-1.0, 1.0], [-1.0, 1.0]], dtype=x.dtype) + 0 * infinite

    x = torch.tensor([[0.52, 0.5], [0.2, 0.5]], dtype=torch.float64)
    attack = fastsal.PGD(Cliff(), 0.1, 0.02, 3, random_start=False, momentum=1.0)
    x_adv, info = attack(x, torch.tensor([0, 0]), return_info=True)
    assert torch.equal(x_adv[0], x[0]) and info.nonfinite.tolist() == [True, False]
    assert x_adv[1].tolist() == pytest.approx([0.26, 0.56])


# ---------------------------------------------------------------------------------------------- APGD


def apgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: str, loss: str, targeted: bool = False) -> Tensor:
    """Algorithm 1 of Croce & Hein 2020, row by row, with lists."""
    sign = -1 if targeted else 1
    looks = [0, math.ceil(0.22 * STEPS)]
    p = [0, 0.22]
    while p[-1] + max(p[-1] - p[-2] - 0.03, 0.06) <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
        looks.append(math.ceil(p[-1] * STEPS))
    returned = []
    for row in range(len(x)):
        clean, label = x[row : row + 1], y[row : row + 1]
        point, size = start(x, eps, norm)[row : row + 1], 2 * eps
        f, g, right = gradient(model, point, label, loss)
        f = sign * f.item()
        trace, best, visited = [f], (f, point, g), [(bool(right) == targeted, f, point)]
        before, last, w = point, None, 0
        for k in range(STEPS):
            if k in looks[1:]:
                seldom = sum(b > a for a, b in zip(trace[w:k], trace[w + 1 : k + 1], strict=True)) < 0.75 * (k - w)
                stuck = last == (size, best[0])
                last = (size, best[0])
                if seldom or stuck:
                    size, point, g = size / 2, best[1], best[2]
                    trace[k] = best[0]
                w = k
                last = (size, best[0]) if not (seldom or stuck) else None
            z = oracle.step(clean, point, sign * g, eps, size, norm, 0.0, 1.0)
            following = z
            if k:
                following = point + 0.75 * (z - point) + 0.25 * (point - before)
                following = oracle.step(clean, following, torch.zeros_like(g), eps, 0.0, norm, 0.0, 1.0)
            before, point = point, following
            f, g, right = gradient(model, point, label, loss)
            f = sign * f.item()
            trace.append(f)
            visited.append((bool(right) == targeted, f, point))
            best = max(best, (f, point, g), key=lambda entry: entry[0])
        returned.append(max(visited, key=lambda entry: entry[:2])[2])
    return torch.cat(returned)


@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("targeted", [False, True])
def test_apgd_agrees_with_the_published_algorithm_row_by_row(mlp, norm, loss, targeted) -> None:
    x, y = mlp.x[:60], mlp.y[:60]
    y = (y + 1) % 10 if targeted else y
    expected = apgd(mlp.model, x, y, EPS[norm], norm, loss, targeted)
    attack = fastsal.APGD(mlp.model, EPS[norm], STEPS, norm, loss=loss, targeted=targeted)
    close(attack(x, y, seed=SEED), expected)


@pytest.mark.parametrize("norm", EPS)
def test_apgd_is_no_weaker_than_its_own_first_steps_and_stays_in_the_ball(mlp, norm) -> None:
    right = []
    for steps in (2, 10, 30):
        x_adv = fastsal.APGD(mlp.model, EPS[norm], steps, norm)(mlp.x, mlp.y, seed=SEED)
        order = {"Linf": math.inf, "L2": 2, "L1": 1}[norm]
        assert (x_adv - mlp.x).flatten(1).norm(order, dim=1).max() <= EPS[norm]
        assert x_adv.min() >= 0 and x_adv.max() <= 1
        right.append(int((mlp.model(x_adv).argmax(1) == mlp.y).sum()))
    assert right[0] >= right[1] >= right[2] and right[0] > right[2]


def test_apgd_returns_a_misclassified_point_where_it_has_seen_one() -> None:
    """One dimension, three classes: the largest loss is at the right end, where the row is right again."""

    class Bump(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a = x[:, 0]
            return torch.stack((1 - a, 1.4 - (a - 0.5).abs() * 8, a * 0.9), 1)

    x, y = torch.full((1, 1), 0.4, dtype=torch.float64), torch.tensor([0])
    visited = []
    model = Bump()
    model.register_forward_hook(lambda m, inputs, z: visited.append((inputs[0].item(), int(z.argmax()))))
    x_adv = fastsal.APGD(model, 0.4, 10)(x, y, seed=0)
    assert any(label != 0 for _, label in visited)
    assert int(model(x_adv).argmax()) != 0


# ----------------------------------------------------------------------------------------------- FAT


@pytest.mark.parametrize("tau", [0, 1, 3])
def test_friendly_adversaries_stop_tau_steps_after_the_boundary(mlp, tau) -> None:
    eps, alpha = EPS["Linf"], EPS["Linf"] / 4
    x_k = start(mlp.x, eps, "Linf")
    left, stop = torch.full_like(mlp.y, tau), torch.full_like(mlp.y, STEPS)
    result, live = x_k.clone(), torch.ones_like(mlp.y, dtype=torch.bool)
    for k in range(STEPS):
        _, g, right = gradient(mlp.model, x_k, mlp.y)
        stops = live & ~right & (left == 0)
        result, stop = oracle.pick(stops, x_k, result), stop.masked_fill(stops, k)
        live = live & ~stops
        left = left - (~right).long()
        x_k = oracle.pick(live, oracle.step(mlp.x, x_k, g, eps, alpha, "Linf", 0.0, 1.0), x_k)
    result = oracle.pick(live, x_k, result)
    attack = fastsal.FAT(mlp.model, eps, alpha, STEPS, tau)
    x_adv, info = attack(mlp.x, mlp.y, seed=SEED, return_info=True)
    assert torch.equal(info.stop_step, stop)
    assert (stop < STEPS).sum() > 50 and (stop == STEPS).sum() > 5
    close(x_adv, result)
    assert info.row_backwards == int((stop + (stop < STEPS)).sum())  # and nobody is in a batch after that


@pytest.mark.parametrize("sizing", ["off", "buckets"])
def test_friendly_stops_are_the_same_in_padded_batches(mlp, sizing) -> None:
    how = dict(eps=EPS["Linf"], steps=STEPS, tau=1, c=None, seed=SEED, return_info=True)
    expected, info = fastsal.perturb(mlp.model, mlp.x, mlp.y, **how)
    levers = fastsal.Levers(live_rows=sizing)
    found, padded = fastsal.perturb(mlp.model, mlp.x, mlp.y, fast=levers, **how)
    assert torch.equal(padded.stop_step, info.stop_step)
    close(found, expected)


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: fastsal.PGD(m, momentum=-1), "momentum: expected a number in"),
        (lambda m: fastsal.PGD(m, momentum=math.inf), "momentum: expected a number in"),
        (lambda m: fastsal.FAT(m, targeted=True), "tau: expected None when targeted=True"),
        (lambda m: fastsal.FAT(m, tau=-1), "tau: expected an integer >= 0, got -1"),
        (lambda m: fastsal.FAT(m, tau=1.5), "tau: expected an integer >= 0, got 1.5"),
        (lambda m: fastsal.APGD(m, rho=2), "rho: expected a number in"),
        (lambda m: fastsal.SENSE(m, step_rule="apgd"), "c: expected None with step_rule='apgd'"),
        (lambda m: fastsal.SENSE(m, tau=1), "c: expected None with tau"),
        (lambda m: fastsal.SENSE(m, step_rule="newton"), "step_rule: expected 'fixed' or 'apgd', got 'newton'"),
        (lambda m: fastsal.PGD(m, loss="kl", random_start=False), "random_start: expected True with loss='kl'"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make(nn.Linear(2, 2))
