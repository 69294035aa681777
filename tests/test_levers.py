"""The levers of an attack: each by itself and together give the result of the plain path, and say what they did."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastsal
from fastsal.live import Buckets, Counts, Exact, LiveRows, WholeBatch
from fastsal.precision import bf16_pays
from fastsal.view import viewed

SEED = 3
SWITCHES = {"live_rows": ["off", "exact", "buckets"], "channels_last": [False, True], "fold_batch_norm": [False, True]}
EVERY = [dict(zip(SWITCHES, values, strict=True)) for values in itertools.product(*SWITCHES.values())]


def nets() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    convolutional = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Flatten(), nn.Dropout(0.4), nn.LazyLinear(10),
    )  # fmt: skip
    dense = nn.Sequential(nn.Flatten(), nn.LazyLinear(24), nn.BatchNorm1d(24), nn.Tanh(), nn.Linear(24, 10))
    return {"convolutional": convolutional.double(), "dense": dense.double()}


@pytest.fixture(scope="module")
def cases(images: tuple[Tensor, Tensor]) -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
    """Models in train mode that have learnt a little, in float64, where a wrong lever is far from rounding."""
    x, y = images
    found = {}
    for name, model in nets().items():
        model(x[:2])
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for rows in 4 * torch.arange(1000, 2600).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        found[name] = (model, x[:120], y[:120])
    return found


@pytest.mark.parametrize("levers", EVERY, ids=str)
@pytest.mark.parametrize("name", ["convolutional", "dense"])
@pytest.mark.parametrize("how", [{"c": 0.4}, {"c": None}, {"c": 0.4, "norm": "L2", "decide_at": "clean"}], ids=str)
def test_every_combination_gives_the_result_of_the_plain_path(cases, name, levers, how) -> None:
    model, x, y = cases[name]
    how = {"eps": 0.05 if how.get("norm") is None else 0.8, "steps": 5, "seed": SEED, "return_info": True, **how}
    expected, plain = fastsal.perturb(model, x, y, fast=False, **how)
    found, info = fastsal.perturb(model, x, y, fast=fastsal.Levers(**levers), **how)
    assert torch.equal(info.stop_step, plain.stop_step)
    assert torch.equal(info.ignored, plain.ignored) and info.live == plain.live and info.stepped == plain.stepped
    assert ((found - expected).abs() > 1e-9).double().mean() <= 1e-4
    if how["c"] is not None:
        assert 0 < int(info.ignored.sum()) < len(x) and len(set(info.live)) > 2  # else little was compared


def test_the_plain_path_runs_the_whole_batch_and_says_so(cases) -> None:
    model, x, y = cases["convolutional"]
    _, info = fastsal.perturb(model, x, y, eps=0.05, steps=5, c=0.4, fast=False, return_info=True)
    assert info.row_forwards == 6 * len(x) and info.row_backwards == 5 * len(x)
    assert info.levers == {
        "precision": "fp64, that of x",
        "channels_last": "off",
        "fold_batch_norm": "off",
        "lean_batch_norm": "off",
        "kept_memory": "off",
        "cuda_graphs": "off",
        "compile": "off",
        "live_rows": "off: the batch keeps its size",
    }


def test_what_is_on_is_said(cases) -> None:
    model, x, y = cases["convolutional"]
    for _ in range(2):
        _, info = fastsal.perturb(model, x.float().double(), y, eps=0.05, steps=5, c=0.4, return_info=True)
        assert info.levers["channels_last"] == "on"
        assert info.levers["fold_batch_norm"] == "on: 2 folded"
        assert info.levers["live_rows"] == "exact: the batch holds no others"
    assert 0 < info.seconds["model"] < info.seconds["all"]
    assert sum(info.stop_histogram.values()) == len(x) and info.stop_histogram[-1] >= int(info.ignored.sum())
    assert info.forwards_per_sample == info.row_forwards / len(x)
    assert info.ignored_share == float(info.ignored.double().mean())


@pytest.mark.parametrize("how", [{"eps": 0.0}, {"steps": 0}], ids=str)
def test_an_attack_that_may_do_nothing_says_so(how) -> None:
    x, y = torch.rand(4, 3), torch.tensor([0, 1, 0, 1])
    _, info = fastsal.perturb(nn.Linear(3, 2), x, y, **{"eps": 0.1, "steps": 5, **how}, return_info=True)
    steps = how.get("steps", 5)
    assert info.steps == steps and info.stop_step.tolist() == [-1] * 4 and info.stepped == [0] * steps
    assert info.row_forwards == info.row_backwards == 0


# ------------------------------------------------------------------------------------------------- layout


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4 * 16, 5)
        self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        z = self.conv(x)
        return self.head(z.view(len(z), -1))


def test_a_model_that_calls_view_stays_contiguous_and_is_told_once() -> None:
    model, x, y = Views(), torch.rand(4, 2, 6, 6), torch.randint(5, (4,))
    attack = fastsal.PGD(model, eps=0.1, steps=2)
    with pytest.warns(
        fastsal.FallbackWarning, match="Views: the model views a tensor as another shape: its images stay"
    ) as caught:
        found, info = attack(x, y, seed=1, return_info=True)
    assert caught[0].filename == __file__
    assert info.levers["channels_last"] == "off: the model views a tensor as another shape"
    forwards = model.forwards
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = attack(x, y, seed=1)
    assert torch.equal(found, again) and torch.equal(found, fastsal.PGD(model, 0.1, steps=2, fast=False)(x, y, seed=1))
    assert forwards == 3 and model.conv.weight.is_contiguous()  # one that was refused, and one a step


def test_an_error_of_the_model_is_not_taken_for_one_of_layout() -> None:
    class Fails(Views):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x.contiguous())
            raise RuntimeError("mine")

    x = torch.rand(4, 2, 6, 6)
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="mine"):
        warnings.simplefilter("error")
        fastsal.PGD(Fails(), eps=0.1, steps=2)(x, torch.randint(5, (4,)))


class ViewsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return (2 * grad.view(len(grad), -1)).view(grad.shape)


def test_a_backward_that_calls_view_and_images_that_lie_channels_last() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(ViewsBackward.apply(self.a(x))).mean((2, 3)))

    x, y = torch.rand(4, 2, 8, 8).contiguous(memory_format=torch.channels_last), torch.randint(5, (4,))
    for model in (Model(), nn.Sequential(nn.Conv2d(2, 4, 3), nn.Unflatten(1, (4, 1)), Viewed(), nn.Linear(144, 5))):
        with pytest.warns(fastsal.FallbackWarning, match="its images stay contiguous"):
            found = fastsal.PGD(model, eps=0.1, steps=2)(x, y, seed=1)
        assert found.is_contiguous(memory_format=torch.channels_last)
        expected = fastsal.PGD(model, eps=0.1, steps=2, fast=False)(x.contiguous(), y, seed=1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


class Viewed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1)


@pytest.mark.parametrize(
    "options", [{"c": 0.01}, {"c": None, "step_rule": "apgd"}, {"c": 0.01, "fast": False}], ids=str
)
def test_a_model_that_edits_its_input_moves_nothing_out_of_the_ball(options) -> None:
    class Clamps(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x.clamp_(0.2, 0.8)
            return super().forward(x)

    model, x, y = Clamps(12, 3), torch.rand(6, 12), torch.tensor([0, 1, 2, 0, 1, 2])
    before = x.clone()
    with pytest.warns(fastsal.FallbackWarning, match="edits its input in place: each of its inputs is a copy"):
        found = fastsal.perturb(
            model, x, y, eps=0.05, steps=3, seed=0, precision="fp32" if "fast" not in options else "auto", **options
        )
    assert torch.equal(x, before) and (found - x).abs().max() <= 0.05


# ---------------------------------------------------------------------------------------------- precision


def test_precision_is_chosen_asked_for_and_said(cases) -> None:
    model, x, y = (thing.float() if i < 2 else thing for i, thing in enumerate(cases["convolutional"]))
    try:
        pays, reason = bf16_pays("cpu")
        how: dict[str, Any] = {"eps": 0.05, "steps": 3, "c": None, "seed": SEED, "return_info": True}
        _, info = fastsal.perturb(model, x, y, **how)
        assert info.levers["precision"] == f"{'bf16' if pays else 'fp32'}: {reason}" and "times as fast" in reason
        _, info = fastsal.perturb(model, x, y, precision="fp32", **how)
        assert info.levers["precision"] == "fp32, as asked for"
        low, info = fastsal.perturb(model, x, y, precision="bf16", **how)
        assert info.levers["precision"] == "bf16: as asked for"
        plain, info = fastsal.perturb(model, x, y, fast=False, **how)
        assert info.levers["precision"] == "fp32, as asked for"
        assert low.dtype == torch.float32 and (low - x).abs().max() <= 0.05
        same = (low == plain).float().mean()
        assert 0.8 < same < 1  # signs of small gradients differ, and those alone
    finally:
        model.double()


def test_in_bf16_the_model_sees_bf16_and_its_weights_come_back(cases) -> None:
    seen = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            z = self.head(self.conv(x).mean((2, 3)))
            seen.append((x.dtype, self.conv.weight.dtype, self.conv.bias.dtype, z.dtype))
            return z

    model, x, y = Watched(), torch.rand(4, 2, 6, 6), torch.randint(5, (4,))
    parameters = dict(model.named_parameters())
    fastsal.SENSE(model, eps=0.1, steps=2, c=0.0, precision="bf16")(x, y)
    assert set(seen) == {(torch.bfloat16,) * 4}
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert model.conv.weight.dtype == torch.float32


class NoHalf(nn.Module):
    """Needs its weights in fp32, outside of what autocast sees."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) / torch.linalg.matrix_norm(self.fc.weight, 2)


def test_a_model_that_does_not_take_bf16_is_attacked_in_fp32_where_that_was_a_choice(monkeypatch) -> None:
    monkeypatch.setattr(fastsal.view, "bf16_pays", lambda device: (True, "here it pays"))
    model, x, y = NoHalf(), torch.rand(4, 6), torch.randint(3, (4,))
    with pytest.warns(
        fastsal.FallbackWarning, match="NoHalf: the model does not take bf16: .*: it is attacked in fp32"
    ):
        found, info = fastsal.PGD(model, eps=0.1, steps=2)(x, y, seed=0, return_info=True)
    assert info.levers["precision"].startswith("fp32: the model does not take bf16")
    assert torch.equal(found, fastsal.PGD(model, eps=0.1, steps=2, fast=False)(x, y, seed=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastsal.PGD(model, eps=0.1, steps=2)(x, y, seed=0)
    with pytest.raises(RuntimeError, match="BFloat16"):
        fastsal.PGD(NoHalf(), eps=0.1, steps=2, precision="bf16")(x, y, seed=0)


@pytest.mark.parametrize("options", [{"loss": "kl"}, {"tau": 1}], ids=str)
def test_bf16_is_no_choice_where_its_effect_was_not_measured(options, monkeypatch) -> None:
    monkeypatch.setattr(fastsal.view, "bf16_pays", lambda device: (True, "here it pays"))
    x, y = torch.rand(4, 6), torch.randint(3, (4,))
    _, info = fastsal.PGD(nn.Linear(6, 3), eps=0.1, steps=2, **options)(x, y, return_info=True)
    assert info.levers["precision"].startswith("fp32")


def test_a_callable_loss_may_use_the_model_in_bf16() -> None:
    model, x, y = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), torch.rand(4, 6), torch.randint(3, (4,))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        logits[torch.arange(len(labels)), labels] -= 1  # in place
        return nn.functional.cross_entropy(logits, labels, reduction="none") + model(x).sum().detach()

    fastsal.PGD(model, eps=0.1, steps=2, loss=loss, precision="bf16")(x, y)


def test_inside_your_autocast_the_attack_stays_there_unless_you_say_fp32() -> None:
    seen = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            seen.append(z.dtype)
            return z

    model, x, y = Watched(6, 3), torch.rand(4, 6), torch.randint(3, (4,))
    with torch.autocast("cpu", torch.bfloat16):
        _, info = fastsal.PGD(model, eps=0.1, steps=1)(x, y, return_info=True)
        assert info.levers["precision"] == "that of the autocast around the call" and seen == [torch.bfloat16]
        fastsal.PGD(model, eps=0.1, steps=1, precision="fp32")(x, y)
    assert seen == [torch.bfloat16, torch.float32]


# ------------------------------------------------------------------------------------------------ buckets


class Recorded(Counts):
    """Numbers as they might have arrived, in place of those that did; remembers what was asked for, and when."""

    def __init__(self, numbers: list[int]) -> None:
        super().__init__()
        self.numbers, self.pushed, self.asked = numbers, 0, list[tuple[int, int]]()

    def push(self, live: Tensor) -> None:
        self.pushed += 1

    def wait(self, step: int) -> int:
        self.asked.append((self.pushed - 1, step))
        return self.numbers[step]


def test_a_bucket_is_chosen_by_the_count_before_the_newest() -> None:
    counts = Recorded([90, 61, 50, 12, 0, 0])
    sizing = Buckets(100, counts)
    live = torch.tensor([0])
    assert [sizing(live) for _ in range(6)] == [100, 100, 75, 50, 13, 0]
    assert counts.asked == [(step, step - 1) for step in range(1, 6)]  # never the newest, so that nothing idles


@pytest.mark.parametrize("samples", [1, 2, 3, 7, 8, 128])
def test_buckets_never_hold_too_few(samples) -> None:
    for most in range(1, samples + 1):
        sizing = Buckets(samples, Recorded([most]))
        sizing(torch.tensor([0]))
        chosen = sizing(torch.tensor([0]))
        assert most <= chosen <= max(2 * most, -(-samples // 8))


@pytest.mark.parametrize("seed", range(5))
def test_any_upper_bounds_give_the_same_result(cases, seed, monkeypatch) -> None:
    """Counts that lag behind or overestimate: more padding, the same rows."""
    model, x, y = cases["convolutional"]
    how = {"eps": 0.05, "steps": 6, "c": 0.4, "seed": SEED, "return_info": True}
    expected, exact = fastsal.perturb(model, x, y, **how)
    draws = torch.Generator().manual_seed(seed)
    live = [*exact.live[1:], 0]
    numbers = [int(torch.randint(at, len(x) + 1, (), generator=draws)) if at else 1 for at in live]
    numbers = [max(numbers[i:]) for i in range(len(numbers))]
    monkeypatch.setattr(fastsal.attack, "Counts", lambda: Recorded(numbers + [1] * 8))
    found, info = fastsal.perturb(model, x, y, fast=fastsal.Levers(live_rows="buckets"), **how)
    assert torch.equal(info.stop_step, exact.stop_step)
    assert ((found - expected).abs() > 1e-9).double().mean() <= 1e-4
    assert info.row_forwards >= exact.row_forwards


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_a_batch_that_is_decided_once_shrinks_once(cases, momentum) -> None:
    """In the warm-up epochs no row leaves later: the count of the first retirement is what there is."""
    model, x, y = cases["convolutional"]
    how = {"eps": 0.05, "steps": 6, "c": 0.4, "truncate": False, "momentum": momentum, "seed": SEED}
    expected, exact = fastsal.perturb(model, x, y, return_info=True, **how)
    levers = fastsal.Levers(live_rows="buckets")
    found, info = fastsal.perturb(model, x, y, fast=levers, return_info=True, **how)
    assert ((found - expected).abs() > 1e-9).double().mean() <= 1e-4
    assert torch.equal(info.stop_step, exact.stop_step) and info.stepped == exact.stepped
    assert exact.row_forwards < info.row_forwards < 6 * len(x)


@pytest.mark.parametrize("sizing", ["buckets", "off"])
def test_padding_of_a_start_is_zero(cases, sizing, monkeypatch) -> None:
    seen = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return model(x)

    model, x, y = cases["dense"]
    garbage = torch.empty_strided

    def empty(*args: Any, **options: Any) -> Tensor:
        fresh = garbage(*args, **options)
        return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

    monkeypatch.setattr(torch, "empty_strided", empty)
    levers = fastsal.Levers(live_rows=sizing)
    fastsal.perturb(Watched(), x, y, eps=0.05, steps=4, c=0.6, decide_at="clean", fast=levers)
    assert all(z.isfinite().all() for z in seen) and any((z == 0).flatten(1).all(1).any() for z in seen)


def test_padding_holds_numbers() -> None:
    """The rows that nobody writes: a model that cannot take garbage gets zeros there."""
    seen = []

    class Checks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.detach().isfinite().all()
            seen.append(len(x))
            return torch.stack((x.sum(1), 3 - x.sum(1)), 1)

    x = torch.linspace(0, 1, 40).reshape(20, 2)
    y = (x.sum(1) < 1.5).long()
    levers = fastsal.Levers(live_rows="off")
    fastsal.SENSE(Checks(), eps=0.3, steps=4, c=0.6, fast=levers)(x, y)
    assert set(seen) == {20}


def test_a_sizing_reads_the_device_when_it_says_so() -> None:
    live = torch.tensor([3])
    assert Exact()(live) == 3 and WholeBatch(10)(live) == 10 and WholeBatch(10)(0 * live) == 0
    assert LiveRows(torch.rand(2, 3), 4).room(0) is None


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fast": "yes"}, TypeError, "fast: expected True, False or fastsal.Levers, got 'yes'"),
        ({"precision": "fp8"}, ValueError, "precision: expected 'auto', 'fp32', 'bf16', got 'fp8'"),
        ({"normalize": (0.5, 0.0)}, ValueError, "normalize: expected every std > 0, got 0.0"),
        ({"normalize": 0.5}, ValueError, r"normalize: expected a pair \(mean, std\), got 0.5"),
        ({"normalize": ("a", 1)}, ValueError, "normalize: expected mean to be a number, or one per channel, got 'a'"),
    ],
)
def test_bad_options_are_named(options, error, message) -> None:
    with pytest.raises(error, match=message):
        fastsal.PGD(nn.Linear(2, 2), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"live_rows": "some"},
        {"channels_last": 1},
        {"channels_last": "auto"},
        {"kept_memory": "auto"},
        {"fold_batch_norm": "on"},
        {"cuda_graphs": None},
    ],
)
def test_bad_levers_are_named(options) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
        fastsal.Levers(**options)


# ---------------------------------------------------------------------------------------------- normalise


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("pair", [(0.4, 0.2), ([0.4, 0.5], [0.2, 0.3]), (torch.tensor([0.4, 0.5]), 0.25)], ids=str)
def test_normalised_models_are_attacked_in_pixels(norm, pair) -> None:
    torch.manual_seed(1)
    inner = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).double()
    mean, std = (torch.as_tensor(value, dtype=torch.float64).reshape(1, -1, 1, 1) for value in pair)

    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return inner((x - mean) / std)

    x, y = torch.rand(30, 2, 6, 6, dtype=torch.float64), torch.randint(5, (30,))
    how = {"eps": 0.2, "steps": 4, "norm": norm, "c": None, "seed": 2}
    found = fastsal.perturb(inner, x, y, normalize=pair, **how)
    torch.testing.assert_close(found, fastsal.perturb(Whole(), x, y, **how), rtol=0, atol=1e-9)
    assert (found - fastsal.perturb(inner, x, y, **how)).abs().max() > 0.01


def test_the_wrong_number_of_channels_is_named() -> None:
    with pytest.raises(ValueError, match="normalize: expected one mean or one for each of 2 channels, got 3"):
        fastsal.PGD(nn.Conv2d(2, 3, 3), normalize=([0.1, 0.2, 0.3], 1.0))(torch.rand(2, 2, 4, 4), torch.tensor([0, 1]))


def test_in_bf16_the_cut_holds_in_bf16_and_nearly_in_fp32(mlp) -> None:
    """In fp32 some rows that stopped lie over it, by the rounding of logits that have steps of 2^-6 there."""
    model, x, y = copy.deepcopy(mlp.model).float(), mlp.x[:1000].float(), mlp.y[:1000]
    how = {"eps": 0.1, "steps": 20, "c": 0.4, "seed": SEED, "return_info": True}
    found, info = fastsal.perturb(model, x, y, precision="bf16", **how)
    live = ~info.ignored
    excess = {}
    for precision in ("bf16", "fp32"):
        with viewed(model, x, fastsal.Levers(), precision) as view:
            z = view.forward(found, gradient=False)[1].float()
        excess[precision] = (nn.functional.cross_entropy(z, y, reduction="none") + math.log(0.4))[live]
    assert excess["bf16"].max() <= 0.01  # the attack's own forward, on another batch
    assert 0 < excess["fp32"].max() <= 0.1 and 0 < (excess["fp32"] > 0).float().mean() < 0.1
