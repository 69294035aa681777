"""The public functions: gradients, the kink, reductions, compilation, and nothing that leaks into a graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operands import scores
from torch import Tensor

from fastsal import functional
from fastsal.checks import GRADIENTS

pytestmark = pytest.mark.usefixtures("one_thread")
Loss = Callable[..., Tensor]


def others(target: Tensor, like: Tensor) -> Tensor:
    """Logits for the distribution on the other side of a divergence: by the labels alone, exact in every dtype."""
    return (torch.sin(target.unsqueeze(1) * torch.arange(1.0, like.shape[1] + 1)) * 8).round().to(like.dtype) / 4


LABELLED: dict[str, Loss] = {
    "truncated cross-entropy": lambda z, y, **k: functional.truncated_cross_entropy(z, y, 0.3, **k),
    "cross-entropy": lambda z, y, **k: functional.truncated_cross_entropy(z, y, None, **k),
    "margin": functional.margin_loss,
    "targeted margin": lambda z, y, **k: functional.margin_loss(z, y, (y + 2) % z.shape[1], **k),
    "DLR": functional.dlr_loss,
    "targeted DLR": lambda z, y, **k: functional.dlr_loss(z, y, (y + 2) % z.shape[1], **k),
}
LOSSES: dict[str, Loss] = {
    **LABELLED,
    "KL of adv": lambda z, y, **k: functional.kl_divergence(others(y, z), z, **k),
    "KL of clean": lambda z, y, **k: functional.kl_divergence(z, others(y, z), **k),
    "KL of both": lambda z, y, **k: functional.kl_divergence(z, z.flip(1) / 2, **k),
}
each_labelled_loss = pytest.mark.parametrize("loss", LABELLED.values(), ids=LABELLED.keys())
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def problem(dtype: torch.dtype = torch.float64, rows: int = 8, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits of moderate size, some rows on either side of the cut at c = 0.3."""
    torch.manual_seed(6)
    logits = torch.randn(rows, classes, dtype=torch.float64) * 2
    target = torch.randint(classes, (rows,))
    ce = F.cross_entropy(logits, target, reduction="none")
    assert (ce > 1.3).any() and (ce < 1.1).any()
    return logits.to(dtype).requires_grad_(), target


# -------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@each_loss
def test_gradcheck_away_from_the_kink(loss: Loss, reduction: str) -> None:
    logits, target = problem()
    assert (F.cross_entropy(logits, target, reduction="none") + math.log(0.3)).abs().min() > 1e-2
    assert torch.autograd.gradcheck(lambda z: loss(z, target, reduction=reduction), logits)


@pytest.mark.parametrize("c", [0.1, 0.3, 0.5, 0.9])
def test_the_truncated_loss_is_the_smaller_of_two_numbers(c: float) -> None:
    logits, target = problem(rows=200)
    ce = F.cross_entropy(logits, target, reduction="none")
    inside = ce <= -math.log(c)
    assert inside.any() and not inside.all()
    loss = functional.truncated_cross_entropy(logits, target, c, reduction="none")
    torch.testing.assert_close(loss, torch.where(inside, ce, -math.log(c)))
    (grad,) = torch.autograd.grad(functional.truncated_cross_entropy(logits, target, c), logits)
    (slope,) = torch.autograd.grad(ce.sum(), logits)
    # the mean is over all rows, the truncated ones too
    torch.testing.assert_close(grad, torch.where(inside.unsqueeze(1), slope, 0.0) / len(logits))
    assert not grad[~inside].any()


def test_at_the_kink_itself_the_row_is_inside() -> None:
    logits, target = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True), torch.tensor([0])
    cross_entropy = torch.ops.fastsal.truncated_cross_entropy(logits, target, None, math.inf)[0].item()
    for cut, slope in ((cross_entropy, -0.5), (math.nextafter(cross_entropy, 0), 0.0)):
        loss, _ = functional._TruncatedCrossEntropy.apply(logits, target, cut)
        assert loss.item() == cut
        assert torch.autograd.grad(loss.sum(), logits)[0][0, 0].item() == slope


@pytest.mark.parametrize("c", [None, 0, 0.0])
def test_without_a_threshold_it_is_plain_cross_entropy(c: float | None) -> None:
    logits, target = problem()
    loss = functional.truncated_cross_entropy(logits, target, c)
    expected = F.cross_entropy(logits, target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each, logits)[0] for each in (loss, expected)))


def test_a_threshold_of_one_truncates_everything() -> None:
    logits, target = problem()
    loss = functional.truncated_cross_entropy(logits, target, 1.0)
    assert loss == 0 and not torch.autograd.grad(loss, logits)[0].any()


@pytest.mark.parametrize("c", [-0.1, 1.1, math.nan, math.inf])
def test_a_threshold_that_is_no_probability_is_refused(c: float) -> None:
    with pytest.raises(ValueError, match=r"c: expected None or a probability in \[0, 1\], got"):
        functional.truncated_cross_entropy(*problem(), c)


@each_loss
def test_a_row_of_nan_has_a_loss_of_nan_and_spoils_no_other_row(loss: Loss) -> None:
    logits, target = problem()
    spoilt = logits.detach().clone()
    spoilt[3] = math.nan
    spoilt.requires_grad_()
    value, clean = loss(spoilt, target, reduction="none"), loss(logits, target, reduction="none")
    others = torch.arange(8) != 3
    assert value[3].isnan() and torch.equal(value[others], clean[others])
    (grad,) = torch.autograd.grad(value.sum(), spoilt)
    torch.testing.assert_close(grad[others], torch.autograd.grad(clean.sum(), logits)[0][others])


@each_loss
def test_differentiable_once_and_says_so(loss: Loss) -> None:
    logits, target = problem()
    for reduce in (torch.square, torch.clone):  # a gradient from above that requires grad, and one that does not
        (grad,) = torch.autograd.grad(reduce(loss(logits, target)), logits, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated twice, expected once"):
            (loss(logits, target) + grad.square().sum()).backward()


@each_loss
def test_an_upstream_gradient_per_row_is_honoured(loss: Loss) -> None:
    logits, target = problem()
    weights = torch.linspace(-1, 2, len(logits), dtype=torch.float64)
    (weighted,) = torch.autograd.grad((loss(logits, target, reduction="none") * weights).sum(), logits)
    (plain,) = torch.autograd.grad(loss(logits, target, reduction="sum"), logits)
    torch.testing.assert_close(weighted, plain * weights.unsqueeze(1))


@pytest.mark.parametrize("dtype", GRADIENTS, ids=lambda d: str(d)[6:])
@each_loss
def test_dtypes(loss: Loss, dtype: torch.dtype) -> None:
    """The loss comes in fp32 at least, the gradient in the dtype of the logits."""
    logits, target = problem(dtype)
    value = loss(logits, target)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    value.backward()
    assert logits.grad is not None and logits.grad.dtype == dtype
    exact = logits.detach().double().requires_grad_()
    torch.testing.assert_close(value.double(), loss(exact, target), rtol=1e-6, atol=1e-6)
    (slope,) = torch.autograd.grad(loss(exact, target), exact)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(logits.grad.double(), slope, rtol=2 * eps, atol=2 * eps * slope.abs().max().item())


@each_loss
def test_reductions(loss: Loss) -> None:
    logits, target = problem()
    rows = loss(logits, target, reduction="none")
    assert rows.shape == (8,)
    torch.testing.assert_close(loss(logits, target, reduction="mean"), rows.mean())
    torch.testing.assert_close(loss(logits, target), rows.mean())
    torch.testing.assert_close(loss(logits, target, reduction="sum"), rows.sum())
    with pytest.raises(ValueError, match="reduction: expected 'mean', 'sum' or 'none', got 'max'"):
        loss(logits, target, reduction="max")


@each_labelled_loss
def test_errors_of_the_operator_come_through(loss: Loss) -> None:
    logits, target = problem()
    with pytest.raises(ValueError, match=r"target: expected values in \[0, 5\), got 5 at position 1"):
        loss(logits, target.index_fill(0, torch.tensor(1), 5))
    with pytest.raises(TypeError, match=r"target: expected torch.int64, got torch.int32"):
        loss(logits, target.int())


def test_a_clean_side_that_needs_no_gradient_gets_none_and_costs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either side of the divergence alone, and both: the operator is asked for the clean gradient only if needed."""
    asked: list[bool] = []
    operator = functional._kl

    def watched(*args: object) -> object:
        asked.append(bool(args[3]))
        return operator(*args)

    monkeypatch.setattr(functional, "_kl", watched)
    logits, target = problem()
    fixed = others(target, logits)
    assert torch.autograd.gradcheck(lambda z: functional.kl_divergence(fixed, z), logits)
    assert not any(asked)
    asked.clear()
    assert torch.autograd.gradcheck(lambda z: functional.kl_divergence(z, fixed), logits)
    assert torch.autograd.gradcheck(functional.kl_divergence, (logits, fixed.requires_grad_()))
    assert all(asked)
    functional.kl_divergence(logits.detach(), fixed).backward()
    assert logits.grad is None and fixed.grad is not None


# ------------------------------------------------------------------------------------------ compilation


@each_loss
def test_compiles_without_a_graph_break(loss: Loss) -> None:
    """fullgraph, forward and backward, also for a second batch size (dynamic shapes)."""
    torch._dynamo.reset()

    def objective(z: Tensor, y: Tensor) -> Tensor:
        return loss(z * 2, y) + loss(z, y, reduction="none").sum()

    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    for rows in (8, 13, 21):
        logits, target = scores(rows, 5, torch.float32, ties=False).requires_grad_(), torch.randint(5, (rows,))
        got, expected = compiled(logits, target), objective(logits, target)
        assert torch.equal(got, expected)
        assert torch.equal(*(torch.autograd.grad(each, logits)[0] for each in (got, expected)))


def test_the_step_and_retire_compile_as_operators() -> None:
    torch._dynamo.reset()
    x, one = torch.rand(4, 6), torch.full((1,), 0.1)

    def attack_step(x_adv: Tensor, grad: Tensor, result: Tensor, stop: Tensor) -> tuple[Tensor, ...]:
        following, flags = torch.ops.fastsal.pgd_step(x, x_adv, grad, one, one, None, None, None, None, math.inf)
        kept = torch.ops.fastsal.retire(x_adv, following, None, flags, None, None, result, stop, 2, False)
        return following, *kept, result.clone()

    compiled = torch.compile(attack_step, fullgraph=True, backend="aot_eager")
    grad = torch.randn(4, 6)
    grad[2, 3] = math.nan
    outcomes = []
    for run in (attack_step, compiled):
        result, stop = torch.zeros(4, 6), torch.full((4,), -1)
        outcomes.append([*run(x + 0.01, grad, result, stop), result, stop])
    assert all(map(torch.equal, *outcomes))
    assert outcomes[0][-1].tolist() == [-1, -1, 1, -1]


# ------------------------------------------------------------------------------- what has no gradient


@pytest.mark.parametrize("norm", ["Linf", "L2", "l2", math.inf, 2])
def test_starts_and_steps_leave_no_graph_behind(norm: object) -> None:
    x = torch.rand(3, 2, 4, 4, requires_grad=True)
    eps = torch.full((3,), 0.1, requires_grad=True)
    start = functional.random_start(x, eps, 5, norm=norm)
    following = functional.pgd_step(x, start, torch.randn_like(x), eps, 0.01, norm=norm)
    result, stop = torch.zeros(3, 2, 4, 4), torch.full((3,), -1)
    kept = functional.retire(start, following, result, stop, 1, last=True)
    assert not any(out.requires_grad for out in (start, following, result, *kept))
    assert torch.equal(result, following) and stop.tolist() == [1, 1, 1] and kept[2].item() == 0
    assert x.grad is None and eps.grad is None
    loss = functional.margin_loss(torch.randn(3, 4), torch.tensor([0, 1, 2]))
    assert not loss.requires_grad


def test_the_start_depends_on_seed_and_sample_alone_and_the_global_generator_stays() -> None:
    x = torch.rand(4, 2, 3, 3)
    before = torch.get_rng_state()
    whole = functional.random_start(x, 0.1, seed=9)
    assert torch.equal(before, torch.get_rng_state())
    part = functional.random_start(x[2:], 0.1, seed=torch.tensor(9), sample_ids=torch.tensor([2, 3]))
    assert torch.equal(part, whole[2:])
    assert not torch.equal(functional.random_start(x, 0.1, seed=10), whole)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"eps": -0.1}, ValueError, "eps: expected finite and >= 0, got -0.1"),
        ({"eps": math.nan}, ValueError, "eps: expected finite and >= 0, got nan"),
        ({"alpha": math.inf}, ValueError, "alpha: expected finite and >= 0, got inf"),
        ({"eps": torch.ones(2)}, ValueError, r"eps: expected a float or shape \(3,\), one per sample, got \(2,\)"),
        ({"norm": "L3"}, ValueError, "norm: expected 'Linf', 'L2', 'L1', inf, 2 or 1, got 'L3'"),
        ({"norm": True}, ValueError, "norm: expected"),
        ({"norm": "L1", "l1_sparsity": 0.0}, ValueError, r"l1_sparsity: expected a share in \(0, 1\], got 0.0"),
        ({"clip_min": torch.zeros(5)}, ValueError, r"clip_min: expected a float or shape \(2,\), one per channel"),
        ({"clip_max": math.nan}, ValueError, "clip_max: expected numbers above -inf, got nan"),
        ({"clip_min": math.inf}, ValueError, "clip_min: expected numbers below inf, got inf"),
        ({"clip_max": -1.0}, ValueError, r"clip_max: expected at least clip_min \(0.0\), got -1.0"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], kind: type[Exception], message: str) -> None:
    x = torch.rand(3, 2, 4)
    with pytest.raises(kind, match=message):
        functional.pgd_step(x, x, x, **{"eps": 0.1, "alpha": 0.01, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (torch.tensor(0.5), ValueError, r"x: expected a batch dimension, shape \(N, ...\), got \(\)"),
        (
            torch.zeros(2, 3, dtype=torch.int64),
            TypeError,
            "x: expected a dense tensor of torch.float32 or torch.float64",
        ),
        (torch.eye(3).to_sparse(), TypeError, "x: expected a dense tensor"),
        ([0.5], TypeError, "x: expected a tensor, got list"),
    ],
)
def test_an_x_that_is_no_batch_is_named(x: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        functional.random_start(x, 0.1, 1)
    with pytest.raises(kind, match=message):
        functional.pgd_step(x, x, x, 0.1, 0.1)


@pytest.mark.parametrize(
    ("seed", "kind"), [(1.5, ValueError), (torch.tensor(1.5), ValueError), (True, ValueError), (2**63, ValueError)]
)
def test_a_seed_is_one_int64(seed: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="seed: expected"):
        functional.random_start(torch.rand(2, 3), 0.1, seed)
    with pytest.raises(TypeError, match="seed: expected an integer or a tensor of one int64, got None"):
        functional.random_start(torch.rand(2, 3), 0.1, None)  # type: ignore[arg-type]


def test_operands_that_are_missing_or_do_not_match_are_named() -> None:
    x = torch.rand(3, 2)
    with pytest.raises(TypeError, match="result: expected a tensor, got NoneType"):
        functional.retire(x, x, None, None, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"clean: expected shape \(2, 2\), that of adv, got \(3, 2\)"):
        functional.kl_divergence(x, x[:2])


@pytest.mark.parametrize("c", [None, 0.5])
def test_the_gradient_of_a_row_with_nan_is_nan(c: float | None) -> None:
    logits = torch.randn(3, 4)
    logits[1, 2] = math.nan
    (grad,) = torch.autograd.grad(
        functional.truncated_cross_entropy(logits.requires_grad_(), torch.tensor([0, 1, 2]), c, "sum"), logits
    )
    assert grad[1].isnan().all() and grad[[0, 2]].isfinite().all()


def test_steps_and_starts_compile_with_a_radius_that_is_a_constant() -> None:
    x, grad = torch.rand(3, 2, 4), torch.randn(3, 2, 4)

    def both(x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        return functional.pgd_step(x, functional.random_start(x, 0.1, 3), grad, 0.1, 0.01)

    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="eager")
    assert torch.equal(compiled(x, grad), both(x, grad))
