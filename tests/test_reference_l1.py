"""The L1 start and step of the reference: exact solvers, certificates of optimality, brute force, distributions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastsal import backends, reference
from fastsal.checks import FLOATS

pytestmark = pytest.mark.usefixtures("one_thread")
quick = settings(max_examples=80, deadline=None, derandomize=True)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def step(
    x: Tensor, here: Tensor, grad: Tensor, eps: float, alpha: float, topk: int, low: float | None, high: float | None
) -> Tensor:
    """One row, given and returned as a vector."""
    edges = [None if edge is None else x.new_tensor([edge]) for edge in (low, high)]
    radii = (x.new_tensor([eps]), x.new_tensor([alpha]))
    return reference.pgd_step(x[None], here[None], grad[None], *radii, *edges, None, None, 1.0, topk)[0][0]


def project(x: Tensor, here: Tensor, eps: float, low: float | None = None, high: float | None = None) -> Tensor:
    """A step without a gradient only projects."""
    return step(x, here, torch.zeros_like(here), eps, 0.5, len(x), low, high)


# ---------------------------------------------------------------------------------------- the direction


def test_a_step_is_shared_by_the_largest_gradients() -> None:
    x = torch.zeros(5, dtype=torch.float64)
    moved = step(x, x, f64(1, -8, 0, 4, -4), eps=9, alpha=1, topk=2, low=None, high=None)
    assert moved.tolist() == [0, -0.5, 0, 0.5, 0]  # 4 and -4 tie: the lower index goes first
    moved = step(x, x, f64(1, -8, 0, 4, -4), eps=9, alpha=0.75, topk=3, low=None, high=None)
    assert moved.tolist() == [0, -0.25, 0, 0.25, -0.25]
    moved = step(x, x, f64(0, -8, 0, 0, 0), eps=9, alpha=1, topk=5, low=None, high=None)
    assert moved.tolist() == [0, -1, 0, 0, 0]  # what is zero takes no share
    assert step(x, x, f64(0, 0, -0.0, 0, 0), 9, 1, 3, None, None).tolist() == [0] * 5
    assert step(x, x, f64(1, math.nan, 3, 4, 5), 9, 1, 5, None, None).tolist() == [0] * 5
    assert step(x, x, f64(1, 2, -math.inf, 4, 5), 9, 1, 5, None, None).tolist() == [0] * 5
    assert step(x, x, f64(1, -8, 0, 4, -4), 9, -1, 2, None, None).tolist() == [0, 0.5, 0, -0.5, 0]


@quick
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(1, 12))
def test_which_elements_move_by_sorting_pairs(values: list[int], topk: int) -> None:
    """The topk of the list sorted by falling magnitude and then by index, but for the zeros."""
    topk = min(topk, len(values))
    first = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:topk]
    moving = {i for i in first if values[i]}
    x = torch.zeros(len(values), dtype=torch.float64)
    moved = step(x, x, f64(*values), 9, 0.5, topk, None, None)
    expected = [math.copysign(0.5 / len(moving), values[i]) if i in moving else 0.0 for i in range(len(values))]
    assert moved.tolist() == pytest.approx(expected, rel=1e-14)


# --------------------------------------------------------------------------------------- the projection


def exact_projection(delta: list[Fraction], room: list[Fraction], radius: Fraction) -> list[Fraction]:
    """Magnitudes min(max(|d| - lambda, 0), room) with the least lambda >= 0 that keeps their sum inside, in fractions:
    between two neighbouring knots the sum is a straight line."""

    def kept(shrink: Fraction) -> list[Fraction]:
        return [min(max(abs(d) - shrink, Fraction(0)), r) for d, r in zip(delta, room, strict=True)]

    if sum(kept(Fraction(0))) <= radius:
        return kept(Fraction(0))
    knots = {Fraction(0)} | {abs(d) for d in delta} | {abs(d) - r for d, r in zip(delta, room, strict=True)}
    knots = sorted(knot for knot in knots if knot >= 0)
    for left, right in itertools.pairwise(knots):
        above, below = sum(kept(left)), sum(kept(right))
        if below <= radius < above:
            return kept(left + (right - left) * (above - radius) / (above - below))
    raise AssertionError("the sum at the largest knot is zero")


def rows_of_points() -> st.SearchStrategy[list[tuple[float, float]]]:
    inside, anywhere = st.floats(0, 1, width=32), st.floats(-3, 4, width=32)
    return st.lists(st.tuples(inside, anywhere), min_size=1, max_size=10)


@quick
@given(rows_of_points(), st.sampled_from([0.0, 1e-3, 0.25, 1.0, 3.0, 40.0]), st.booleans())
def test_the_projection_solves_its_equation(points: list[tuple[float, float]], eps: float, boxed: bool) -> None:
    low, high = (0.0, 1.0) if boxed else (None, None)
    for dtype in FLOATS:
        x, here = torch.tensor(points, dtype=dtype).T.contiguous().unbind()
        got = project(x, here, eps, low, high)
        exact = [(Fraction(b) - Fraction(a)) for a, b in zip(x.tolist(), here.tolist(), strict=True)]
        room = [
            (Fraction(1) - Fraction(a) if d > 0 else Fraction(a)) if boxed else Fraction(10**6)
            for a, d in zip(x.tolist(), exact, strict=True)
        ]
        inner = Fraction(reference.inner_radius(x.new_tensor([eps])).item())
        wanted = exact_projection(exact, room, inner)
        for a, d, kept, value in zip(x.tolist(), exact, wanted, got.tolist(), strict=True):
            moved = Fraction(value) - Fraction(a)
            assert moved == 0 or (moved > 0) == (d > 0)
            assert abs(moved) <= kept + Fraction(1, 10**14)  # never further than asked
            ulp = Fraction(torch.finfo(dtype).eps) * max(abs(Fraction(a)), abs(Fraction(value)))
            assert abs(moved) >= kept - ulp - Fraction(1, 10**14)


def best_value(slope: list[float], x: list[float], radius: float, low: float, high: float) -> float:
    """max slope . v over ||v||_1 <= radius and low <= x + v <= high: spend the radius where the slope is steepest."""
    left, value = radius, 0.0
    for steepness, a in sorted(zip(slope, x, strict=True), key=lambda pair: -abs(pair[0])):
        spent = min(left, high - a if steepness > 0 else a - low)
        value, left = value + abs(steepness) * spent, left - spent
    return value


@quick
@given(rows_of_points(), st.sampled_from([1e-3, 0.25, 1.0, 3.0]), st.integers(0, 2**31))
def test_no_point_of_ball_and_box_is_closer(points: list[tuple[float, float]], eps: float, seed: int) -> None:
    """The certificate of a projection p of d on a convex set: (d - p) . v is at most (d - p) . p for all v in it. The
    largest such v is found greedily, and random members of the set are tried one by one as well."""
    x, here = torch.tensor(points, dtype=torch.float64).T.contiguous().unbind()
    delta, p = here - x, project(x, here, eps, 0.0, 1.0) - x
    rest = delta - p
    slack = 1e-9 * (1 + float(delta.abs().sum())) ** 2
    assert best_value(rest.tolist(), x.tolist(), eps, 0.0, 1.0) <= float(rest @ p) + slack
    torch.manual_seed(seed)
    for _ in range(20):
        v = torch.randn_like(x) * torch.rand(())
        v = (x + v).clamp(0, 1) - x
        v = v * min(1.0, eps / max(float(v.abs().sum()), 1e-30))
        assert float((delta - p).norm()) <= float((delta - v).norm()) + slack


def test_the_projection_by_brute_force_on_a_grid() -> None:
    """Two elements, every point of a fine grid: none in ball and box is closer by more than the grid's mesh."""
    mesh = 1 / 200
    grid = torch.cartesian_prod(torch.arange(0, 1 + mesh / 2, mesh), torch.arange(0, 1 + mesh / 2, mesh)).double()
    torch.manual_seed(1)
    for _ in range(60):
        x, here = torch.rand(2, dtype=torch.float64), torch.rand(2, dtype=torch.float64) * 4 - 1.5
        eps = float(torch.rand(())) * 1.5
        members = grid[(grid - x).abs().sum(1) <= eps]
        if len(members):
            got = project(x, here, eps, 0.0, 1.0)
            assert (got - here).norm() <= (members - here).norm(dim=1).min() + 1e-9
            assert (members - got).norm(dim=1).min() <= 3 * mesh or eps < 3 * mesh


def test_projections_by_hand() -> None:
    near = {"rtol": 1e-12, "atol": 1e-14}
    zero = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(project(zero, f64(3, -1, 0), 2), f64(2, 0, 0), **near)  # lambda 1
    torch.testing.assert_close(project(zero, f64(2, -2, 0), 2), f64(1, -1, 0), **near)
    torch.testing.assert_close(project(zero, f64(0.25, -0.25, 0.25), 2), f64(0.25, -0.25, 0.25), **near)
    # the box takes part: element 0 stops at 0.5, and what it leaves goes to element 1
    torch.testing.assert_close(project(zero, f64(9, 3, 0), 2, -0.5, 0.5), f64(0.5, 0.5, 0), **near)
    torch.testing.assert_close(project(zero, f64(9, 3, 0), 0.75, -0.5, 0.5), f64(0.5, 0.25, 0), **near)
    assert project(zero, f64(9, 3, 0), 0.0).tolist() == [0, 0, 0]


# ------------------------------------------------------------------------------ ball and box, exactly held


@each_dtype
@pytest.mark.parametrize("eps", [0.0, 1e-40, 1e-6, 8 / 255, 0.3, 12.0])
def test_the_ball_and_the_box_hold_exactly(eps: float, dtype: torch.dtype) -> None:
    """Summed without rounding, on rows of every length and displacements of every size."""
    for size in (1, 2, 3, 63, 1000):
        for scale in (1e-6, 0.1, 1.0, 1e3, 1e6):
            x = torch.rand(4, size, dtype=dtype)
            here, grad = x + (torch.rand_like(x) - 0.5) * scale, torch.randn(4, size, dtype=dtype)
            radius, alpha = torch.full((1,), eps, dtype=dtype), torch.full((1,), scale / 3, dtype=dtype)
            low, high = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
            topk = max(1, size // 20)
            for box in ((low, high), (None, None)):
                after, _ = reference.pgd_step(x, here, grad, radius, alpha, *box, None, None, 1.0, topk)
                (start,) = reference.random_start(x, radius, torch.tensor(size), None, *box, None, 1.0)
                for value in (after, start):
                    for old, new in zip(x.tolist(), value.tolist(), strict=True):
                        exact = sum(abs(Fraction(b) - Fraction(a)) for a, b in zip(old, new, strict=True))
                        assert exact <= Fraction(radius.item())
                        assert math.fsum(abs(b - a) for a, b in zip(old, new, strict=True)) <= radius.item()
                    assert box[0] is None or ((value >= 0) & (value <= 1)).all()


@each_dtype
def test_a_projected_point_is_not_needlessly_short(dtype: torch.dtype) -> None:
    """A row outside of the ball ends at its surface, up to the margin and one rounding per element."""
    x, far = torch.rand(6, 200, dtype=dtype), torch.rand(6, 200, dtype=dtype) * 8 - 4
    eps = torch.full((1,), 5.0, dtype=dtype)
    after, _ = reference.pgd_step(x, x + far, far * 0, eps, eps, None, None, None, None, 1.0, 1)
    reached = (after.double() - x.double()).abs().sum(1)
    assert (reached >= 5 * (1 - 2.0**-19) - 200 * torch.finfo(dtype).eps).all()


# ----------------------------------------------------------------------------------------------- start


def distance(u: Tensor) -> float:
    """Kolmogorov's distance of a sample from the uniform distribution on (0, 1)."""
    ranks = torch.arange(1, len(u) + 1, dtype=torch.float64) / len(u)
    return float((u.double().sort().values - ranks).abs().max())


@each_dtype
@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_starts_are_uniform_in_the_ball(size: int, dtype: torch.dtype) -> None:
    """In n dimensions radius ** n is uniform, so is (1 - |d_i|) ** n, and signs are fair and independent."""
    count = 4000
    x, eps = torch.zeros(count, size, dtype=dtype), torch.tensor([0.5], dtype=dtype)
    (start,) = reference.random_start(x, eps, torch.tensor(3), None, None, None, None, 1.0)
    d = start.double() / 0.5
    bound = 2 / math.sqrt(count)  # passed by chance less than once in a thousand
    assert distance(d.abs().sum(1).clamp(max=1) ** size) < bound
    for element in {0, size // 2, size - 1}:
        assert distance((1 - d[:, element].abs()) ** size) < bound
    signs = d.sign()
    assert signs.mean(0).abs().max() < 2 * bound
    products = signs.T @ signs / count - torch.eye(size, dtype=torch.float64)
    assert products.abs().max() < 2.5 * bound
    # moments: E|d| = 1 / (n + 1), E d^2 = 2 / ((n + 1) (n + 2)), E |d_i d_j| = 1 / ((n + 1) (n + 2))
    mean, square = 1 / (size + 1), 2 / ((size + 1) * (size + 2))
    assert d.abs().mean().item() == pytest.approx(mean, rel=0.05)
    assert d.square().mean().item() == pytest.approx(square, rel=0.1)
    if size > 1:
        assert (d[:, 0] * d[:, -1]).abs().mean().item() == pytest.approx(square / 2, rel=0.15)


def test_a_start_word_by_word() -> None:
    """Element i: sign from bit 0 of word i, length -log u_i over the sum of all and of the word of block 2^64 - 1."""
    seed, sample, size = torch.tensor(0x1234567890ABCDEF), torch.tensor([2**40 + 3]), 7
    words = reference.philox(seed, torch.arange(2), sample).flatten().tolist()[:size]
    last = reference.philox(seed, torch.tensor([-1]), sample).flatten().tolist()[0]
    lengths = [-math.log(((word >> 9) + 0.5) / 2**23) for word in (*words, last)]
    x, eps = torch.zeros(1, size, dtype=torch.float64), f64(0.5)
    (start,) = reference.random_start(x, eps, seed, sample, None, None, None, 1.0)
    for value, word, length in zip(start[0].tolist(), words, lengths, strict=False):
        expected = 0.5 * length / sum(lengths) * (-1 if word & 1 else 1)
        assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("body", ["reference", "cpp"])
@pytest.mark.parametrize(("value", "back"), [(math.nan, [2]), (math.inf, range(6)), (-math.inf, range(6))])
def test_an_iterate_that_is_no_number_goes_back_to_x(body: str, value: float, back: Iterable[int]) -> None:
    if backends.missing(body):
        pytest.skip(backends.missing(body))
    x, x_adv, grad = torch.zeros(1, 6), torch.zeros(1, 6), torch.tensor([[0.0, 1, 0, 0, -2, 0]])
    x_adv[0, 0], x_adv[0, 2] = 0.1, value
    eps, alpha, following = torch.full((1,), 0.5), torch.full((1,), 0.1), torch.tensor([[0.1, 0.05, 0, 0, -0.05, 0]])
    following[0, list(back)] = 0
    step_of = backends.body_of("pgd_step", body)
    got = [torch.full_like(x, math.nan), torch.zeros(1, dtype=torch.bool)]
    step_of(x, x_adv, grad, eps, alpha, None, None, None, None, 1.0, 2, *got)
    torch.testing.assert_close(got[0], following, rtol=0, atol=1e-7)
