"""The engine against the full-batch loop of `oracle.py`, in float64, on trained models and real images.

Compared are the step at which each row stopped and the iterate that came back. Excused are rows whose loss came
within 1e-12 of the cut, and one element in ten thousand (the sign of a gradient near zero is a matter of
rounding). Then the promises about what the engine does not do: run retired rows, or look at other rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor, nn

import fastsal

C_VALUES = (None, 0, 0.1, 0.3, 0.5, 0.7, 1)
STEPS = 6
MLP_EPS = {"Linf": 0.06, "L2": 0.9}
CNN_EPS = {"Linf": 0.04, "L2": 1.0}
SEED = 5


def start(x: Tensor, eps: Any, norm: str, random_start: bool, low: Any = 0.0, high: Any = 1.0) -> Tensor:
    if not random_start:
        return x
    return fastsal.functional.random_start(x, eps, seed=SEED, sample_ids=None, norm=norm, clip_min=low, clip_max=high)


def both(model: nn.Module, x: Tensor, y: Tensor, eps: Any, **choice: Any) -> tuple[Tensor, Any, oracle.Outcome]:
    """(x_adv, info) of the engine and the outcome of the oracle, from the same start."""
    choice = {"steps": STEPS, "alpha": None, "norm": "Linf", "random_start": True, **choice}
    x_adv, info = fastsal.perturb(model, x, y, eps=eps, seed=SEED, return_info=True, **choice)
    random_start = choice.pop("random_start")
    alpha = choice.pop("alpha")
    low, high = choice.get("clip_min", 0.0), choice.get("clip_max", 1.0)
    expected = oracle.attack(
        model,
        x,
        y,
        start(x, eps, choice["norm"], random_start, low, high),
        eps=eps,
        alpha=1.875 * eps / choice["steps"] if alpha is None else alpha,
        **choice,
    )
    return x_adv, info, expected


def agree(x_adv: Tensor, info: Any, expected: oracle.Outcome, c: float | None, what: object = "") -> None:
    near = torch.zeros_like(expected.ignored) if c in (None, 0) else expected.near_cut(oracle.cut_of(c))
    assert near.sum() <= 2, f"{what}: too many rows excused for a test to mean anything"
    keep = ~near
    assert torch.equal(info.ignored[keep], expected.ignored[keep]), what
    wrong = (info.stop_step != expected.stop_step) & keep
    assert not wrong.any(), (
        f"{what}: rows {wrong.nonzero().flatten().tolist()[:8]} stopped at {info.stop_step[wrong].tolist()[:8]}, "
        f"expected {expected.stop_step[wrong].tolist()[:8]}"
    )
    apart = ((x_adv - expected.x_adv).abs() > 1e-9)[keep].double().mean()
    assert apart <= 1e-4, f"{what}: {apart:.2e} of the elements differ"
    assert not info.nonfinite.any(), what


# ------------------------------------------------------------------ the same result


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("c", C_VALUES)
def test_every_choice_agrees_with_the_oracle_on_an_mlp(mlp, c, norm) -> None:
    choices = itertools.product([True, False], ["clean", "start"], ["start", "clean"], [True, False])
    for random_start, ignored, decide_at, truncate in choices:
        choice = dict(
            random_start=random_start, ignored=ignored, decide_at=decide_at, truncate=truncate, c=c, norm=norm
        )
        if c is None and (ignored, decide_at, truncate) != ("clean", "start", True):
            continue  # nothing to ignore or to truncate
        agree(*both(mlp.model, mlp.x, mlp.y, MLP_EPS[norm], **choice), c, choice)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("c", C_VALUES)
def test_a_batch_norm_cnn_in_train_mode_agrees_with_the_oracle_in_eval_mode(cnn, c, norm) -> None:
    choice = dict(c=c, norm=norm)
    cnn.model.train()
    try:
        x_adv, info = fastsal.perturb(
            cnn.model, cnn.x, cnn.y, eps=CNN_EPS[norm], steps=STEPS, seed=SEED, return_info=True, **choice
        )
    finally:
        cnn.model.eval()
    expected = oracle.attack(
        cnn.model,
        cnn.x,
        cnn.y,
        start(cnn.x, CNN_EPS[norm], norm, True),
        eps=CNN_EPS[norm],
        alpha=1.875 * CNN_EPS[norm] / STEPS,
        steps=STEPS,
        **choice,
    )
    agree(x_adv, info, expected, c, choice)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_the_rows_stop_all_over_the_place(request, name, norm) -> None:
    """Otherwise the comparisons above would compare little."""
    model, x, y = request.getfixturevalue(name)
    eps = {"mlp": MLP_EPS, "cnn": CNN_EPS}[name][norm]
    x_0 = start(x, eps, norm, True)
    for c in (0.3, 0.5, 0.7):
        how = dict(eps=eps, alpha=1.875 * eps / STEPS, steps=STEPS, c=c, norm=norm)
        stop = oracle.attack(model, x, y, x_0, **how).stop_step
        histogram = torch.bincount(stop + 1, minlength=STEPS + 2).tolist()
        assert min(histogram) >= 5 and max(histogram) <= 0.6 * len(x), f"c={c}: stopped at -1, 0, ... K: {histogram}"
        assert sum(n >= 30 for n in histogram) >= STEPS, f"c={c}: stopped at -1, 0, ... K: {histogram}"


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("c", [None, 0.1, 0.5])
@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_other_losses_agree_with_the_oracle(mlp, loss, c, norm) -> None:
    """Another loss is ascended, the cut is still tested on cross-entropy."""
    agree(*both(mlp.model, mlp.x, mlp.y, MLP_EPS[norm], loss=loss, c=c, norm=norm), c)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("c", [None, 0.5])
@pytest.mark.parametrize("decide_at", ["start", "clean"])
def test_kl_agrees_with_the_oracle(mlp, decide_at, c, norm) -> None:
    """TRADES (c=None) and SENSE-TRADES: from the clean logits, by whichever rows are left."""
    how = dict(eps=MLP_EPS[norm], steps=STEPS, c=c, norm=norm, decide_at=decide_at)
    x_adv, info = fastsal.perturb(mlp.model, mlp.x, mlp.y, loss="kl", seed=SEED, return_info=True, **how)
    with torch.no_grad():
        loss = oracle.kl_from(mlp.model(mlp.x))
    x_0 = start(mlp.x, how["eps"], norm, True)
    expected = oracle.attack(mlp.model, mlp.x, mlp.y, x_0, loss=loss, alpha=1.875 * how["eps"] / STEPS, **how)
    agree(x_adv, info, expected, c)
    assert info.row_forwards == sum(info.live) + len(mlp.x)  # the clean forward is made once


@pytest.mark.parametrize("c", [None, 0.5])
def test_a_callable_agrees_with_the_loss_that_it_states(mlp, c) -> None:
    how = dict(eps=MLP_EPS["Linf"], steps=STEPS, c=c, seed=SEED, return_info=True)
    mine, info = fastsal.perturb(mlp.model, mlp.x, mlp.y, loss=oracle.margin, **how)
    theirs, expected = fastsal.perturb(mlp.model, mlp.x, mlp.y, loss="margin", **how)
    assert torch.equal(info.stop_step, expected.stop_step)
    assert ((mine - theirs).abs() > 1e-9).double().mean() <= 1e-4


@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("c", [None, 0.1, 0.5])
def test_l1_agrees_with_the_oracle(mlp, c, loss) -> None:
    x_adv, info, expected = both(mlp.model, mlp.x, mlp.y, 6.0, loss=loss, c=c, norm="L1")
    agree(x_adv, info, expected, c)
    assert (x_adv - mlp.x).abs().flatten(1).sum(1).max() > 5  # and it went somewhere


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_targeted_attacks_agree_with_the_oracle_whatever_the_loss(mlp, norm, loss) -> None:
    target = (mlp.y + 1) % 10
    eps = {**MLP_EPS, "L1": 6.0}[norm]
    x_adv, info, expected = both(mlp.model, mlp.x, target, eps, loss=loss, c=None, norm=norm, targeted=True)
    agree(x_adv, info, expected, None)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_a_targeted_attack_agrees_with_the_oracle(mlp, loss, norm) -> None:
    target = (mlp.y + 1 + torch.arange(len(mlp.y)) % 9) % 10
    result = both(mlp.model, mlp.x, target, MLP_EPS[norm], loss=loss, targeted=True, c=None, norm=norm)
    agree(*result, None)
    with torch.no_grad():
        before = oracle.LOSSES[loss](mlp.model(mlp.x), target)
        after = oracle.LOSSES[loss](mlp.model(result[0]), target)
    assert (after < before).double().mean() > 0.95


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("c", [None, 0.5])
def test_one_radius_and_step_per_sample_agree_with_the_oracle(mlp, c, norm) -> None:
    eps = MLP_EPS[norm] * torch.linspace(0.1, 2, len(mlp.x), dtype=torch.float64)
    alpha = eps.flip(0) / 4
    agree(*both(mlp.model, mlp.x, mlp.y, eps, alpha=alpha, c=c, norm=norm), c)
    agree(*both(mlp.model, mlp.x, mlp.y, eps, alpha=None, c=c, norm=norm), c)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("box", [(None, None), (0.0, None), (None, 1.0), (-0.5, 1.5), "per channel"], ids=str)
def test_every_box_agrees_with_the_oracle(mlp, box, norm) -> None:
    model: nn.Module = mlp.model
    x = mlp.x
    if box == "per channel":  # two channels: the upper half of the image, and the lower one shifted by 3
        x = torch.cat([x[:, :, :7], x[:, :, 7:] + 3], 1)
        box = (torch.tensor([0.0, 3.0]).double(), torch.tensor([1.0, 4.0]).double())
        model = nn.Sequential(Unshift(), mlp.model)
    low, high = box
    agree(*both(model, x, mlp.y, MLP_EPS[norm], c=0.5, norm=norm, clip_min=low, clip_max=high), 0.5)


class Unshift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - torch.tensor([0.0, 3.0], dtype=x.dtype)[:, None, None]


@pytest.mark.parametrize("steps", [1, 2, 11])
def test_other_numbers_of_steps_agree_with_the_oracle(mlp, steps) -> None:
    for truncate, alpha in itertools.product([True, False], [None, 0.011]):
        choice = dict(steps=steps, truncate=truncate, alpha=alpha, c=0.5)
        agree(*both(mlp.model, mlp.x[:500], mlp.y[:500], 0.06, **choice), 0.5, choice)


def test_c_zero_is_pgd_for_the_rows_that_are_right_at_the_start(mlp) -> None:
    pgd, _, _ = both(mlp.model, mlp.x, mlp.y, 0.06, c=None)
    sense, info, _ = both(mlp.model, mlp.x, mlp.y, 0.06, c=0)
    with torch.no_grad():
        wrong = ~oracle.right(mlp.model(start(mlp.x, 0.06, "Linf", True)), mlp.y)
    assert torch.equal(info.ignored, wrong) and 0 < wrong.sum() < len(wrong)
    assert torch.equal(sense[wrong], mlp.x[wrong])
    assert ((sense - pgd)[~wrong].abs() > 1e-9).double().mean() <= 1e-4


def test_c_one_attacks_no_row(mlp) -> None:
    x_adv, info, _ = both(mlp.model, mlp.x, mlp.y, 0.06, c=1)
    assert torch.equal(x_adv, mlp.x)
    assert info.ignored.all() and (info.stop_step == -1).all()


def test_c_one_attacks_not_even_a_certain_row() -> None:
    """CE is exactly 0 here, a tie with the cut."""
    x, y = torch.rand(3, 4, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    certain = Fixed(torch.tensor([1000.0, 0.0]).double())
    _, info = fastsal.SENSE(certain, 0.1, steps=3, c=1)(x, y, seed=0, return_info=True)
    assert info.ignored.all()


class Fixed(nn.Module):
    """The same logits for every row, whatever x is; the gradient is zero and not missing."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits + 0 * x.flatten(1).sum(1, keepdim=True)


# ------------------------------------------------------------------ the start


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_attack_starts_where_functional_random_start_says(norm) -> None:
    """Ignored rows return x_0 itself under ignored='start', and c=1 ignores every row."""
    x, y = torch.rand(40, 3, 5, 5), torch.zeros(40, dtype=torch.int64)
    ids = torch.randperm(1000)[:40]
    model = nn.Sequential(nn.Flatten(), nn.Linear(75, 10))
    attack = fastsal.SENSE(model, 0.3, steps=3, c=1, norm=norm, ignored="start")
    x_0 = fastsal.functional.random_start(x, 0.3, seed=77, sample_ids=ids, norm=norm)
    assert not torch.equal(x_0, x)
    assert torch.equal(attack(x, y, seed=77, sample_ids=ids), x_0)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_philox_of_the_oracle_knows_its_answers(counter, key, words) -> None:
    """Known-answer vectors of Salmon et al., Random123."""
    found = oracle.philox(np.array(counter), np.array(key))
    assert " ".join(f"{int(w):08x}" for w in found) == words


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32, 2**63 - 1, -1, -(2**63), 0x243F6A8885A308D3])
@pytest.mark.parametrize("box", [(0.0, 1.0), (None, None), (0.0, None)], ids=str)
def test_the_linf_start_is_the_formula_bit_for_bit(seed, box) -> None:
    ids = torch.tensor([0, 1, 2, 7, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1])
    pixels = torch.randint(0, 256, (len(ids), 3, 5, 7)).float() / 255
    for x, eps in itertools.product(
        [pixels, torch.rand(len(ids), 1), torch.rand(len(ids), 2, 3), pixels.double()], [8 / 255, 0.1, 1e-6, 3.0]
    ):
        found = fastsal.functional.random_start(
            x, eps, seed=seed, sample_ids=ids, norm="Linf", clip_min=box[0], clip_max=box[1]
        )
        expected = oracle.linf_start(x.numpy(), eps, seed, ids.numpy(), *box)
        assert found.dtype == x.dtype
        assert np.array_equal(found.numpy(), expected), (tuple(x.shape), x.dtype, eps)


def test_the_linf_start_of_a_long_row_is_the_formula() -> None:
    x = torch.rand(2, 3, 200, 301)
    found = fastsal.functional.random_start(x, 8 / 255, seed=3, sample_ids=torch.tensor([5, 6]))
    assert np.array_equal(found.numpy(), oracle.linf_start(x.numpy(), 8 / 255, 3, np.array([5, 6]), 0.0, 1.0))


def test_sample_ids_count_from_zero_by_default() -> None:
    x = torch.rand(6, 11)
    for norm in ("Linf", "L2"):
        counted = fastsal.functional.random_start(x, 0.1, seed=1, sample_ids=torch.arange(6), norm=norm)
        assert torch.equal(fastsal.functional.random_start(x, 0.1, seed=1, norm=norm), counted)


def test_the_l2_start_fills_the_ball_evenly() -> None:
    """In d dimensions (|noise| / eps)^d is uniform in (0, 1), and no direction is preferred."""
    for d in (1, 2, 3, 10):
        x = torch.zeros(20_000, d, dtype=torch.float64)
        noise = fastsal.functional.random_start(x, 0.5, seed=9, norm="L2", clip_min=None, clip_max=None)
        radius = noise.norm(dim=1) / 0.5
        assert (radius <= 1).all()
        levels = torch.linspace(0, 1, len(x), dtype=torch.float64)
        gap = (radius.pow(d).sort().values - levels).abs().max()
        assert gap < 1.95 / len(x) ** 0.5, f"Kolmogorov-Smirnov in {d} dimensions: {gap:.4f}"  # p = 0.001
        unit = noise / noise.norm(dim=1, keepdim=True)
        assert unit.mean(0).abs().max() < 4.5 / (len(x) * d) ** 0.5
        assert (unit.T @ unit / len(x) - torch.eye(d) / d).abs().max() < 4.5 / len(x) ** 0.5


# ------------------------------------------------------------------ what goes through the model


class Log:
    """Forwards and backwards in the order they came. A copy of the model writes to the same log."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.with_graph: list[bool] = []
        self.backward_rows: list[int] = []

    def __deepcopy__(self, memo: dict) -> Log:
        return self

    @property
    def forward_rows(self) -> list[int]:
        return [len(x) for x in self.inputs]


class CountBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, log: Log) -> Tensor:
        ctx.log = log
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.log.backward_rows.append(len(grad))
        return grad, None


class Watched(nn.Module):
    """A model that writes down what goes through it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.log = Log()

    def forward(self, x: Tensor) -> Tensor:
        self.log.inputs.append(x.detach().clone())
        out = self.model(CountBackward.apply(x, self.log))
        self.log.outputs.append(out.detach().clone())
        self.log.with_graph.append(out.requires_grad)
        return out


def watch(trained: Any, rows: int = 400, **choice: Any) -> tuple[Log, Tensor, Any, oracle.Outcome]:
    x, y = trained.x[:rows], trained.y[:rows]
    watched = Watched(trained.model).eval()
    choice = {"steps": STEPS, "alpha": None, "norm": "Linf", **choice}
    x_adv, info = fastsal.perturb(watched, x, y, eps=0.06, seed=SEED, return_info=True, **choice)
    choice.pop("alpha")
    expected = oracle.attack(
        trained.model, x, y, start(x, 0.06, choice["norm"], True), eps=0.06, alpha=1.875 * 0.06 / STEPS, **choice
    )
    return watched.log, x_adv, info, expected


ACCOUNTS = [
    dict(c=c, decide_at=decide_at, truncate=truncate)
    for c, decide_at, truncate in itertools.product([0, 0.1, 0.5, 0.9, 1], ["start", "clean"], [True, False])
] + [dict(c=None)]


@pytest.mark.parametrize("choice", ACCOUNTS, ids=str)
def test_only_live_rows_run_and_every_row_is_accounted_for(mlp, choice) -> None:
    log, _, info, expected = watch(mlp, **choice)
    assert log.forward_rows == expected.rows
    assert log.backward_rows == expected.gradient_rows
    assert info.row_forwards == sum(log.forward_rows)
    assert info.row_backwards == sum(log.backward_rows)


@pytest.mark.parametrize("choice", [dict(c=None), dict(c=0.5), dict(c=0.5, decide_at="clean")], ids=str)
def test_the_forward_that_predicts_y_is_accounted_for(mlp, choice) -> None:
    x = mlp.x[:400]
    watched = Watched(mlp.model).eval()
    _, info = fastsal.perturb(watched, x, eps=0.06, steps=STEPS, seed=0, return_info=True, **choice)
    rows = watched.log.forward_rows
    assert rows[0] == 400 and info.row_forwards == sum(rows)
    assert info.row_backwards == sum(watched.log.backward_rows)
    assert list(info.live) == rows[1:]  # the forward at x predicts y, and decides there what is ignored


@pytest.mark.parametrize("choice", ACCOUNTS, ids=str)
def test_live_counts_are_the_rows_of_each_forward(mlp, choice) -> None:
    log, _, info, _ = watch(mlp, **choice)
    decided_at_x = choice.get("decide_at") == "clean"
    assert list(info.live) == log.forward_rows[decided_at_x:]


@pytest.mark.parametrize("choice", ACCOUNTS, ids=str)
def test_the_live_share_is_the_share_of_rows_that_take_a_step(mlp, choice) -> None:
    """Without the rows that the test before the step retired: what is left to be gained shows in it."""
    _, _, info, expected = watch(mlp, **choice)
    share = [float(((expected.stop_step >= k) & ~expected.ignored).double().mean()) for k in range(STEPS)]
    assert info.live_share == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("steps", [1, STEPS])
def test_no_more_passes_than_needed(mlp, steps) -> None:
    """K+1 forwards and K backwards with truncation, K of each without; one more to decide at x."""
    for choice, forwards in [
        (dict(c=0.1), steps + 1),
        (dict(c=0.1, truncate=False), steps),
        (dict(c=None), steps),
        (dict(c=0.1, decide_at="clean"), steps + 2),
        (dict(c=0.1, decide_at="clean", truncate=False), steps + 1),
    ]:
        watched = Watched(mlp.model).eval()
        fastsal.perturb(watched, mlp.x[:400], mlp.y[:400], eps=0.01, steps=steps, seed=0, **choice)
        assert len(watched.log.forward_rows) == forwards, choice
        assert len(watched.log.backward_rows) == steps, choice


def test_a_forward_without_a_backward_builds_no_graph(mlp) -> None:
    for choice in (dict(c=0.1), dict(c=0.1, decide_at="clean"), dict(c=None)):
        for labels in (mlp.y[:400], None):
            watched = Watched(mlp.model).eval()
            fastsal.perturb(watched, mlp.x[:400], labels, eps=0.01, steps=4, seed=0, **choice)
            log = watched.log
            assert sum(log.with_graph) == len(log.backward_rows), (choice, labels is None)


def test_the_attack_ends_early_when_no_row_is_live(mlp) -> None:
    """A radius so large that every row crosses long before the last step."""
    watched = Watched(mlp.model).eval()
    attack = fastsal.SENSE(watched, 0.9, 0.3, 50, 0.9)
    _, info = attack(mlp.x[:200], mlp.y[:200], seed=0, return_info=True)
    assert len(watched.log.forward_rows) <= 6
    assert min(watched.log.forward_rows) > 0
    assert (info.stop_step < 50).all()


@pytest.mark.parametrize("truncate", [True, False])
def test_a_retired_row_is_absent_from_every_later_forward(mlp, truncate) -> None:
    """Rows are recognised by the sample whose eps-ball they lie in."""
    x = mlp.x[:400]
    distances = torch.cdist(x.flatten(1), x.flatten(1), p=float("inf")).fill_diagonal_(1.0)
    assert distances.min() > 2 * 0.06
    log, _, info, _ = watch(mlp, c=0.5, truncate=truncate)
    for k, z in enumerate(log.inputs):
        distance, who = torch.cdist(z.flatten(1), x.flatten(1), p=float("inf")).min(1)
        assert (distance <= 0.06).all()
        # a row that ended at x_j was found to cross in forward j + 1
        present = (~info.ignored & (info.stop_step + 1 >= k)) | (k == 0)
        assert who.tolist() == present.nonzero().flatten().tolist(), f"forward {k}"


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("decide_at", ["start", "clean"])
@pytest.mark.parametrize("c", [0.1, 0.5, 0.8])
def test_the_result_was_visited_and_is_inside_the_cut(mlp, c, decide_at, norm) -> None:
    """Bit for bit one of the inputs of a forward, and that very forward put it inside the cut."""
    log, x_adv, info, _ = watch(mlp, c=c, decide_at=decide_at, norm=norm)
    losses: dict[bytes, float] = {}
    x, y = mlp.x[:400], mlp.y[:400]
    for z, out in zip(log.inputs, log.outputs, strict=True):
        who = torch.cdist(z.flatten(1), x.flatten(1)).argmin(1)
        ce = oracle.cross_entropy(out, y[who])
        losses.update({row.numpy().tobytes(): float(v) for row, v in zip(z, ce, strict=True)})
    for i in range(400):
        row = x_adv[i].numpy().tobytes()
        if info.ignored[i]:
            assert torch.equal(x_adv[i], x[i])
        else:
            assert row in losses, f"row {i} returned a point the model never saw"
            assert losses[row] <= oracle.cut_of(c) + 1e-15, f"row {i}"


@pytest.mark.parametrize("choice", [dict(c=0.3), dict(c=0.7, decide_at="clean"), dict(c=None)], ids=str)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_row_does_not_depend_on_the_rows_beside_it(cnn, choice, norm) -> None:
    rows = 600
    x, y, ids = cnn.x[:rows], cnn.y[:rows], torch.arange(rows) * 3 + 2**40
    attack: Callable[..., Tensor] = fastsal.SENSE(cnn.model, CNN_EPS[norm], steps=STEPS, norm=norm, **choice)
    whole, info = attack(x, y, seed=SEED, sample_ids=ids, return_info=True)
    order = torch.randperm(rows)
    for size in (1, 37, 256):
        parts = order.split(size)[: 50 if size == 1 else None]
        done = torch.cat(list(parts))
        pieces = [attack(x[p], y[p], seed=SEED, sample_ids=ids[p], return_info=True) for p in parts]
        x_adv = torch.cat([p[0] for p in pieces])
        stop = torch.cat([p[1].stop_step for p in pieces])
        assert torch.equal(stop, info.stop_step[done])
        assert ((x_adv - whole[done]).abs() > 1e-9).double().mean() <= 1e-4
        noise = torch.cat(
            [
                fastsal.functional.random_start(x[p], CNN_EPS[norm], seed=SEED, sample_ids=ids[p], norm=norm)
                for p in parts
            ]
        )
        together = fastsal.functional.random_start(x, CNN_EPS[norm], seed=SEED, sample_ids=ids, norm=norm)
        assert torch.equal(noise, together[done])


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_tiny_gradients_make_whole_steps(mlp, norm) -> None:
    """A gradient averaged over a large batch, or a floor under its length, would shorten them."""
    x, y = mlp.x[:300], mlp.y[:300]
    faint = nn.Sequential(mlp.model, Scale(1e-12))
    attack = fastsal.PGD(faint, 0.9, 0.2, 2, norm, random_start=False, clip_min=None, clip_max=None)
    moved = (attack(x, y) - x).flatten(1).norm(2.0 if norm == "L2" else float("inf"), dim=1)
    assert (moved > 0.2).all() and (moved <= 0.4 + 1e-9).all()


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, z: Tensor) -> Tensor:
        return z * self.factor
