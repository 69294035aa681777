"""The evaluation against attacks written out in plain torch, and against closed forms."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fastsal
from fastsal.evaluate import accuracy, robust_accuracy, wilson
from fastsal.functional import random_start

ROWS = 300


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Quicker for nets this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def evaluate(model: Any, loader: Any, eps: float, **options: Any) -> fastsal.Report:
    return fastsal.evaluate(model, loader, eps, **{"steps": 10, "progress": False, **options})


def robust(report: fastsal.Report) -> list[float]:
    return list(report.robust_accuracy.values())


# -------------------------------------------------------- the oracle: full batch, float64, nothing of the engine


def right(logits: Tensor, y: Tensor) -> Tensor:
    """The lowest index among the largest is y; NaN is never right."""
    largest = logits == logits.amax(1, keepdim=True)
    return largest.float().argmax(1).eq(y) & ~logits.isnan().any(1)


def into_ball(z: Tensor, x: Tensor, eps: float, norm: str, box: bool) -> Tensor:
    d = z - x
    if norm == "Linf":
        d = d.clamp(-eps, eps)
    else:
        length = d.flatten(1).norm(dim=1).clamp_min(1e-300)
        d = d * (eps / length).clamp_max(1.0).view(-1, *[1] * (x.dim() - 1))
    return (x + d).clamp(0, 1) if box else x + d


def ascend(
    model: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    eps: float,
    alpha: float,
    steps: int,
    norm: str,
    box: bool,
    seed: int | None,
) -> Tensor:
    """The end points of plain PGD on `loss` of the logits; no random start without a seed."""
    bounds = (0.0, 1.0) if box else (None, None)
    z = x.clone() if seed is None else random_start(x, eps, seed, norm=norm, clip_min=bounds[0], clip_max=bounds[1])
    for _ in range(steps):
        z.requires_grad_(True)
        (g,) = torch.autograd.grad(loss(model(z)).sum(), z)
        if norm == "Linf":
            step = g.sign()
        else:
            step = g / g.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, *[1] * (x.dim() - 1))
        z = into_ball(z.detach() + alpha * step, x, eps, norm, box)
    return z.detach()


def survivors(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    norm: str,
    steps: int,
    margin_steps: int,
    classes: int,
    box: bool,
) -> dict[str, Tensor]:
    """Which rows stay right under each attack, as the documentation of `evaluate` describes them."""

    def end(loss: Callable[[Tensor], Tensor], alpha: float, steps: int, seed: int | None) -> Tensor:
        end_points = ascend(model, x, loss, eps, alpha, steps, norm, box, seed)
        return right(model(end_points).detach(), y)

    def ce(z: Tensor) -> Tensor:
        return cross_entropy(z, y, reduction="none")

    with torch.no_grad():
        clean = model(x)
    natural = right(clean, y)
    found = {"natural": natural}
    found["FGSM"] = natural & end(ce, eps, 1, None)
    found[f"PGD-{steps}"] = natural & end(ce, 2.5 * eps / steps, steps, 0)
    likeliest = clean.masked_fill(one_hot(y, clean.shape[1]).bool(), -math.inf).argsort(1, descending=True)
    stands = natural.clone()
    for place in range(min(classes, clean.shape[1] - 1)):
        t = likeliest[:, place]

        def margin(z: Tensor, t: Tensor = t) -> Tensor:
            return (z.gather(1, t[:, None]) - z.gather(1, y[:, None])).squeeze(1)

        stands &= end(margin, 2.5 * eps / margin_steps, margin_steps, 1 + place)
    found["margin-T"] = stands
    found["worst"] = natural & found["FGSM"] & found[f"PGD-{steps}"] & stands
    return found


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.06), ("L2", 0.7)])
def test_every_count_is_that_of_the_attacks_written_out(mlp: Any, norm: str, eps: float) -> None:
    x, y = mlp.x[:ROWS], mlp.y[:ROWS]
    report = evaluate(mlp.model, [(x[:128], y[:128]), (x[128:], y[128:])], eps, norm=norm, margin_steps=6)
    expected = survivors(mlp.model, x, y, eps, norm, 10, 6, 9, box=True)
    assert report.counts.keys() == expected.keys()
    for name, mask in expected.items():
        assert abs(report.counts[name] - int(mask.sum())) <= 1, name  # a row on the boundary may fall either way
    assert 0.1 * ROWS < report.counts["worst"] < report.counts["FGSM"] < report.counts["natural"]  # there is a contest


class Wiggly(nn.Module):
    """So many hills that where an attack ends depends on where it starts: the noise of every row counts."""

    def __init__(self, waves: float) -> None:
        super().__init__()
        self.waves = waves
        self.inner = linear(5, width=3)[0]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(torch.sin(self.waves * x))
        return logits


@pytest.mark.parametrize(("norm", "eps", "waves"), [("Linf", 0.05, 20.0), ("L2", 0.1, 80.0)])
def test_the_noise_of_each_row_attack_and_class_is_the_documented_one(norm: str, eps: float, waves: float) -> None:
    model, (_, x, _) = Wiggly(waves), linear(5, width=3)
    y = (model(x).argmax(1) + (torch.arange(len(x)) % 4 == 0)) % 5  # a quarter of them wrong
    loader = list(zip(x.split(150), y.split(150), strict=True))
    short: dict[str, Any] = {"norm": norm, "steps": 4, "margin_steps": 3, "margin_classes": 2}
    report = evaluate(model, loader, eps, **short)
    expected = {name: int(mask.sum()) for name, mask in survivors(model, x, y, eps, norm, 4, 3, 2, box=True).items()}
    assert report.counts == expected
    assert 0 < expected["worst"] < min(expected[name] for name in ("FGSM", "PGD-4", "margin-T"))
    other_noise = evaluate(model, loader, eps, seed=100, **short).counts
    assert other_noise["FGSM"] == expected["FGSM"]
    assert other_noise["PGD-4"] != expected["PGD-4"] and other_noise["margin-T"] != expected["margin-T"]


def test_a_model_trained_by_sense_is_evaluated_without_truncation(mlp: Any) -> None:
    model, x, y = copy.deepcopy(mlp.model), mlp.x, mlp.y
    fastsal.train(
        model, list(zip(x[1000:].split(100), y[1000:].split(100), strict=True)), eps=0.06, steps=4, c=0.3, epochs=2,
        warmup_epochs=0, lr=0.02, seed=0, progress=False,
    )  # fmt: skip
    report = evaluate(model, [(x[:ROWS], y[:ROWS])], 0.06, margin_steps=6)
    expected = survivors(model, x[:ROWS], y[:ROWS], 0.06, "Linf", 10, 6, 9, box=True)
    for name, mask in expected.items():
        assert abs(report.counts[name] - int(mask.sum())) <= 1, name
    truncated = fastsal.SENSE(model, 0.06, 2.5 * 0.06 / 10, 10, c=0.5)(x[:ROWS], y[:ROWS], seed=0)
    flattered = right(model(truncated), y[:ROWS]) & expected["natural"]
    assert int(flattered.sum()) > report.counts["PGD-10"] + 10  # it would have shown


def test_fewer_classes_in_the_margin_attack_break_no_more_rows(mlp: Any) -> None:
    x, y = mlp.x[:ROWS], mlp.y[:ROWS]
    few = evaluate(mlp.model, [(x, y)], 0.06, steps=1, margin_steps=6, margin_classes=2)
    all_of_them = evaluate(mlp.model, [(x, y)], 0.06, steps=1, margin_steps=6, margin_classes=50)
    expected = survivors(mlp.model, x, y, 0.06, "Linf", 1, 6, 2, box=True)
    assert abs(few.counts["margin-T"] - int(expected["margin-T"].sum())) <= 1
    assert all_of_them.counts["margin-T"] <= few.counts["margin-T"]


# ------------------------------------------------------------------------------------ closed forms: linear models


def linear(classes: int, width: int = 40, rows: int = 500) -> tuple[nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    model = nn.Linear(width, classes).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(model.weight.shape, generator=generator, dtype=torch.float64))
        model.bias.copy_(torch.randn(classes, generator=generator, dtype=torch.float64))
    x = torch.rand(rows, width, generator=generator, dtype=torch.float64)
    y = model(x).argmax(1)
    wrong = torch.rand(rows, generator=generator) < 0.1
    return model, x, torch.where(wrong, (y + 1) % classes, y)


def least_margins(model: nn.Linear, x: Tensor, y: Tensor, reach: Callable[[Tensor], Tensor]) -> Tensor:
    """Least z_y - z_j over all j and all points the adversary reaches; `reach` is the most that (N, D) can take off."""
    with torch.no_grad():
        z = model(x)
        least = torch.full((len(x),), math.inf, dtype=torch.float64)
        for j in range(z.shape[1]):
            d = model.weight[y] - model.weight[j]
            margin = z.gather(1, y[:, None]).squeeze(1) - z[:, j] - reach(d)
            least = torch.where(y == j, least, torch.minimum(least, margin))
    assert float(least.abs().min()) > 1e-9  # no row lies on the boundary
    return least


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("box", [True, False])
def test_linf_on_a_linear_model_is_exact(classes: int, box: bool) -> None:
    model, x, y = linear(classes)
    eps = 0.02
    bounds: dict[str, Any] = {} if box else {"clip_min": None, "clip_max": None}

    def reach(d: Tensor) -> Tensor:
        if not box:
            return eps * d.abs().sum(1)
        return (d * (x - torch.where(d > 0, (x - eps).clamp_min(0), (x + eps).clamp_max(1)))).sum(1)

    expected = int((least_margins(model, x, y, reach) > 0).sum())
    report = evaluate(model, [(x, y)], eps, **bounds)
    assert report.counts["margin-T"] == expected == report.counts["worst"]
    assert 50 < expected < report.counts["natural"] - 50
    if classes == 2:  # then cross-entropy and the margin are one direction
        assert report.counts["FGSM"] == report.counts["PGD-10"] == expected


@pytest.mark.parametrize("classes", [2, 5])
def test_l2_on_a_linear_model_comes_close_from_above(classes: int) -> None:
    model, x, y = linear(classes)
    eps = 0.15
    expected = int((least_margins(model, x, y, lambda d: eps * d.norm(dim=1)) > 0).sum())
    report = evaluate(model, [(x, y)], eps, norm="L2", margin_steps=20, clip_min=None, clip_max=None)
    assert 0 <= report.counts["margin-T"] - expected <= 2
    assert report.norm == "L2"


def test_a_tie_goes_to_the_lowest_class() -> None:
    """All logits equal: class 0 is right, the others are wrong, before and after any attack."""
    model = nn.Linear(3, 4)
    with torch.no_grad():
        model.weight.zero_(), model.bias.zero_()
    report = evaluate(model, [(torch.rand(8, 3), torch.arange(8) % 4)], 0.1)
    assert report.counts == {"natural": 2, "FGSM": 2, "PGD-10": 2, "margin-T": 2, "worst": 2}


# ---------------------------------------------------------------------------------- models that fool an evaluation


def test_the_margin_attack_breaks_what_vanishing_gradients_hide() -> None:
    """Logits times 1e4: the softmax saturates, so cross-entropy has a gradient of exactly zero, and the margin not."""
    honest, x, y = linear(5)
    honest, x = honest.float(), x.float()

    class Loud(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            loud: Tensor = 1e4 * honest(x)
            return loud

    eps = 0.04
    bounds: dict[str, Any] = {"clip_min": None, "clip_max": None}
    report = evaluate(Loud(), [(x, y)], eps, **bounds)
    exact = least_margins(copy.deepcopy(honest).double(), x.double(), y, lambda d: eps * d.abs().sum(1))
    assert report.counts["FGSM"] > 0.9 * report.counts["natural"]
    assert report.counts["PGD-10"] > 0.9 * report.counts["natural"]
    assert abs(report.counts["margin-T"] - int((exact > 0).sum())) <= 1
    assert report.counts["worst"] < 0.8 * report.counts["PGD-10"]


def test_nan_logits_are_never_right() -> None:
    class Holes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.stack([x.sum(1), -x.sum(1)], dim=1)
            return torch.where(x[:, :1] > 0.5, torch.nan, 1.0) * logits

    x = torch.rand(40, 3)
    x[:10, 0], x[10:, 0] = 0.9, 0.1
    y = torch.zeros(40, dtype=torch.int64)
    report = evaluate(Holes(), [(x, y)], 0.01)
    assert report.counts == {"natural": 30, "FGSM": 30, "PGD-10": 30, "margin-T": 30, "worst": 30}
    into_the_hole = evaluate(Holes(), [(x, y)], 0.45)
    assert into_the_hole.counts["natural"] == 30 > into_the_hole.counts["worst"]  # reached under attack, it counts
    x[:, 0] = 0.9
    assert set(evaluate(Holes(), [(x, y)], 0.01).counts.values()) == {0}


def test_gradients_that_are_not_finite_are_counted() -> None:
    class Kink(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            here = (x - x.detach()).abs().sum(1, keepdim=True).sqrt()  # zero, with an infinite slope
            return torch.cat([x.sum(1, keepdim=True) + here, -x.sum(1, keepdim=True)], dim=1)

    report = evaluate(Kink(), [(torch.rand(20, 3), torch.zeros(20, dtype=torch.int64))], 0.01)
    assert report.nonfinite_gradient_rows == {"FGSM": 20, "PGD-10": 20, "margin-T": 20}
    honest, x, y = linear(3)
    assert set(evaluate(honest, [(x, y)], 0.01).nonfinite_gradient_rows.values()) == {0}


def test_a_model_found_in_train_mode_is_evaluated_in_eval_mode_and_put_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    x, y = torch.rand(60, 8), torch.randint(0, 3, (60,))
    model(torch.rand(500, 8))  # some running statistics
    model[3].eval()
    flags = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    model[0].weight.grad = torch.ones_like(model[0].weight)
    in_train_mode = evaluate(model, [(x, y)], 0.1)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight)) and model[4].weight.grad is None
    assert evaluate(model.eval(), [(x, y)], 0.1).counts == in_train_mode.counts
    assert in_train_mode.natural_accuracy == float((model(x).argmax(1) == y).double().mean())


# --------------------------------------------------------------------------------------------------- the report


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_no_attack_helps_and_worst_is_the_worst(cnn: Any, norm: str) -> None:
    eps = {"Linf": 0.04, "L2": 0.6}[norm]
    report = evaluate(cnn.model, [(cnn.x[:80], cnn.y[:80])], eps, norm=norm, steps=5, margin_steps=4)
    *attacks, worst = robust(report)
    assert 0 < worst <= min(attacks) and max(attacks) <= report.natural_accuracy


def test_eps_0_leaves_the_natural_accuracy(mlp: Any) -> None:
    report = evaluate(mlp.model, [(mlp.x[:ROWS], mlp.y[:ROWS])], 0.0)
    assert 0.5 < report.natural_accuracy < 1
    assert robust(report) == [report.natural_accuracy] * 4


@pytest.mark.parametrize("size", [1, 7, 64, ROWS])
def test_how_batches_are_cut_changes_nothing(mlp: Any, size: int) -> None:
    rows = 60 if size == 1 else ROWS
    x, y = mlp.x[:rows], mlp.y[:rows]
    whole = evaluate(mlp.model, [(x, y)], 0.06, margin_steps=4)
    cut = evaluate(mlp.model, list(zip(x.split(size), y.split(size), strict=True)), 0.06, margin_steps=4)
    assert cut == whole


def test_one_seed_one_report_and_the_global_random_state_is_left_alone(mlp: Any) -> None:
    loader = [(mlp.x[:ROWS], mlp.y[:ROWS])]
    state = torch.get_rng_state()
    first = evaluate(mlp.model, loader, 0.06, seed=3)
    torch.manual_seed(99)
    assert evaluate(mlp.model, loader, 0.06, seed=3) == first
    torch.set_rng_state(state)
    evaluate(mlp.model, loader, 0.06)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.seeds == {"noise": 3}


def test_report_json_holds_what_the_readme_promises(mlp: Any, tmp_path: Path) -> None:
    report = fastsal.evaluate(mlp.model, [(mlp.x[:50], mlp.y[:50])], 0.06, progress=False)  # the default: PGD-40
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert list(saved["robust_accuracy"]) == ["FGSM", "PGD-40", "margin-T", "worst"]
    assert saved["natural_accuracy"] == report.natural_accuracy == report.counts["natural"] / 50
    assert saved["robust_accuracy"] == report.robust_accuracy
    assert (saved["eps"], saved["norm"], saved["samples"], saved["seeds"]) == (0.06, "Linf", 50, {"noise": 0})
    assert {"fastsal", "torch", "python"} <= saved["versions"].keys()
    assert saved["versions"]["torch"] == torch.__version__
    assert "not AutoAttack" in saved["note"]
    assert saved["attacks"]["PGD-40"] == {"loss": "ce", "steps": 40, "alpha": 2.5 * 0.06 / 40, "random_start": True}
    for name, share in {"natural": saved["natural_accuracy"], **saved["robust_accuracy"]}.items():
        assert share == saved["counts"][name] / 50
        assert saved["intervals"][name] == list(wilson(saved["counts"][name], 50))


def test_the_table_shows_every_attack_with_its_interval_and_says_what_worst_is(mlp: Any) -> None:
    report = evaluate(mlp.model, [(mlp.x[:50], mlp.y[:50])], 0.06)
    table = report.table()
    for name in ("natural", "FGSM", "PGD-10", "margin-T", "worst"):
        (line,) = (line for line in table.splitlines() if line.split()[0] == name)
        low, high = report.intervals[name]
        for part in (f"{report.counts[name] / 50:.2%}", f"{low:.2%}", f"{high:.2%}", f"{report.counts[name]} of 50"):
            assert part in line
    assert "Linf, eps = 0.06, 50 images" in table and "not AutoAttack" in table


@pytest.mark.parametrize(
    ("hits", "samples", "low", "high"),
    [  # Wilson (1927); the last four are the score method's column in Newcombe (1998), table I
        (0, 10, 0.0, 0.2775),
        (8, 10, 0.4902, 0.9433),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_the_published_ones(hits: int, samples: int, low: float, high: float) -> None:
    assert wilson(hits, samples) == pytest.approx((low, high), abs=5.1e-5)


def test_wilson_is_symmetric_inside_the_unit_interval_and_knows_nothing_of_nothing() -> None:
    for hits in range(31):
        low, high = wilson(hits, 30)
        mirrored = wilson(30 - hits, 30)
        assert 0 <= low <= hits / 30 <= high <= 1
        assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)


# ------------------------------------------------------------------------------------------------ what it takes


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.rows = (x, y)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(*self.rows, strict=True)


def test_any_iterable_of_batches_is_a_loader(mlp: Any) -> None:
    x, y = mlp.x[:90], mlp.y[:90]
    expected = evaluate(mlp.model, [(x, y)], 0.06, margin_steps=3)
    for loader in (
        iter([(x[:50], y[:50]), (x[50:], y[50:])]),
        DataLoader(TensorDataset(x, y), batch_size=32),
        DataLoader(Stream(x, y), batch_size=32),
    ):
        for progress in (False, True):
            if not progress or isinstance(loader, DataLoader):
                assert evaluate(mlp.model, loader, 0.06, margin_steps=3, progress=progress) == expected


def test_a_plain_callable_and_an_object_with_logits_are_models(mlp: Any) -> None:
    loader = [(mlp.x[:90], mlp.y[:90])]
    expected = evaluate(mlp.model, loader, 0.06)
    assert evaluate(lambda x: mlp.model(x), loader, 0.06) == expected
    assert evaluate(lambda x: SimpleNamespace(logits=mlp.model(x)), loader, 0.06) == expected


def test_the_progress_goes_to_stderr_or_nowhere(mlp: Any, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(mlp.model, [(mlp.x[:20], mlp.y[:20])], 0.06)
    assert capsys.readouterr() == ("", "")
    evaluate(mlp.model, [(mlp.x[:20], mlp.y[:20])], 0.06, progress=True)
    shown = capsys.readouterr()
    assert shown.out == "" and "evaluate" in shown.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loader": []}, "loader: expected at least one row, got none"),
        ({"eps": -0.1}, "expected finite and >= 0"),
        ({"eps": math.nan}, "expected finite and >= 0"),
        ({"steps": 0}, "steps: expected an integer >= 1, got 0"),
        ({"steps": True}, "steps: expected"),
        ({"margin_steps": 0}, "margin_steps: expected"),
        ({"margin_classes": 1.5}, "margin_classes: expected"),
        ({"norm": "L7"}, "norm: expected"),
        ({"loader": [(torch.rand(4, 40).double() + 1, torch.arange(4))]}, "x: expected values in"),
        ({"loader": [(torch.rand(4, 40).double(), torch.full((4,), 5))]}, "expected"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_argument_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    model, x, y = linear(5)
    arguments = {"loader": [(x, y)], "eps": 0.02, **options}
    with pytest.raises(ValueError, match=message):
        evaluate(model, arguments.pop("loader"), arguments.pop("eps"), **arguments)


def test_the_quick_looks_agree_with_the_report(mlp: Any) -> None:
    x, y = mlp.x[:ROWS], mlp.y[:ROWS]
    loader = list(zip(x.split(64), y.split(64), strict=True))
    report = evaluate(mlp.model, loader, 0.06)
    assert accuracy(mlp.model, loader) == report.natural_accuracy
    assert robust_accuracy(mlp.model, loader, 0.06) == report.robust_accuracy["PGD-10"]
    first = evaluate(mlp.model, [(x[:100], y[:100])], 0.06)
    assert robust_accuracy(mlp.model, loader, 0.06, rows=100) == first.robust_accuracy["PGD-10"]
    for look in (accuracy, lambda model, loader: robust_accuracy(model, loader, 0.06)):
        with pytest.raises(ValueError, match="loader: expected at least one row, got none"):
            look(mlp.model, [])


# ------------------------------------------------------------------------------ refused before anything is counted


def test_a_model_whose_gradient_is_nan_is_said_to_be_out_of_sight() -> None:
    honest, x, y = linear(5)
    x, y = x[:16], honest(x[:16]).argmax(1)

    class Blinding(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            nothing = torch.sqrt(torch.clamp(z.sum(1) * 0, min=0))  # zero, with a slope of 0 times infinity
            logits: Tensor = honest(z) + nothing[:, None]
            return logits

    report = evaluate(Blinding(), [(x[:10], y[:10]), (x[10:], y[10:])], 0.02)
    assert report.nonfinite_gradient_rows == {"FGSM": 16, "PGD-10": 16, "margin-T": 16}
    for name in report.nonfinite_gradient_rows:
        assert f"{name}: 16 of 16 rows met a gradient that was not finite: the attack is blind there" in report.table()
    assert "not finite" not in evaluate(honest, [(x, y)], 0.02).table()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"eps": math.nan}, ValueError, r"eps: expected finite and >= 0, got nan"),
        ({"eps": -0.3}, ValueError, r"eps: expected finite and >= 0, got -0\.3"),
        ({"eps": torch.tensor([0.1, 0.2])}, TypeError, r"eps: expected a float, got shape \(2,\)"),
        ({"seed": None}, ValueError, r"seed: expected an integer in \[0, 2\*\*62\), got None"),
        ({"seed": 2**63 - 1}, ValueError, r"seed: expected an integer"),
        ({"seed": -1}, ValueError, r"seed: expected an integer"),
        ({"clip_min": 1.0, "clip_max": 0.0}, ValueError, r"clip_max: expected"),
        ({"scale": 255}, ValueError, r"x: expected values in \[0, 1\]"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_it_is_refused_also_where_no_row_is_right(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    model, x, _ = linear(5)
    arguments = {"eps": 0.02, **options}
    x = x * arguments.pop("scale", 1)
    wrong = (model(x).argmax(1) + 1) % 5
    with pytest.raises(kind, match=message):
        evaluate(model, [(x, wrong)], arguments.pop("eps"), **arguments)


@pytest.mark.parametrize("look", [accuracy, lambda *to: robust_accuracy(*to, 0.02), lambda *to: evaluate(*to, 0.02)])
def test_a_batch_that_is_no_pair_and_a_label_that_is_no_class_are_named(look: Callable[..., Any]) -> None:
    model, x, y = linear(5)
    for batch, kind in (({"x": x, "y": y}, "dict"), ((x, y, y), "tuple of Tensor, Tensor, Tensor"), (x, "Tensor")):
        with pytest.raises(TypeError, match=rf"loader: expected batches \(x, y\) of two tensors, got {kind}"):
            look(model, [batch])
    for label in (-1, 5):
        with pytest.raises(ValueError, match=r"y: expected labels in \[0, 5\), the classes of the model, got "):
            look(model, [(x, torch.full_like(y, label))])
