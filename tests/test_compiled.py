"""Attacks through torch.compile: the same result, few compilations, and a word where it does not work.

By the backend "aot_eager", which traces forward and backward and leaves out the minutes of code generation.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.utils import counters

import fastsal
from fastsal import compiled

pytestmark = pytest.mark.usefixtures("one_thread")
BACKEND = "aot_eager"


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3),
        nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4),
    ).double()  # fmt: skip


@pytest.fixture
def case() -> tuple[nn.Module, Tensor, Tensor]:
    """A model in train mode, with labels that it mostly gets right, more or less surely."""
    torch._dynamo.reset()
    model = net()
    x = torch.rand(60, 1, 14, 14, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    y = (x.mean((1, 2, 3)).argsort().argsort() * 4) // 60
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_result_is_that_of_the_plain_path(case, norm) -> None:
    model, x, y = case
    how: dict[str, Any] = {"eps": {"Linf": 0.06, "L2": 0.9}[norm], "steps": 6, "c": 0.7, "norm": norm, "seed": 1}
    expected, plain = fastsal.perturb(model, x, y, fast=False, return_info=True, **how)
    found, info = fastsal.perturb(model, x, y, compile=BACKEND, return_info=True, **how)
    assert info.levers["compile"] == f"on: {BACKEND}" and info.levers["live_rows"].startswith("buckets")
    assert torch.equal(info.stop_step, plain.stop_step) and len(set(info.live)) > 2
    assert ((found - expected).abs() > 1e-9).double().mean() <= 1e-4


def test_later_calls_compile_nothing_although_the_weights_change(case) -> None:
    model, x, y = case
    attack = fastsal.PGD(model, 0.05, steps=3, norm="L2", compile=BACKEND)
    attack(x, y, seed=0)
    attack(x, y, seed=0)
    before = graphs()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    found = attack(x, y, seed=2)
    assert graphs() == before > 0
    expected = fastsal.PGD(model, 0.05, steps=3, norm="L2", fast=False)(x, y, seed=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert model.training and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("compile", [False, BACKEND])
def test_the_marks_of_a_compilation_keep_nothing_from_being_folded(case, compile) -> None:
    model, x, y = case
    fastsal.PGD(model, 0.05, steps=2, norm="L2", compile=BACKEND, fast=fastsal.Levers(fold_batch_norm=False))(x, y)
    assert any(vars(parameter) for parameter in model.parameters())  # else there are no marks, and nothing was tested
    how: dict[str, Any] = {"steps": 3, "norm": "L2"}
    found, info = fastsal.PGD(model, 0.05, compile=compile, **how)(x, y, seed=2, return_info=True)
    assert info.levers["fold_batch_norm"] == "on: 2 folded"
    torch.testing.assert_close(found, fastsal.PGD(model, 0.05, fast=False, **how)(x, y, seed=2), rtol=0, atol=1e-9)


def test_sizes_are_few_and_one_too_many_ends_it(case, monkeypatch) -> None:
    model, x, y = case
    monkeypatch.setattr(compiled, "MOST", 3)
    attack = fastsal.PGD(model, 0.05, steps=2, compile=BACKEND)
    with pytest.warns(fastsal.FallbackWarning, match="Sequential runs without torch.compile from here on: 3 kinds"):
        for samples in (10, 11, 12, 13):
            attack(x[:samples], y[:samples])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, info = attack(x[:14], y[:14], return_info=True)
    assert info.levers["compile"] == "off: 3 kinds of batches are compiled already"


def test_what_cannot_be_compiled_runs_as_it_is_and_is_said_once(case) -> None:
    model, x, y = case

    def fails(graph: Any, inputs: Any) -> Any:
        raise NotImplementedError("no such processor")

    torch._dynamo.register_backend(fails, name="fails")
    attack = fastsal.PGD(model, 0.05, steps=3, norm="L2", compile="fails")
    with pytest.warns(fastsal.FallbackWarning, match="Sequential runs without torch.compile from here on: BackendComp"):
        found, info = attack(x, y, seed=2, return_info=True)
    assert info.levers["compile"].startswith("off: BackendCompilerFailed")
    expected = fastsal.PGD(model, 0.05, steps=3, norm="L2", fast=False)(x, y, seed=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack(x, y, seed=2)


def test_an_error_of_the_model_stays_its_own(case) -> None:
    class Fails(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        fastsal.PGD(Fails(3, 3), compile=BACKEND)(torch.rand(2, 3), torch.tensor([0, 1]))


def test_a_model_that_is_compiled_already_is_left_as_it_is(case) -> None:
    model, x, y = case
    whole = torch.compile(model, backend=BACKEND)
    found, info = fastsal.PGD(whole, 0.05, steps=2, norm="L2", compile=BACKEND)(x, y, seed=1, return_info=True)
    assert {info.levers[name][:27] for name in ("compile", "channels_last", "fold_batch_norm")} == {
        "off: the model is compiled "
    }
    expected = fastsal.PGD(model, 0.05, steps=2, norm="L2", fast=False)(x, y, seed=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"compile": 3}, TypeError, "compile: expected True, False or the name of a backend of torch.compile, got 3"),
        ({"compile": True, "fast": False}, ValueError, "compile: expected False with fast=False"),
    ],
)
def test_bad_choices_are_named(options, error, message) -> None:
    with pytest.raises(error, match=message):
        fastsal.PGD(nn.Linear(2, 2), **options)
