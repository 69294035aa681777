"""DLR and KL of the reference: written again in float64 autograd, worked out by hand, and their invariances."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from operands import INF, scores
from torch import Tensor

from fastsal import reference
from fastsal.checks import GRADIENTS

pytestmark = pytest.mark.usefixtures("one_thread")
each_dtype = pytest.mark.parametrize("dtype", GRADIENTS, ids=lambda d: str(d)[6:])


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def spread_out(rows: int, classes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Logits without ties, in any order, at several scales, exact in every dtype."""
    ranks = torch.stack([torch.randperm(classes) for _ in range(rows)]) - classes // 2
    return (ranks * 2.0 ** torch.randint(-3, 2, (rows, 1))).to(dtype)


def dlr(z: Tensor, y: Tensor, other: Tensor | None) -> Tensor:
    """Croce & Hein 2020, equations 6 and 7, up to sign conventions, one row at a time by sorting."""
    losses = []
    for row, label, to in zip(z, y.tolist(), [None] * len(z) if other is None else other.tolist(), strict=True):
        ranked = row.sort(descending=True).values
        if to is None:
            rivals = torch.cat((row[:label], row[label + 1 :]))
            losses.append((rivals.max() - row[label]) / (ranked[0] - ranked[2] + 1e-12))
        else:
            losses.append((row[to] - row[label]) / (ranked[0] - (ranked[2] + ranked[3]) / 2 + 1e-12))
    return torch.stack(losses)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("classes", [3, 4, 5, 10, 100])
def test_dlr_and_its_gradient_against_autograd(classes: int, targeted: bool) -> None:
    if targeted and classes == 3:
        pytest.skip("targeted DLR needs a fourth logit")
    logits, target = spread_out(40, classes).requires_grad_(), torch.arange(40) % classes
    other = (target + torch.randint(1, classes, (40,))) % classes if targeted else None
    loss, grad = reference.margin_loss(logits, target, other, None, True)
    expected = dlr(logits, target, other)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), logits)[0], rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda z: reference.margin_loss(z, target, other, None, True)[0], logits)


def test_dlr_by_hand() -> None:
    z = torch.stack((f64(1, 5, 3, 2), f64(1, 5, 3, 2), f64(4, 4, 4, 0)))
    loss, grad = reference.margin_loss(z, torch.tensor([2, 1, 3]), None, None, True)
    # z_1 - z_3 = 3; rows: label behind by 2, label ahead by 2; three tie, so all that is left to divide by is 1e-12
    torch.testing.assert_close(loss[:2], f64(2 / 3, -2 / 3))
    assert loss[2].item() == pytest.approx(4e12)
    # d/dz of (z_1 - z_2) / (z_1 - z_3): numerator + (1, -1) on classes 1 and 2, denominator on classes 1 and 3
    torch.testing.assert_close(grad[0], f64(0, 1 / 9, -1 / 3, 2 / 9), rtol=1e-9, atol=1e-12)
    # label first: (z_2 - z_1) / (z_1 - z_3) = -2/3; d/dz_1 = (-1 + 2/3) / 3, d/dz_2 = 1/3, d/dz_3 = -2/9
    torch.testing.assert_close(grad[1], f64(0, -1 / 9, 1 / 3, -2 / 9), rtol=1e-9, atol=1e-12)
    against = torch.tensor([0, 3, 0])
    loss, grad = reference.margin_loss(z[:2], torch.tensor([2, 1]), against[:2], None, True)
    # z_1 - (z_3 + z_4) / 2 = 5 - 1.5
    torch.testing.assert_close(loss, f64(-2 / 3.5, -3 / 3.5))
    slope = f64(1, 0, -1, 0) + 2 / 3.5 * f64(-0.5, 1, 0, -0.5)
    torch.testing.assert_close(grad[0], slope / 3.5, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("targeted", [False, True])
def test_neither_shift_nor_scale_changes_dlr(targeted: bool) -> None:
    logits, target = spread_out(20, 8), torch.arange(20) % 8
    other = (target + 3) % 8 if targeted else None
    loss, grad = reference.margin_loss(logits, target, other, None, True)
    scaled, slope = reference.margin_loss(logits * 4 - 7, target, other, None, True)
    torch.testing.assert_close(scaled, loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(slope * 4, grad, rtol=1e-9, atol=1e-11)
    # so the gradient is orthogonal to both
    torch.testing.assert_close(grad.sum(1), torch.zeros(20, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close((grad * logits).sum(1), torch.zeros(20, dtype=torch.float64), rtol=0, atol=1e-9)


def test_on_ties_the_lowest_classes_take_the_places() -> None:
    """Of four equal logits behind the largest, class 0 is second, class 2 third and class 3 fourth."""
    z, target = torch.tensor([[1.0, 2.0, 1.0, 1.0, 1.0]], dtype=torch.float64), torch.tensor([1])
    (loss,), (grad,) = reference.margin_loss(z, target, None, None, True)
    assert loss.item() == pytest.approx(-1)
    torch.testing.assert_close(grad, f64(1, 0, -1, 0, 0), rtol=0, atol=1e-9)
    (loss,), (grad,) = reference.margin_loss(z, target, torch.tensor([4]), None, True)
    assert loss.item() == pytest.approx(-1)
    torch.testing.assert_close(grad, f64(0, 0, -0.5, -0.5, 1), rtol=0, atol=1e-9)


@each_dtype
@pytest.mark.parametrize("targeted", [False, True])
def test_dlr_in_every_dtype(dtype: torch.dtype, targeted: bool) -> None:
    logits, target = spread_out(30, 9, dtype), torch.arange(30) % 9
    other = (target + 2) % 9 if targeted else None
    loss, grad = reference.margin_loss(logits, target, other, None, True)
    exact, slope = reference.margin_loss(logits.double(), target, other, None, True)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and grad.dtype == dtype
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(grad.double(), slope, rtol=eps, atol=1e-6 if dtype != torch.float64 else 1e-14)


# -------------------------------------------------------------------------------------------------- KL


@pytest.mark.parametrize("classes", [2, 3, 17, 1000])
def test_kl_is_that_of_torch_and_so_are_its_gradients(classes: int) -> None:
    clean, adv = (torch.randn(9, classes, dtype=torch.float64).mul(3).requires_grad_() for _ in range(2))
    loss, of_adv, of_clean = reference.kl_divergence(clean, adv, None, True)
    log_p, log_q = (F.log_softmax(z, dim=1) for z in (clean, adv))
    expected = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(loss, F.kl_div(log_q, log_p.exp(), reduction="none").sum(1), rtol=1e-12, atol=1e-14)
    slopes = torch.autograd.grad(expected.sum(), (adv, clean))
    torch.testing.assert_close(of_adv, slopes[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(of_clean, slopes[1], rtol=1e-11, atol=1e-13)
    alone = reference.kl_divergence(clean, adv, None, False)
    assert torch.equal(alone[0], loss) and torch.equal(alone[1], of_adv) and alone[2].shape == (0, classes)
    if classes < 100:
        for side in (0, 1):  # with the other side held fixed
            pair = [clean.detach(), adv.detach()]

            def of_side(z: Tensor, side: int = side, pair: list[Tensor] = pair) -> Tensor:
                return reference.kl_divergence(*pair[:side], z, *pair[side + 1 :], None, True)[0]

            assert torch.autograd.gradcheck(of_side, (clean, adv)[side])


def test_kl_by_hand() -> None:
    log2, log3 = math.log(2), math.log(3)
    clean = torch.stack((f64(0, 0), f64(log3, 0), f64(5, 7), f64(0, -INF), f64(0, 0), f64(0, -INF)))
    adv = torch.stack((f64(log3, 0), f64(0, 0), f64(5, 7), f64(log3, 0), f64(0, -INF), f64(0, -INF)))
    loss, of_adv, of_clean = reference.kl_divergence(clean, adv, None, True)
    # (1/2, 1/2) from (3/4, 1/4), and back; the same; (1, 0) from (3/4, 1/4); mass where adv has none; (1, 0) twice
    back = 0.75 * log3 - log2
    torch.testing.assert_close(loss, f64(log2 - 0.5 * log3, back, 0, math.log(4 / 3), INF, 0))
    torch.testing.assert_close(of_adv[0], f64(0.25, -0.25))
    torch.testing.assert_close(of_clean[1], f64(0.75 * (log3 - log2 - back), 0.25 * (-log2 - back)))
    assert not of_adv[2].any() and not of_clean[2].any()
    torch.testing.assert_close(of_adv[3], f64(-0.25, 0.25))
    assert of_clean[3].tolist() == [0, 0] and of_adv[5].tolist() == [0, 0] and of_clean[5].tolist() == [0, 0]


def test_kl_is_nonnegative_its_gradients_sum_to_zero_and_shifts_change_nothing() -> None:
    clean, adv = (scores(60, 12, torch.float64) for _ in range(2))
    loss, of_adv, of_clean = reference.kl_divergence(clean, adv, None, True)
    assert (loss >= -1e-13).all()
    for grad in (of_adv, of_clean):
        assert (grad.sum(1).abs() <= 1e-12 * (1 + loss)).all()
    shifted = reference.kl_divergence(clean + 3, adv - 5, None, True)[0]
    torch.testing.assert_close(shifted, loss, rtol=1e-11, atol=1e-11)


@each_dtype
def test_kl_in_every_dtype_and_by_id(dtype: torch.dtype) -> None:
    torch.manual_seed(8)
    clean, adv = torch.randn(6, 11).mul(3).to(dtype), torch.randn(4, 11).mul(3).to(dtype)
    ids = torch.tensor([5, -1, 0, 5])
    loss, of_adv, of_clean = reference.kl_divergence(clean, adv, ids, True)
    assert loss[1] == 0 and not of_adv[1].any() and not of_clean[1].any()
    exact = reference.kl_divergence(clean.double()[ids.clamp(min=0)], adv.double(), None, True)
    real, eps = ids >= 0, torch.finfo(dtype).eps
    near = 1e-14 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(loss[real].double(), exact[0][real], rtol=near, atol=near)
    torch.testing.assert_close(of_adv[real].double(), exact[1][real], rtol=eps, atol=near)
    torch.testing.assert_close(of_clean[real].double(), exact[2][real], rtol=eps, atol=5 * near)
