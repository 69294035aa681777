"""The trainer: what it takes, what it does in each step, and what it leaves when something goes wrong."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fastsal
from fastsal.evaluate import accuracy, robust_accuracy
from fastsal.train import TrainingStopped

Batches = list[tuple[Tensor, Tensor]]
METHODS = ("sense", "pgd", "natural")
ALWAYS = {
    "epoch",
    "loss",
    "train_accuracy",
    "start_accuracy",
    "live_share",
    "live_share_by_step",
    "images_per_second",
    "seconds",
    "lr",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Quicker for nets this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def net(dropout: float = 0.0, norm: bool = False, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        layers = [nn.Flatten(), nn.Linear(16, 24), nn.ReLU()]
        layers += [nn.BatchNorm1d(24)] if norm else []
        layers += [nn.Dropout(dropout)] if dropout else []
        return nn.Sequential(*layers, nn.Linear(24, 3)).to(dtype)


def rows(count: int = 96, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (count, 1, 4, 4) in [0, 1]; the class is the brightest of three patches."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 4, 4, generator=generator, dtype=dtype)
    patches = x.flatten(1)[:, :15].view(count, 3, 5).mean(2)
    y = patches.argmax(1)
    x.view(count, 16)[torch.arange(count)[:, None], 5 * y[:, None] + torch.arange(5)] += 0.5  # apart
    return x.clamp_(0, 1), y


def batches(count: int = 96, size: int = 24, **options: Any) -> Batches:
    x, y = rows(count, **options)
    return list(zip(x.split(size), y.split(size), strict=True))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def fit(model: nn.Module, loader: Any = None, **options: Any) -> fastsal.TrainResult:
    """A short run; the options come on top."""
    short: dict[str, Any] = {"eps": 0.05, "steps": 3, "epochs": 2, "seed": 1, "progress": False}
    return fastsal.train(model, batches() if loader is None else loader, **{**short, **options})


# --------------------------------------------------------------------------------- model and loader alone


def test_a_model_and_a_loader_are_enough() -> None:
    model, before = net(), weights(net())
    result = fastsal.train(model, batches())
    assert result.model is model and not result.interrupted
    assert [row["epoch"] for row in result.history] == list(range(1, 11))
    assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]
    assert not same(weights(model), before)
    x, y = rows(seed=5)
    assert accuracy(model, [(x, y)]) > 0.85


def test_the_defaults_are_those_of_the_paper() -> None:
    model, spelled = net(), net()
    torch.manual_seed(3)
    fastsal.train(model, batches(), progress=False)
    torch.manual_seed(3)
    fastsal.train(
        spelled,
        batches(),
        method="sense",
        eps=8 / 255,
        alpha=1.5 / 255,
        steps=10,
        c=0.5,
        norm="Linf",
        warmup_epochs=1,
        natural_weight=0.0,
        clip_min=0.0,
        clip_max=1.0,
        epochs=10,
        progress=False,
    )
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(model.parameters(), spelled.parameters(), strict=True))


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(*rows(), strict=True)


class Again:
    """Yields afresh on every iteration, and has no length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from batches()


LOADERS: dict[str, Callable[[], Any]] = {
    "list": batches,
    "tuple": lambda: tuple(batches()),
    "DataLoader": lambda: DataLoader(TensorDataset(*rows()), batch_size=24),
    "DataLoader of a stream": lambda: DataLoader(Stream(), batch_size=24),
    "TensorLoader": lambda: fastsal.data.TensorLoader(*rows(), batch_size=24),
    "generator behind __iter__": Again,
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS.keys())
def test_any_iterable_of_batches_is_a_loader(make: Callable[[], Any]) -> None:
    model, expected = net(), net()
    fit(expected, optimizer=torch.optim.SGD(expected.parameters(), lr=0.1))
    fit(model, make(), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    assert same(weights(model), weights(expected))


@pytest.mark.parametrize("make", [batches, Again], ids=["sized", "unsized"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_every_epoch_learns_whether_or_not_the_loader_has_a_length(make: Callable[[], Any], epochs: int) -> None:
    model = net()
    lr = [row["lr"] for row in fit(model, make(), epochs=epochs, lr=0.1).history]
    assert all(0 < rate <= 0.1 for rate in lr)
    assert lr == sorted(lr, reverse=True)
    if epochs > 1:
        assert lr[-1] < 0.4 * 0.1  # falls towards zero


def test_a_loader_that_gives_its_batches_once_is_told_so_in_the_second_epoch() -> None:
    fit(net(), iter(batches()), epochs=1)
    with pytest.raises(ValueError, match=r"loader: expected batches in epoch 2, got none .*re-iterable"):
        fit(net(), iter(batches()), epochs=2)


def test_images_come_to_the_device_of_the_model() -> None:
    """Here it is the same one; a wrong dtype is named, before a weight has changed."""
    model = net(dtype=torch.float64)
    before = weights(model)
    with pytest.raises(TypeError, match=r"x: expected torch\.float64"):
        fit(model)
    assert same(weights(model), before)
    fit(model, batches(dtype=torch.float64))
    assert not same(weights(model), before)


def test_a_model_may_return_an_object_with_logits() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(logits=self.inner(x))

    for method in METHODS:
        model, plain = Wrapped(), net()
        fit(model, method=method, natural_weight=0.5)
        fit(plain, method=method, natural_weight=0.5)
        assert same(weights(model.inner), weights(plain))


# ------------------------------------------------------------------------------------------- the methods


class Recorder(nn.Module):
    """Passes through, and keeps what it was given in train mode (the outer step) and in eval mode (the attack)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.outer: list[Tensor] = []
        self.attacks: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        (self.outer if self.training else self.attacks).append(x.detach().clone())
        logits: Tensor = self.inner(x)
        return logits


@pytest.mark.parametrize("method", METHODS)
def test_history_has_one_full_row_per_epoch(method: str) -> None:
    history = fit(net(), method=method, epochs=3).history
    assert [row["epoch"] for row in history] == [1, 2, 3]
    for row in history:
        assert set(row) == ALWAYS
        assert math.isfinite(row["loss"]) and 0 <= row["train_accuracy"] <= 1
        assert row["images_per_second"] > 0 and row["seconds"] > 0
        assert len(row["live_share_by_step"]) == 3
        assert row["live_share"] == pytest.approx(sum(row["live_share_by_step"]) / 3)
        if method == "natural":
            assert row["live_share_by_step"] == [0, 0, 0] and row["start_accuracy"] is None
        if method == "pgd":
            assert row["live_share_by_step"] == [1, 1, 1]
        if method == "sense":
            assert all(0 <= share < 1 for share in row["live_share_by_step"])
        if method != "natural":
            assert 0 <= row["start_accuracy"] <= 1


@pytest.mark.parametrize("natural_weight", [0.0, 0.7])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_a_step_on_the_mean_cross_entropy_of_all_returned_rows(method: str, natural_weight: float) -> None:
    start = net()
    fit(start, method="natural", epochs=5, lr=0.1)  # now some rows are right, and some sure
    model, x, y = Recorder(copy.deepcopy(start)), *rows()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    fit(model, [(x, y)], method=method, natural_weight=natural_weight, epochs=1, eps=0.2, optimizer=optimizer)

    trained_on = model.outer[0]
    assert trained_on.shape == x.shape  # none dropped
    assert float((trained_on - x).abs().max()) <= 0.2
    moved = (trained_on != x).flatten(1).any(1)
    if method == "natural":
        assert not moved.any() and not model.attacks
    elif method == "pgd":
        assert moved.all()
    else:
        assert moved.any() and not moved.all()
        loss = cross_entropy(start(trained_on), y, reduction="none").detach()
        assert float(loss[moved].max()) > -math.log(0.5)  # warm-up: nothing was truncated

    by_hand = copy.deepcopy(start)
    loss = cross_entropy(by_hand(trained_on), y)
    if natural_weight and method != "natural":
        assert torch.equal(model.outer[1], x)
        loss = loss + natural_weight * cross_entropy(by_hand(x), y)
    loss.backward()
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter -= 0.3 * parameter.grad
    for learnt, expected in zip(model.inner.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(learnt, expected, atol=1e-6, rtol=1e-5)


def test_nothing_is_truncated_in_the_warm_up_and_something_after() -> None:
    model = net()
    fit(model, method="natural", epochs=8, lr=0.2)
    history = fit(model, method="sense", eps=0.3, steps=4, c=0.6, warmup_epochs=2, epochs=4, lr=0.001).history
    for row in history[:2]:
        shares = row["live_share_by_step"]
        assert shares[0] > 0.3 and shares == [shares[0]] * 4
    for row in history[2:]:
        shares = row["live_share_by_step"]
        assert shares == sorted(shares, reverse=True) and shares[-1] < 0.7 * shares[0]


def test_without_warm_up_the_first_epoch_is_truncated() -> None:
    model = net()
    fit(model, method="natural", epochs=8, lr=0.2)
    shares = fit(model, eps=0.3, steps=4, warmup_epochs=0, epochs=1, lr=0.001).history[0]["live_share_by_step"]
    assert shares[-1] < 0.7 * shares[0]


def test_after_the_warm_up_no_row_is_trained_on_beyond_the_cut_but_the_ignored_ones() -> None:
    start = net()
    fit(start, method="natural", epochs=8, lr=0.2)
    model, (x, y) = Recorder(copy.deepcopy(start)), rows()
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    fit(model, [(x, y)], warmup_epochs=0, eps=0.3, c=0.7, epochs=1, optimizer=still)
    moved = (model.outer[0] != x).flatten(1).any(1)
    loss = cross_entropy(start.eval()(model.outer[0]), y, reduction="none").detach()
    assert moved.any()
    assert float(loss[moved].max()) <= -math.log(0.7) + 1e-5


def test_loss_and_accuracy_are_means_over_images_not_over_batches() -> None:
    model, (x, y) = net(), rows(70)
    loader = [(x[:64], y[:64]), (x[64:], y[64:])]
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    (row,) = fit(model, loader, method="natural", epochs=1, optimizer=still).history
    with torch.no_grad():
        logits = model(x)
    assert row["loss"] == pytest.approx(float(cross_entropy(logits, y)), rel=1e-5)
    assert row["train_accuracy"] == pytest.approx(float((logits.argmax(1) == y).double().mean()))


def test_the_attack_sees_eval_mode_and_the_outer_step_train_mode() -> None:
    model = net(norm=True, dropout=0.5)
    model.eval()
    fit(model, epochs=2)
    (batch_norm,) = (module for module in model if isinstance(module, nn.BatchNorm1d))
    assert int(batch_norm.num_batches_tracked) == 2 * 4  # one outer forward a batch, and no other


def test_l2_without_a_box_takes_inputs_below_zero() -> None:
    x, y = rows()
    model = Recorder(net())
    x = x * 6 - 3
    fit(model, [(x, y)], method="pgd", norm="L2", eps=0.5, clip_min=None, clip_max=None, epochs=1)
    lengths = (model.outer[0].double() - x.double()).flatten(1).norm(dim=1)
    assert float(lengths.max()) <= 0.5 and float(lengths.min()) > 0.1
    with pytest.raises(ValueError, match="x: expected values in"):
        fit(net(), [(x, y)], method="pgd")


# ------------------------------------------------------------------------------------------------- seeds


@pytest.mark.parametrize("method", METHODS)
def test_one_seed_gives_one_result_bit_for_bit(method: str) -> None:
    def run(seed: int, disturb: int) -> dict[str, Tensor]:
        torch.manual_seed(disturb)
        model = net(dropout=0.3)
        fit(model, DataLoader(TensorDataset(*rows()), batch_size=24, shuffle=True), method=method, seed=seed)
        return weights(model)

    first = run(5, 0)
    assert same(run(5, 99), first)
    assert not same(run(6, 0), first)


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_leaves_the_global_random_state_alone(method: str) -> None:
    before = torch.get_rng_state()
    shuffled = DataLoader(TensorDataset(*rows()), batch_size=24, shuffle=True)
    fit(net(dropout=0.3), shuffled, method=method, seed=4, eval_loader=batches())
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_the_global_one_decides() -> None:
    def run(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        model = net()
        fit(model, seed=None, method="pgd")
        return weights(model)

    assert same(run(1), run(1))
    assert not same(run(1), run(2))


# ------------------------------------------------------------------------------- optimizer and scheduler


def test_your_optimizer_is_used_as_it_is() -> None:
    class Counting(torch.optim.SGD):
        taken = 0

        def step(self, closure: Any = None) -> Any:
            self.taken += 1
            return super().step(closure)

    model = net()
    optimizer = Counting([{"params": model[1].parameters(), "lr": 0.2}, {"params": model[3].parameters()}], lr=0.05)
    history = fit(model, epochs=3, optimizer=optimizer, lr=99.0, weight_decay=99.0).history
    assert optimizer.taken == 3 * 4
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.05]
    assert [row["lr"] for row in history] == [0.2] * 3
    assert all(group["weight_decay"] == 0 for group in optimizer.param_groups)


def test_your_scheduler_steps_once_per_epoch() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    history = fit(model, epochs=3, optimizer=optimizer, scheduler=scheduler).history
    assert [row["lr"] for row in history] == [0.4, 0.2, 0.1]
    assert scheduler.last_epoch == 3


def test_a_frozen_parameter_stays_frozen() -> None:
    model = net()
    model[1].requires_grad_(False)
    before = weights(model)
    fit(model)
    assert torch.equal(model[1].weight, before["1.weight"]) and not model[1].weight.requires_grad
    assert not torch.equal(model[3].weight, before["3.weight"])


# ------------------------------------------------------------------------------ evaluation while training


def test_the_curve_of_the_eval_loader_is_in_the_history() -> None:
    model, (x, y) = net(dropout=0.4), rows(60, seed=8)
    held_out = [(x[:50], y[:50]), (x[50:], y[50:])]
    history = fit(model, epochs=3, eval_loader=held_out, eval_rows=30).history
    for row in history:
        assert set(row) == ALWAYS | {"natural_accuracy", "robust_accuracy"}
        assert 0 <= row["robust_accuracy"] <= 1
    model.eval()
    assert history[-1]["natural_accuracy"] == float((model(x).argmax(1) == y).double().mean())
    assert history[-1]["robust_accuracy"] == robust_accuracy(model, held_out, 0.05, rows=30)


def test_only_the_first_eval_rows_are_attacked() -> None:
    model, (x, y) = net(), rows(40)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    y = model(x).argmax(1)
    wrong = torch.cat([y[:12], (y[12:] + 1) % 3])
    (row,) = fit(
        model,
        [(x, y)],
        epochs=1,
        eps=0.0,
        optimizer=still,
        eval_loader=[(x[:10], wrong[:10]), (x[10:], wrong[10:])],
        eval_rows=16,
    ).history
    assert row["natural_accuracy"] == 12 / 40
    assert row["robust_accuracy"] == 12 / 16


# ----------------------------------------------------------------------------------- what it leaves behind


@pytest.mark.parametrize("mode", [True, False])
def test_training_flags_come_back_module_by_module(mode: bool) -> None:
    model = net(dropout=0.2, norm=True)
    model.train(mode)
    model[3].training = not mode
    flags = [module.training for module in model.modules()]
    fit(model, eval_loader=batches())
    assert [module.training for module in model.modules()] == flags

    class Broken(list):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[Any]:
            yield from super().__iter__()
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        fit(model, Broken(batches()))
    assert [module.training for module in model.modules()] == flags


class Failing(nn.Module):
    """Answers with `what` from the given outer forward on (counted from 1), in train mode only."""

    def __init__(self, inner: nn.Module, forward: int, what: float | type[BaseException]) -> None:
        super().__init__()
        self.inner, self.last, self.what = inner, forward, what
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        if self.training:
            self.seen += 1
            if self.seen >= self.last:
                if self.what == math.inf:
                    return logits - torch.tensor([math.inf, 0, 0])  # infinite for rows of class 0
                if isinstance(self.what, float):
                    return logits * self.what
                raise self.what
        return logits


class Remembering(torch.optim.SGD):
    """Keeps the model's state before every step."""

    def __init__(self, model: nn.Module, lr: float = 0.1, ruin: int = 0) -> None:
        super().__init__(model.parameters(), lr=lr)
        self.model, self.ruin = model, ruin
        self.states: list[dict[str, Tensor]] = []

    def step(self, closure: Any = None) -> Any:
        self.states.append(weights(self.model))
        super().step(closure)
        if len(self.states) == self.ruin:
            with torch.no_grad():
                next(self.model.parameters())[0] = math.nan


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_says_where_and_keeps_the_last_good_state(loss: float, method: str) -> None:
    model = Failing(net(norm=True), 4 + 2, loss)
    optimizer = Remembering(model)
    with pytest.raises(
        fastsal.TrainingDiverged, match=rf"loss is {loss} in epoch 2, batch 2\b.*last state with a finite loss"
    ) as caught:
        fit(model, method=method, optimizer=optimizer, epochs=3)
    assert method in str(caught.value) and "\n" not in str(caught.value)
    assert len(optimizer.states) == 5
    assert same(weights(model), optimizer.states[-1])  # the step after it led here
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    result = caught.value.result
    assert result.model is model and [row["epoch"] for row in result.history] == [1, 2]
    assert all(math.isfinite(row["loss"]) for row in result.history)


def test_diverging_in_the_first_batch_leaves_the_model_as_it_was() -> None:
    model = Failing(net(norm=True), 1, math.nan)
    before, state = weights(model), torch.get_rng_state()
    with pytest.raises(fastsal.TrainingDiverged, match="epoch 1, batch 1") as caught:
        fit(model)
    assert same(weights(model), before) and caught.value.result.history == []
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("method", METHODS)
def test_a_learning_rate_far_too_large_ends_with_weights_that_still_work(method: str) -> None:
    model = net()
    with pytest.raises(fastsal.TrainingDiverged, match=r"lr .*e\+.*learning rate"):
        fit(model, method=method, optimizer=torch.optim.SGD(model.parameters(), lr=1e30), epochs=4)
    x, y = rows()
    assert math.isfinite(float(cross_entropy(model(x), y).detach()))


@pytest.mark.parametrize("ruin", [4, 8])
def test_weights_ruined_in_the_last_step_of_an_epoch_are_found_before_anyone_uses_them(ruin: int) -> None:
    model = net()
    optimizer = Remembering(model, ruin=ruin)
    with pytest.raises(fastsal.TrainingDiverged, match=rf"weights are not finite after epoch {ruin // 4}") as caught:
        fit(model, optimizer=optimizer, eval_loader=batches(), epochs=2)
    assert same(weights(model), optimizer.states[-1])
    assert len(caught.value.result.history) == ruin // 4


def test_ctrl_c_between_batches_returns_what_there_is() -> None:
    class Interrupted(list):  # type: ignore[type-arg]
        epoch = 0

        def __iter__(self) -> Iterator[Any]:
            self.epoch += 1
            for place, batch in enumerate(super().__iter__()):
                if (self.epoch, place) == (2, 3):
                    raise KeyboardInterrupt
                yield batch

    model = net()
    model.eval()
    state = torch.get_rng_state()
    result = fit(model, Interrupted(batches()), epochs=5, eval_loader=batches())
    assert result.interrupted and result.model is model
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert "natural_accuracy" in result.history[0] and "natural_accuracy" not in result.history[1]
    assert not model.training and torch.equal(torch.get_rng_state(), state)


def test_ctrl_c_inside_the_model_leaves_flags_and_weights_of_the_step_before() -> None:
    model = Failing(net(), 3, KeyboardInterrupt)
    optimizer = Remembering(model)
    result = fit(model, optimizer=optimizer)
    assert result.interrupted and len(result.history) == 1
    assert len(optimizer.states) == 2
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "trades2"},
            r"method: expected 'sense', 'pgd', .*'natural', got 'trades2'",
        ),
        ({"epochs": 0}, r"epochs: expected an integer >= 1, got 0"),
        ({"epochs": True}, r"epochs: expected"),
        ({"epochs": 1.5}, r"epochs: expected"),
        ({"steps": -1}, r"steps: expected an integer >= 0, got -1"),
        ({"steps": 2.0}, r"steps: expected"),
        ({"eval_rows": 0}, r"eval_rows: expected an integer >= 1, got 0"),
        ({"c": 2.0}, r"c: expected"),
        ({"eps": -0.1, "alpha": 0.01}, r"eps: expected"),
        ({"alpha": math.nan}, r"alpha: expected"),
        ({"norm": "L3"}, r"norm: expected"),
        ({"clip_min": 1.0, "clip_max": 0.0}, r"clip_max: expected"),
        ({"loader": []}, r"loader: expected batches in epoch 1, got none"),
        ({"scheduler": object()}, r"scheduler: expected the optimizer"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_argument_out_of_range_is_named_and_nothing_has_changed(options: dict[str, Any], message: str) -> None:
    model = net(norm=True)
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        fit(model, **options)
    assert same(weights(model), before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"eps": -1.0}, ValueError, r"eps: expected finite and >= 0, got -1\.0"),
        ({"eps": "0.1"}, TypeError, r"eps: expected a float, got '0\.1'"),
        ({"c": 7.0}, ValueError, r"c: expected"),
        ({"norm": "L3"}, ValueError, r"norm: expected"),
        ({"warmup_epochs": "1"}, ValueError, r"warmup_epochs: expected an integer >= 0, got '1'"),
        ({"natural_weight": math.nan}, ValueError, r"natural_weight: expected finite and >= 0, got nan"),
        ({"loader": [(rows()[0], rows()[1] + 1)]}, ValueError, r"y: expected labels in \[0, 3\).*got 1 to 3"),
        ({"loader": [(rows()[0], rows()[1] + 1)], "eps": 0.0}, ValueError, r"y: expected labels in \[0, 3\)"),
        ({"loader": [(rows()[0][:0], rows()[1][:0])]}, ValueError, r"x: expected at least one row in a batch, got"),
        ({"loader": [{"x": rows()[0], "y": rows()[1]}]}, TypeError, r"loader: expected batches \(x, y\).*got dict"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_every_method_refuses_the_same(
    method: str, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    model = net()
    before = weights(model)
    with pytest.raises(kind, match=message):
        fit(model, method=method, **options)
    assert same(weights(model), before)


def test_a_model_that_cannot_be_trained_is_refused() -> None:
    inner: Any = net()
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got function"):
        fit(lambda x: inner(x))  # type: ignore[arg-type]
    for model in (nn.Flatten(), net().requires_grad_(False)):
        with pytest.raises(ValueError, match=r"model: expected at least one parameter with requires_grad=True, got"):
            fit(model)


def test_a_scheduler_whose_step_wants_an_argument_is_refused() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    for scheduler, name in ((plateau, "ReduceLROnPlateau"), (object(), "object")):
        with pytest.raises(TypeError, match=rf"scheduler: expected .* without arguments, got {name}"):
            fit(model, optimizer=optimizer, scheduler=scheduler)


X, Y = rows()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loader": "once"}, r"loader: expected batches in epoch 2, got none"),
        ({"eval_loader": []}, r"eval_loader, after epoch 1: loader: expected at least one row, got none"),
        ({"eval_loader": [{"x": X, "y": Y}]}, r"eval_loader, after epoch 1: loader: expected batches \(x, y\)"),
        ({"eval_loader": [(X * 255, Y)]}, r"eval_loader, after epoch 1: x: expected values in"),
        ({"eval_loader": [(X[..., :2], Y)]}, r"eval_loader, after epoch 1: "),
    ],
    ids=["once", "empty", "dict", "scale", "shape"],
)
def test_what_was_learnt_is_kept_when_a_loader_cannot_go_on(options: dict[str, Any], message: str) -> None:
    model = net()
    if "loader" in options:
        options = {"loader": iter(batches())}
    with pytest.raises(TrainingStopped, match=message) as caught:
        fit(model, **options)
    assert isinstance(caught.value, ValueError)
    assert caught.value.result.model is model
    assert [row["epoch"] for row in caught.value.result.history] == [1]


# ----------------------------------------------------------------------------------------------- progress


def test_the_progress_goes_to_stderr_and_shows_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    fit(net(), epochs=2, progress=True, eval_loader=batches())
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.search(r"epoch 2/2.*loss \d.*accuracy.*live.*images/s", shown.err)
    assert re.search(r"epoch 1/2: natural [\d.]+%, PGD-10 [\d.]+%", shown.err)


def test_no_progress_is_silence(capsys: pytest.CaptureFixture[str]) -> None:
    fit(net(), epochs=2, progress=False, eval_loader=batches())
    assert capsys.readouterr() == ("", "")
