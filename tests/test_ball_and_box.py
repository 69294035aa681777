"""The eps-ball and the box hold exactly: in float64, on the stored values, against eps as the Python double.

Ten million elements per norm and precision, at magnitudes chosen to make rounding go wrong: around zero,
denormal, beside powers of two, and rows of one value repeated, where the errors of an L2 norm all have one sign.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

import oracle
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastsal

EPS = [8 / 255, 0.1, 1e-6, 1.1e-38, 3e-39, 1.0, 3.0, 0.3, 0.5, 2.0**-20, 1e-4]
ELEMENTS = 10_000_000
ROW = 1000
DTYPES = [torch.float32, torch.float64]
BOXES = [(0.0, 1.0), (None, None)]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_norm = pytest.mark.parametrize("norm", ["Linf", "L2"])


# ------------------------------------------------------------------ inputs that make rounding go wrong


def awkward(n: int, dtype: torch.dtype, box: tuple[float | None, float | None], g: torch.Generator) -> Tensor:
    """n numbers inside the box: special ones, their neighbours, and random ones at all magnitudes."""
    tiny, smallest = torch.finfo(dtype).tiny, torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    powers = [2.0**-k for k in (0, 1, 2, 3, 5, 8, 10, 23, 24, 25, 52, 53, 100, 126)]
    special = [0.0, tiny, smallest, 3 * smallest, tiny / 2, *powers, 0.1, 1 / 3, 2 / 3, *(k / 255 for k in range(256))]
    if box == (None, None):
        special += [2.0**k for k in (1, 10, 19)] + [1e6, 12345.678, 255.0]
    v = torch.tensor(special, dtype=torch.float64).to(dtype)
    up, down = torch.full_like(v, math.inf), torch.full_like(v, -math.inf)
    v = torch.cat([v, v.nextafter(up), v.nextafter(down)])
    if box == (None, None):
        v = torch.cat([v, -v])
    picked = v[torch.randint(len(v), (n // 2,), generator=g)]
    scale = torch.randint(-40, 1, (n - n // 2,), generator=g).to(dtype).exp2()
    spread = torch.rand(n - n // 2, generator=g, dtype=dtype) * torch.where(
        torch.rand(len(scale), generator=g) < 0.5, scale, 1.0
    )
    if box == (None, None):
        spread = (2 * spread - 1) * 10.0 ** torch.randint(-3, 7, spread.shape, generator=g).to(dtype)
    x = torch.cat([picked, spread])[torch.randperm(n, generator=g)]
    low, high = box
    return x.clamp(low, high) if low is not None else x


def cases(
    dtype: torch.dtype, norm: str, elements: int = ELEMENTS
) -> Iterator[tuple[Tensor, Tensor, Tensor, float, tuple]]:
    """(x, x_adv, gradient, eps, box), together `elements` elements. A third of the rows are constant."""
    g = torch.Generator().manual_seed(17)
    combinations = list(itertools.product(EPS, BOXES))
    rows = -(-elements // (ROW * len(combinations)))
    for eps, box in combinations:
        x = awkward(rows * ROW, dtype, box, g).reshape(rows, ROW)
        x[::3] = x[::3, :1].clone()
        # The iterate: random points of the ball, points pushed far beyond it, corners, x itself.
        reach = torch.tensor([0.0, 0.5, 1.0, 1.0, 10.0], dtype=dtype)[torch.arange(rows) % 5][:, None]
        noise = 2 * torch.rand(rows, ROW, generator=g, dtype=dtype) - 1
        noise[1::2] = noise[1::2].sign()
        noise[::6] = noise[::6, :1].sign().clone()  # constant rows with constant noise
        radius = eps if norm == "Linf" else eps / ROW**0.5
        x_adv = x + reach * noise * radius
        if box != (None, None):
            x_adv = x_adv.clamp(*box)
        gradient = torch.randn(rows, ROW, generator=g, dtype=dtype)
        gradient[2::4] = gradient[2::4, :1].clone()
        gradient *= 10.0 ** torch.randint(-30, 20, (rows, 1), generator=g).to(dtype)
        gradient[torch.rand(rows, ROW, generator=g) < 0.02] = 0.0
        yield x, x_adv, gradient, eps, box


def leaves(x: Tensor, z: Tensor, eps: float) -> bool:
    """||z - x|| > eps in exact arithmetic, for one row where the sum of squares was too close to call."""
    pairs = Counter(zip(x.tolist(), z.tolist(), strict=True))
    square = sum(n * (Fraction(b) - Fraction(a)) ** 2 for (a, b), n in pairs.items())
    return square > Fraction(eps) ** 2


def excess(x: Tensor, z: Tensor, eps: float | Tensor, norm: str, box: tuple) -> str:
    """What is wrong, or nothing. Everything in float64.

    A sum of n float64 squares is itself wrong by up to n ulps, most of all in constant rows. A row in float64 that
    seems to leave the ball by less than that is judged in exact arithmetic; in float32 there is no such excuse.
    """
    double = x.dtype == torch.float64
    x, z = x.double().flatten(1), z.double().flatten(1)
    if not z.isfinite().all():
        return "not finite"
    delta = z - x
    if norm == "Linf":
        size = delta.abs().amax(1)
    else:  # scaled, so that squares neither underflow nor overflow; by a power of two, so that nothing rounds
        peak = delta.abs().amax(1, keepdim=True)
        scale = torch.where(peak > 0, peak, 1.0).log2().ceil().clamp(-1000, 1000).exp2()
        size = (delta / scale).norm(dim=1) * scale[:, 0]
    over = size > eps
    if double and norm == "L2":
        limit = torch.as_tensor(eps, dtype=torch.float64).expand(len(x))
        for i in (over & (size <= limit * (1 + x.shape[1] * 2.0**-52))).nonzero().flatten().tolist():
            over[i] = leaves(x[i], z[i], float(limit[i]))
    low, high = box
    if over.any():
        row = int(torch.where(over, size / eps, 0.0).argmax())
        return f"{int(over.sum())} of {len(x)} rows leave the ball, row {row}: {float(size[row])!r} > {eps!r}"
    if low is not None and bool((z < low).any()):
        return f"below the box: {float(z.min())!r} < {low!r}"
    if high is not None and bool((z > high).any()):
        return f"above the box: {float(z.max())!r} > {high!r}"
    return ""


# ------------------------------------------------------------------ ten million elements


@each_dtype
@each_norm
def test_a_step_stays_in_ball_and_box(dtype, norm) -> None:
    done = 0
    for x, x_adv, gradient, eps, box in cases(dtype, norm):
        for alpha in (eps / 4, 3 * eps):
            z = fastsal.functional.pgd_step(x, x_adv, gradient, eps, alpha, norm=norm, clip_min=box[0], clip_max=box[1])
            assert z.dtype == dtype and z.shape == x.shape
            wrong = excess(x, z, eps, norm, box)
            assert not wrong, f"eps {eps!r}, alpha {alpha!r}, box {box}: {wrong}"
        done += x.numel()
    assert done >= ELEMENTS


@each_dtype
@each_norm
def test_a_start_stays_in_ball_and_box(dtype, norm) -> None:
    done = 0
    for x, _, _, eps, box in cases(dtype, norm, ELEMENTS):
        z = fastsal.functional.random_start(x, eps, seed=done, norm=norm, clip_min=box[0], clip_max=box[1])
        assert z.dtype == dtype and z.shape == x.shape
        wrong = excess(x, z, eps, norm, box)
        assert not wrong, f"eps {eps!r}, box {box}: {wrong}"
        done += x.numel()
    assert done >= ELEMENTS


@each_dtype
@each_norm
def test_an_attack_stays_in_ball_and_box(dtype, norm) -> None:
    """Five steps of PGD and SENSE on a linear model, whose gradient always points the same way."""
    torch.manual_seed(1)
    pgd_model = nn.Linear(ROW, 3).to(dtype)
    with torch.no_grad():
        pgd_model.weight[0] = 1.0
        pgd_model.weight[1] = -1.0
    for x, _, _, eps, box in cases(dtype, norm, 1_000_000):
        y = torch.arange(len(x)) % 3
        low, high = box
        for alpha in (None, eps):
            z = fastsal.PGD(pgd_model, eps, alpha, 5, norm, clip_min=low, clip_max=high)(x, y)
            assert not excess(x, z, eps, norm, box), (eps, box, excess(x, z, eps, norm, box))
        z = fastsal.SENSE(pgd_model, eps, steps=5, c=1e-30, norm=norm, clip_min=low, clip_max=high)(x, y)
        assert not excess(x, z, eps, norm, box), (eps, box, excess(x, z, eps, norm, box))


@each_dtype
@each_norm
def test_one_radius_per_row_holds_for_each_row(dtype, norm) -> None:
    for x, x_adv, gradient, _, box in cases(dtype, norm, 1_000_000):
        eps = torch.tensor(EPS, dtype=torch.float64)[torch.arange(len(x)) % len(EPS)]
        for radius in (eps, eps.to(dtype)):
            z = fastsal.functional.pgd_step(
                x, x_adv, gradient, radius, 2 * radius, norm=norm, clip_min=box[0], clip_max=box[1]
            )
            assert not excess(x, z, radius.double(), norm, box)
            z = fastsal.functional.random_start(x, radius, seed=1, norm=norm, clip_min=box[0], clip_max=box[1])
            assert not excess(x, z, radius.double(), norm, box)


# ------------------------------------------------------------------ particular traps


@each_dtype
@each_norm
@pytest.mark.parametrize("row", [1, 2, 7, 784, 3072, 150_528])
def test_constant_rows_of_any_length(dtype, norm, row) -> None:
    """Every element rounds the same way, so nothing averages out."""
    values = awkward(8 if row > 10_000 else 200, dtype, (0.0, 1.0), torch.Generator().manual_seed(2))
    x = values[:, None].expand(-1, row).contiguous()
    for eps, sign in itertools.product([8 / 255, 0.1, 1.0, 3.0, 1e-6], [1.0, -1.0]):
        gradient = torch.full_like(x, sign)
        z = x
        for _ in range(3):
            z = fastsal.functional.pgd_step(x, z, gradient, eps, 0.7 * eps, norm=norm)
            wrong = excess(x, z, eps, norm, (0.0, 1.0))
            assert not wrong, f"eps {eps!r}: {wrong}"


@each_norm
def test_clip_values_that_float32_cannot_hold(norm) -> None:
    """float32(0.1) lies above 0.1, float32(-0.1) below -0.1: the bounds round inwards."""
    low, high = -0.1, 0.1
    x = torch.linspace(-0.0999, 0.0999, 300).reshape(3, 100)
    for sign in (1.0, -1.0):
        z = fastsal.functional.pgd_step(
            x, x, torch.full_like(x, sign), 0.5, 0.5, norm=norm, clip_min=low, clip_max=high
        )
        assert not excess(x, z, 0.5, norm, (low, high)), excess(x, z, 0.5, norm, (low, high))
    z = fastsal.functional.random_start(x, 0.5, seed=1, norm=norm, clip_min=low, clip_max=high)
    assert not excess(x, z, 0.5, norm, (low, high)), excess(x, z, 0.5, norm, (low, high))
    model = nn.Linear(100, 2)
    z = fastsal.PGD(model, 0.5, steps=3, norm=norm, clip_min=low, clip_max=high)(x, torch.tensor([0, 1, 1]))
    assert not excess(x, z, 0.5, norm, (low, high)), excess(x, z, 0.5, norm, (low, high))


@each_norm
def test_an_x_clamped_into_the_box_is_the_centre_of_the_ball(norm) -> None:
    x = torch.rand(20, 30)
    x[:, ::3], x[:, 1::3] = 1 + 9e-7, -9e-7
    z = fastsal.PGD(nn.Linear(30, 2), 8 / 255, steps=4, norm=norm)(x, torch.zeros(20, dtype=torch.int64))
    wrong = excess(x.clamp(0, 1), z, 8 / 255, norm, (0.0, 1.0))
    assert not wrong, wrong


@each_norm
def test_a_box_per_channel_holds_exactly(norm) -> None:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    low, high = -mean / std, (1 - mean) / std
    x = torch.rand(200, 3, 5, 5)
    x[::2] = x[::2].round()
    per = (3, 1, 1)
    x = torch.minimum(torch.maximum(low.view(per) + x * (high - low).view(per), low.view(per)), high.view(per))
    for sign, eps in itertools.product([1.0, -1.0], [8 / 255, 5.0]):
        z = fastsal.functional.pgd_step(
            x, x, torch.full_like(x, sign), eps, eps, norm=norm, clip_min=low, clip_max=high
        )
        assert (z >= low.view(per)).all() and (z <= high.view(per)).all()
        assert not excess(x, z, eps, norm, (None, None))


# ------------------------------------------------------------------ and not more careful than that


@each_dtype
def test_the_linf_step_is_the_clamp_up_to_one_unit_in_the_last_place(dtype) -> None:
    for x, x_adv, gradient, eps, box in cases(dtype, "Linf", 500_000):
        alpha = eps / 4
        z = fastsal.functional.pgd_step(
            x, x_adv, gradient, eps, alpha, norm="Linf", clip_min=box[0], clip_max=box[1]
        ).double()
        ideal = oracle.step(x.double(), x_adv.double(), gradient.double(), eps, alpha, "Linf", *box)
        size = torch.stack([x.double().abs(), x_adv.double().abs(), ideal.abs()]).amax(0).to(dtype)
        ulp = size.nextafter(torch.full_like(size, math.inf)).double() - size.double()
        rounding = ulp + eps * torch.finfo(dtype).eps
        worst = ((z - ideal).abs() / rounding).max()
        assert worst <= 2, f"eps {eps!r}, box {box}: {worst:.1f} units"


@each_dtype
def test_the_l2_step_is_the_projection_up_to_rounding(dtype) -> None:
    """The margin on the factor is 2^-20 (2^-48 in float64); each element rounds by itself."""
    margin = 2.0**-20 if dtype == torch.float32 else 2.0**-48
    for x, x_adv, gradient, eps, box in cases(dtype, "L2", 500_000):
        if eps < 1e-30:
            continue  # steps made of denormals have no relative precision to speak of
        alpha = eps / 4
        z = fastsal.functional.pgd_step(
            x, x_adv, gradient, eps, alpha, norm="L2", clip_min=box[0], clip_max=box[1]
        ).double()
        ideal = oracle.step(x.double(), x_adv.double(), gradient.double(), eps, alpha, "L2", *box)
        size = torch.stack([x.double().abs(), x_adv.double().abs(), ideal.abs()]).amax(0).to(dtype)
        ulp = size.nextafter(torch.full_like(size, math.inf)).double() - size.double()
        off_scale = ulp.norm(dim=1, keepdim=True) / eps  # rounding elsewhere in the row moves the factor
        allowed = 3 * ulp + 8 * margin * eps + 3 * off_scale * (ideal - x.double()).abs()
        worst = ((z - ideal).abs() / allowed).max()
        assert worst <= 1, f"eps {eps!r}, box {box}: {worst:.1f} times the rounding allowed"


@each_norm
@each_dtype
def test_corners_and_edges_of_the_ball_are_reached(norm, dtype) -> None:
    """Rounding inwards must not cost more than a few units: the attack has to spend its radius."""
    x = torch.full((50, 784), 0.5, dtype=dtype) + 0.1 * torch.rand(50, 784, dtype=dtype)
    for eps in (8 / 255, 0.1, 0.3):
        z = x
        for _ in range(5):
            z = fastsal.functional.pgd_step(x, z, torch.ones_like(x), eps, eps / 2, norm=norm)
        delta = (z.double() - x.double()).flatten(1)
        size = delta.norm(dim=1) if norm == "L2" else delta.abs().amin(1)
        slack = 60 * torch.finfo(dtype).eps / eps * (28 if norm == "L2" else 1)
        assert (size >= eps * (1 - slack)).all() and (size <= eps).all()


SCALES = [(torch.float32, s) for s in (2.0**-149, 1e-42, 1e-38, 1e-30, 1e-19, 1.0, 1e19, 1e30, 1e37)] + [
    (torch.float64, s) for s in (2.0**-1074, 1e-320, 1e-308, 1e-300, 1e-160, 1e-30, 1.0, 1e160, 1e300, 1e307)
]


@pytest.mark.parametrize(("dtype", "scale"), SCALES, ids=str)
def test_the_l2_direction_does_not_depend_on_the_scale_of_the_gradient(dtype, scale) -> None:
    """Squares of 1e-30 underflow in float32 and squares of 1e30 overflow; so does 1 / 1e-42."""
    x = torch.full((4, 30), 0.5, dtype=dtype)
    gradient = torch.tensor([scale, -2 * scale, 3 * scale] * 10, dtype=torch.float64).to(dtype).expand(4, -1)
    assert gradient.isfinite().all() and (gradient != 0).all()
    z = fastsal.functional.pgd_step(x, x, gradient, 0.3, 0.1, norm="L2")
    direction = gradient.double() / scale
    expected = x.double() + 0.1 * direction / direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(z.double(), expected, rtol=0, atol=2e-7 if dtype == torch.float32 else 1e-15)
    far = fastsal.functional.pgd_step(x, x, gradient, 0.3, 7.0, norm="L2")
    assert not excess(x, far, 0.3, "L2", (0.0, 1.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spread", [1e-200, 1e-30, 1e-8])
def test_a_gradient_of_very_different_elements_is_led_by_the_largest(dtype, spread) -> None:
    x = torch.full((2, 9), 0.5, dtype=dtype)
    gradient = torch.full((2, 9), spread, dtype=torch.float64).to(dtype)
    gradient[:, 4] = -1.0
    z = fastsal.functional.pgd_step(x, x, gradient, 0.3, 0.1, norm="L2")
    torch.testing.assert_close(z[:, 4], torch.full((2,), 0.4, dtype=dtype), rtol=0, atol=1e-6)
    assert ((z[:, :4] - 0.5).abs() <= 1e-8).all()


def test_signs_of_zero_do_not_move() -> None:
    x = torch.rand(3, 8, dtype=torch.float64)
    values = [0.0, -0.0, 1e-320, -1e-320, 1.0, -1.0, 1e-60, -1e-60]
    gradient = torch.tensor(values, dtype=torch.float64).expand(3, -1)
    z = fastsal.functional.pgd_step(x, x, gradient, 0.1, 0.01, norm="Linf", clip_min=None, clip_max=None)
    moved = (z - x).sign()
    assert moved[0].tolist() == [0, 0, 1, -1, 1, -1, 1, -1]


@each_norm
@each_dtype
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_leaves_its_element_or_row(norm, dtype, value) -> None:
    x = torch.rand(6, 40, dtype=dtype)
    x_adv = fastsal.functional.random_start(x, 0.1, seed=0, norm=norm)
    gradient = torch.randn(6, 40, dtype=dtype)
    healthy = fastsal.functional.pgd_step(x, x_adv, gradient, 0.1, 0.05, norm=norm)
    gradient[2, 5] = value
    z = fastsal.functional.pgd_step(x, x_adv, gradient, 0.1, 0.05, norm=norm)
    kept = torch.zeros(6, 40, dtype=torch.bool)
    kept[2, 5] = True
    if norm == "L2":
        kept[2] = True
    assert torch.equal(z[kept], x_adv[kept])
    assert torch.equal(z[~kept], healthy[~kept])


@each_norm
def test_inputs_are_left_alone_and_not_aliased(norm) -> None:
    x, gradient = torch.rand(4, 20), torch.randn(4, 20)
    x_adv = fastsal.functional.random_start(x, 0.1, seed=0, norm=norm)
    before = [t.clone() for t in (x, x_adv, gradient)]
    for eps, alpha in ((0.1, 0.05), (0.0, 0.0), (0.1, 0.0)):
        z = fastsal.functional.pgd_step(x, x_adv, gradient, eps, alpha, norm=norm)
        z.fill_(5)
        assert all(torch.equal(t, b) for t, b in zip((x, x_adv, gradient), before, strict=True))


finite32 = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    x=st.lists(finite32, min_size=1, max_size=8),
    eps=st.floats(0, 10),
    alpha=st.floats(0, 20),
    sign=st.sampled_from([-1.0, 0.0, 1.0]),
    dtype=st.sampled_from(DTYPES),
)
@example(x=[0.0], eps=5e-324, alpha=1.0, sign=1.0, dtype=torch.float32)
@example(x=[0.0], eps=5e-324, alpha=1.0, sign=1.0, dtype=torch.float64)
@example(x=[0.0], eps=2.2250738585e-313, alpha=20.0, sign=-1.0, dtype=torch.float64)
@example(x=[1.0], eps=1e-46, alpha=1e-46, sign=1.0, dtype=torch.float32)
@example(x=[-0.0, 2.0**-149], eps=2.0**-149, alpha=1.0, sign=-1.0, dtype=torch.float32)
@example(x=[16777216.0 / 16], eps=0.03125, alpha=0.03125, sign=1.0, dtype=torch.float32)
def test_any_numbers_stay_in_the_ball(x, eps, alpha, sign, dtype) -> None:
    row = torch.tensor([x], dtype=dtype)
    for norm in ("Linf", "L2"):
        z = fastsal.functional.pgd_step(
            row, row, torch.full_like(row, sign), eps, alpha, norm=norm, clip_min=None, clip_max=None
        )
        assert not excess(row, z, eps, norm, (None, None)), (norm, excess(row, z, eps, norm, (None, None)))
        z = fastsal.functional.random_start(row, eps, seed=1, norm=norm, clip_min=None, clip_max=None)
        assert not excess(row, z, eps, norm, (None, None)), (norm, excess(row, z, eps, norm, (None, None)))
