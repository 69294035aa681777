"""TRADES, MART, FAT and SENSE-TRADES: one step of training against the published losses, by hand in float64."""

from __future__ import annotations

import copy

import oracle
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

import fastsal
from fastsal.methods import METHODS, Settings

HOW = {"eps": 0.05, "steps": 4}


class Watched(nn.Module):
    """Remembers what it is trained on: the inputs of its forwards in train mode."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.trained_on, self.attacked = inner, [], 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.trained_on.append(x.detach().clone())
        else:
            self.attacked += 1
        return self.inner(x)


def published(method: str, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, beta: float) -> Tensor:
    clean, adv = model(x), model(x_adv)
    apart = kl_div(adv.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    if method in ("trades", "sense-trades"):
        return oracle.cross_entropy(clean, y).mean() + beta * apart.mean()
    if method == "mart":
        p = adv.softmax(1)
        largest_two = p.argsort(1)[:, -2:]
        other = torch.where(largest_two[:, -1] == y, largest_two[:, -2], largest_two[:, -1])
        boosted = oracle.cross_entropy(adv, y) - torch.log(1.0001 - p.gather(1, other[:, None])[:, 0])
        return (boosted + beta * apart * (1 - clean.softmax(1).gather(1, y[:, None])[:, 0])).mean()
    return oracle.cross_entropy(adv, y).mean()


@pytest.mark.parametrize("method", ["trades", "sense-trades", "mart", "fat"])
def test_a_step_is_a_step_on_the_published_loss(mlp, method) -> None:
    x, y = mlp.x[:80], mlp.y[:80]
    model = Watched(copy.deepcopy(mlp.model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fastsal.train(
        model, [(x, y)], method=method, epochs=1, optimizer=optimizer, beta=3.0, tau=1, seed=0, progress=False, **HOW
    )
    x_adv = next(z for z in model.trained_on if not torch.equal(z, x))
    assert 0.01 < float((x_adv - x).abs().max()) <= HOW["eps"]
    by_hand = copy.deepcopy(mlp.model)
    published(method, by_hand, x, x_adv, y, 3.0).backward()
    with torch.no_grad():
        for learnt, before in zip(model.inner.parameters(), by_hand.parameters(), strict=True):
            torch.testing.assert_close(learnt, before - 0.1 * before.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "attack"),
    [
        ("trades", lambda model: fastsal.PGD(model, loss="kl", **HOW)),
        ("sense-trades", lambda model: fastsal.SENSE(model, loss="kl", c=0.4, **HOW)),
        ("mart", lambda model: fastsal.PGD(model, **HOW)),
        ("fat", lambda model: fastsal.FAT(model, tau=2, **HOW)),
    ],
)
def test_each_method_trains_on_the_adversaries_of_its_attack(mlp, method, attack) -> None:
    x, y = mlp.x[:80], mlp.y[:80]
    model = Watched(mlp.model)
    model.train()
    outer = METHODS[method](model, x, y, Settings(c=0.4, tau=2, **HOW), 1, 7)
    model.eval()
    x_adv = next(z for z in model.trained_on if not torch.equal(z, x))
    assert torch.equal(x_adv, attack(mlp.model)(x, y, seed=7))
    assert outer.logits.shape == (80, 10) and outer.info is not None


def test_trades_makes_its_clean_forward_once_in_the_attack_and_once_in_training(mlp) -> None:
    model = Watched(copy.deepcopy(mlp.model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = (mlp.x[:40], mlp.y[:40])
    fastsal.train(model, [batch], method="trades", epochs=1, optimizer=optimizer, seed=0, progress=False, **HOW)
    assert model.attacked == HOW["steps"] + 1 and len(model.trained_on) == 2


@pytest.mark.parametrize("method", ["trades", "sense-trades", "mart", "fat"])
def test_training_lowers_the_loss(images, method) -> None:
    torch.manual_seed(0)
    x, y = images[0][:600].float(), images[1][:600]
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(32), nn.ReLU(), nn.Linear(32, 10))
    model(x[:1])
    batches = [(x[rows], y[rows]) for rows in torch.arange(600).split(100)]
    result = fastsal.train(model, batches, method=method, epochs=4, lr=0.1, seed=0, progress=False, **HOW)
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("option", "message"), [({"beta": -1.0}, "beta: expected"), ({"tau": -1}, "tau: expected an integer >= 0, got -1")]
)
def test_what_is_out_of_range_is_named(mlp, option, message) -> None:
    with pytest.raises(ValueError, match=message):
        fastsal.train(mlp.model, [], method="fat", **option)


def test_l1_trains_and_is_evaluated(mlp) -> None:
    batch = (mlp.x[:60], mlp.y[:60])
    model = copy.deepcopy(mlp.model)
    fastsal.train(model, [batch], method="sense", epochs=1, eps=4.0, norm="L1", seed=0, progress=False)
    report = fastsal.evaluate(mlp.model, [batch], eps=4.0, norm="L1", steps=5, margin_steps=5, progress=False)
    assert report.norm == "L1" and report.counts["worst"] < report.counts["natural"]
