"""The C++ bodies against the reference, on poisoned memory; where that cannot hold them, against mathematics.

How close they must be is stated in agreement.py. The calls are those of every other backend (kernel_cases.py).
"""

from __future__ import annotations

import math
import mmap

import pytest
import torch
from kernel_cases import answer, cases, disagreement, run_reference
from operands import BODIES, INF, around, bits, clean, gradients, run, same_bits, scores
from torch import Tensor

from fastsal.backends import body_of
from fastsal.checks import FLOATS, GRADIENTS, NORMS
from fastsal.operators import OPERATORS

if "cpp" not in BODIES:
    pytest.skip("the C++ extension is not built", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = [2, 3, 10, 15, 16, 17, 33, 1000, 4096, 4097, 6145, 100_000]

each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
each_gradient = pytest.mark.parametrize("grad_dtype", GRADIENTS, ids=lambda d: str(d)[6:])


@pytest.mark.parametrize("name", OPERATORS)
def test_every_case_agrees_with_the_reference(name: str) -> None:
    body = body_of(name, "cpp")
    problems = [disagreement(case, answer(case, body), run_reference(case)) for case in cases(name, "full")]
    assert [problem for problem in problems if problem is not None] == []
    assert len(problems) > 100


# ----------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("eps", [0.0, 5e-324, 1e-45, 1e-40, 2.0**-24, 8 / 255, 1 / 3, 1.0, 3.0, 1e30])
@each_dtype
@each_gradient
def test_a_box_from_zero_gives_the_points_of_any_box(dtype: torch.dtype, grad_dtype: torch.dtype, eps: float) -> None:
    """That box has a loop of its own; a bound per channel takes the general one, and so does a -0."""
    x = clean(40, (2, 50), dtype).abs()
    x_adv = around(x, torch.full((1,), min(eps, 1.0), dtype=dtype), finite=False)
    grad = gradients(40, (2, 50), grad_dtype, finite=False)
    grad[:20] = grad[:20].nan_to_num(0, 0, 0)  # so that not every row is flagged
    radius, alpha = torch.full((1,), eps, dtype=dtype), torch.full((1,), 0.01, dtype=dtype)
    low, high = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
    answers = [
        run("cpp", "pgd_step", x, x_adv, grad, radius, alpha, low, high, None, None, INF),
        run("cpp", "pgd_step", x, x_adv, grad, radius, alpha, low.repeat(2), high.repeat(2), None, None, INF),
        run("reference", "pgd_step", x, x_adv, grad, radius, alpha, low, high, None, None, INF),
    ]
    assert 0 < int(answers[0][1].sum()) < 40
    for other in answers[1:]:
        assert same_bits(answers[0][0], other[0])
        assert torch.equal(answers[0][1], other[1])


@pytest.mark.parametrize("bad", [-1.0, -1e-45, 1.0000001, 2.0, INF, -INF, math.nan])
@pytest.mark.parametrize("at", [0, 7, 99])
def test_an_x_outside_a_box_from_zero_is_refused(bad: float, at: int) -> None:
    x = torch.rand(3, 100)
    x[1, at] = bad
    zero, one, eps = torch.zeros(1), torch.ones(1), torch.full((1,), 0.1)
    with pytest.raises(ValueError, match="x: expected"):
        run("cpp", "pgd_step", x, torch.rand(3, 100), torch.randn(3, 100), eps, eps, zero, one, None, None, INF)
    x[1, at] = -0.0  # is zero
    run("cpp", "pgd_step", x, torch.rand(3, 100), torch.randn(3, 100), eps, eps, zero, one, None, None, INF)


@pytest.mark.parametrize("size", [1e300, 1e-300, 5e-324, 1.7e308, 2e-308, 1e154, 1e-162, 1e-154, 1e-40, 1e38])
@pytest.mark.parametrize("body", BODIES)
@each_dtype
def test_l2_direction_of_huge_and_tiny_gradients(dtype: torch.dtype, body: str, size: float) -> None:
    """One direction at every magnitude that fp64 has."""
    direction = torch.tensor([[3.0, -4.0, 0.0, 12.0]], dtype=torch.float64)
    grad = direction * size if size < 1e-308 else direction / 13 * size
    x, step = torch.full((1, 4), 0.5, dtype=dtype), torch.full((1,), 0.125, dtype=dtype)
    got, flags = run(body, "pgd_step", x, x, grad, step, step, None, None, None, None, 2.0)
    assert not flags.any()
    torch.testing.assert_close(got - x, (0.125 * direction / 13).to(dtype), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("eps", [1e-280, 1e-200, 1e-160, 1e-100, 1e100, 1e160, 1e200])
@pytest.mark.parametrize("body", BODIES)
def test_l2_projection_at_every_radius(body: str, eps: float) -> None:
    """x + 3 * eps * (3, 4) / 5 projects to x + eps * (3, 4) / 5, and no further."""
    unit = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    x, one = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([eps], dtype=torch.float64)
    got, _ = run(body, "pgd_step", x, x, unit, one, 3 * one, None, None, None, None, 2.0)
    torch.testing.assert_close(got / eps, unit, rtol=1e-13, atol=0)
    assert (got / eps).square().sum() <= 1


def l1_projection(x: Tensor, delta: Tensor, radius: float, high: float) -> Tensor:
    """The closest point to x + delta at an L1 distance of at most radius, every element in [0, high], by bisection."""
    room = torch.where(delta > 0, high - x, x)
    least, most = 0.0, float(delta.abs().max())
    for _ in range(2000):
        shrink = (least + most) / 2
        kept = torch.minimum((delta.abs() - shrink).clamp(min=0), room)
        least, most = (shrink, most) if math.fsum(kept.tolist()) > radius else (least, shrink)
    return x + delta.sign() * kept


@pytest.mark.parametrize("eps", [1e-280, 1e-150, 1e-30, 0.3, 1e30, 1e150, 1e280])
@pytest.mark.parametrize("size", [4, 100])
def test_l1_projection_at_every_radius(size: int, eps: float) -> None:
    """In fp64, from steps that lead out of the ball ten times as far as it goes, some of them stopped by the box."""
    x = torch.rand(1, size, dtype=torch.float64) * eps
    here = (x + torch.randn(1, size, dtype=torch.float64) * 10 * eps / size).clamp(0, 1.1 * eps)
    one, low = torch.tensor([eps], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    zero = torch.zeros(1, size)
    got, _ = run("cpp", "pgd_step", x, here, zero, one, one, low, 1.1 * one, None, None, 1.0, 1)
    expected = l1_projection(x[0], here[0] - x[0], eps, 1.1 * eps)
    torch.testing.assert_close(got[0] / eps, expected / eps, rtol=0, atol=1e-8)
    assert math.fsum((got - x).abs()[0].tolist()) <= eps


@pytest.mark.parametrize("far", [1e3, 1e10, 1e100, 1.7e308, INF])
@each_dtype
def test_an_l1_ball_holds_however_far_the_step_leads(dtype: torch.dtype, far: float) -> None:
    """Where a displacement leaves no digits for the radius, the point may be any of the ball."""
    x = torch.rand(3, 50, dtype=dtype)
    largest = torch.finfo(dtype).max / 2
    here = x + (torch.randn(3, 50, dtype=torch.float64) * far).clamp(-largest, largest).to(dtype)
    grad = torch.randn(3, 50)
    eps = torch.full((1,), 0.5, dtype=dtype)
    got, _ = run("cpp", "pgd_step", x, here, grad, eps, eps, None, None, None, None, 1.0, 5)
    assert got.isfinite().all()
    for moved in (got.double() - x.double()).abs().tolist():
        assert math.fsum(moved) <= 0.5


@each_gradient
@pytest.mark.parametrize("topk", [1, 2, 7, 999, 1000])
def test_an_l1_step_moves_the_largest_gradients_lowest_index_first(topk: int, grad_dtype: torch.dtype) -> None:
    """Thirteen magnitudes in a thousand elements: ties everywhere, and a third of the elements zero."""
    grad = (torch.randint(-6, 7, (4, 1000)) * (torch.rand(4, 1000) < 0.7)).to(grad_dtype)
    x, eps = torch.zeros(4, 1000), torch.full((1,), 100.0)
    got, _ = run("cpp", "pgd_step", x, x, grad, eps, torch.ones(1), None, None, None, None, 1.0, topk)
    for moved, slope in zip(got, grad.float(), strict=True):
        largest = sorted(range(1000), key=lambda i, slope=slope: (-abs(slope[i].item()), i))[:topk]
        chosen = [i for i in largest if slope[i] != 0]
        assert sorted(moved.nonzero().flatten().tolist()) == sorted(chosen)
        torch.testing.assert_close(moved[chosen], slope[chosen].sign() / len(chosen), rtol=1e-6, atol=0)


# ---------------------------------------------------------------------------------------------- losses


@each_gradient
@pytest.mark.parametrize("classes", CLASSES)
def test_cross_entropy_against_float64(classes: int, grad_dtype: torch.dtype) -> None:
    logits, target = scores(12, classes, grad_dtype), torch.randint(classes, (12,))
    loss, grad, right, _ = run("cpp", "truncated_cross_entropy", logits, target, None, 0.5)
    exact = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, target, reduction="none")
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    accuracy = 1e-13 if grad_dtype == torch.float64 else 4e-7 + 2e-8 * math.sqrt(classes)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=accuracy, atol=accuracy)
    rounded = slope.to(grad_dtype).double()
    torch.testing.assert_close(grad.double(), rounded, rtol=torch.finfo(grad_dtype).eps, atol=accuracy)
    largest = logits == logits.amax(1, keepdim=True)
    lowest = torch.where(largest, torch.arange(classes), classes).amin(1)
    assert torch.equal(right, lowest == target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("at", [0, 2047, 2048, 9000])
def test_cross_entropy_of_a_long_row_with_special_logits(at: int, dtype: torch.dtype) -> None:
    """Rows longer than a block of softmax, that grow from block to block or fall, with one logit that is not finite."""
    fall = torch.linspace(0, -200, 9001, dtype=dtype)
    logits = torch.stack([fall, fall.flip(0), fall, fall, fall.flip(0), torch.full_like(fall, -INF)])
    logits[2, at], logits[3, at], logits[4, at] = INF, math.nan, -INF
    logits[5, at] = 1.0  # all of the probability
    target = torch.tensor([0, 9000, at, at, 1, at])
    loss, grad, right, over = run("cpp", "truncated_cross_entropy", logits, target, None, 0.5)
    exact = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, target, reduction="none")
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=2e-6, atol=2e-6, equal_nan=True)
    torch.testing.assert_close(grad.double(), slope, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert right.tolist() == [True, True, True, False, False, True]
    assert torch.equal(over, ~(loss <= 0.5))


@each_gradient
@pytest.mark.parametrize("classes", [3, 10, 17, 1000, 100_000])
def test_dlr_against_float64(classes: int, grad_dtype: torch.dtype) -> None:
    logits, target = scores(12, classes, grad_dtype, ties=False), torch.randint(classes, (12,))
    logits = (logits.double() + torch.rand(12, classes, dtype=torch.float64)).to(grad_dtype)
    exact = logits.double().requires_grad_()
    top = exact.sort(dim=1, descending=True).values
    hot = torch.nn.functional.one_hot(target, classes).bool()
    margin, spread = exact.masked_fill(hot, -INF).amax(1) - exact[hot], top[:, 0] - top[:, 2] + 1e-12
    expected = margin / spread
    distinct = (top[:, :4].diff(dim=1) < 0).all(1)  # else the gradient depends on which of two equals counts
    assert distinct.sum() > 2
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    loss, grad = run("cpp", "margin_loss", logits, target, None, None, True)
    room = 4e-15 if grad_dtype == torch.float64 else 2e-6
    of_row = (room * (2 + expected.abs()) / spread).detach()[distinct].unsqueeze(1)
    torch.testing.assert_close(loss.double()[distinct], expected.detach()[distinct], rtol=room, atol=0)
    rounding = torch.finfo(grad_dtype).eps * slope.abs()[distinct] + torch.finfo(grad_dtype).tiny
    assert ((grad.double() - slope).abs()[distinct] <= of_row + rounding).all()


@each_gradient
@pytest.mark.parametrize("classes", CLASSES)
def test_kl_divergence_against_float64(classes: int, grad_dtype: torch.dtype) -> None:
    clean_logits, adv = scores(12, classes, grad_dtype), scores(12, classes, grad_dtype)
    exact = [logits.double().requires_grad_() for logits in (adv, clean_logits)]
    log_q, log_p = (logits.log_softmax(1) for logits in exact)
    expected = (log_p.exp() * (log_p - log_q)).sum(1)
    slopes = torch.autograd.grad(expected.sum(), exact)
    room = 1e-12 if grad_dtype == torch.float64 else (1e-6 + 4e-8 * math.sqrt(classes))
    of_row = room * (1 + math.log(classes) + expected.detach().abs())
    for both in (True, False):
        loss, *grads = run("cpp", "kl_divergence", clean_logits, adv, None, both)
        assert ((loss.double() - expected.detach()).abs() <= of_row).all()
        for grad, slope in zip(grads if both else grads[:1], slopes, strict=False):
            rounding = torch.finfo(grad_dtype).eps * slope.abs() + torch.finfo(grad_dtype).tiny
            assert ((grad.double() - slope).abs() <= of_row.unsqueeze(1) + rounding).all()
        assert len(grads[1]) == (12 if both else 0)


# ------------------------------------------------------------------------------------ threads, offsets


@pytest.mark.parametrize("p", NORMS)
def test_the_number_of_threads_changes_no_bit(p: float) -> None:
    x, one, seed = clean(50, (3, 60, 61), torch.float32), torch.full((1,), 0.1), torch.tensor(3)
    x_adv, grad = around(x, one, finite=True), gradients(50, (3, 60, 61), torch.float32, finite=True)
    outcomes = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        step = run("cpp", "pgd_step", x, x_adv, grad, one, one, None, None, None, None, p, 200)
        outcomes.append([*map(bits, run("cpp", "random_start", x, one, seed, None, None, None, None, p) + step[:1])])
    for other in outcomes[1:]:
        assert all(map(torch.equal, outcomes[0], other))


def test_an_element_beyond_two_to_the_31st() -> None:
    """Row 2,048 of a million elements each, in address space that is reserved and, but for that row, never touched."""
    size, slots = 2**20, 2**11 + 1
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        reserved = [mmap.mmap(-1, slots * size * width, flags=flags) for width in (4, 4, 2)]
    except OSError as error:
        pytest.skip(f"no room for 20 GB of address space: {error}")
    x, x_adv, grad = (
        torch.frombuffer(memory, dtype=dtype).view(slots, size)
        for memory, dtype in zip(reserved, (torch.float32, torch.float32, torch.bfloat16), strict=True)
    )
    x[-1], x_adv[-1], grad[-1] = clean(1, (size,), torch.float32)[0], 0.5, gradients(1, (size,), torch.bfloat16)[0]
    last, one = torch.tensor([slots - 1]), torch.full((1,), 0.1)
    for p in NORMS:
        got, flag = run("cpp", "pgd_step", x, x_adv, grad, one, one, None, None, last, last, p)
        near, near_flag = run("cpp", "pgd_step", x[-1:], x_adv[-1:], grad[-1:], one, one, None, None, None, None, p)
        assert same_bits(got, near) and torch.equal(flag, near_flag)
    start = run("cpp", "random_start", x, one, torch.tensor(5), None, None, None, last, INF)[0]
    assert same_bits(start, run("cpp", "random_start", x[-1:], one, torch.tensor(5), last, None, None, None, INF)[0])
    stop = torch.zeros(slots, dtype=torch.int64)
    run("cpp", "retire", x[-1:], got, None, None, None, last, x_adv, stop, 3, True)
    assert same_bits(x_adv[-1:], got) and stop[-1] == 3
