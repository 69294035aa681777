"""The reference bodies: cases worked out by hand, exact rational arithmetic, autograd in float64, properties."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import INF, around, clean, gradients, scores
from torch import Tensor

from fastsal import reference
from fastsal.checks import FLOATS

pytestmark = pytest.mark.usefixtures("one_thread")
quick = settings(max_examples=60, deadline=None, derandomize=True)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
singles = st.floats(-4, 4, width=32)
radii = st.sampled_from([0.0, 8 / 255, 0.25, 1e-6, 1e-40, 3.0])


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def step(x: Tensor, x_adv: Tensor, grad: Tensor, eps: float, alpha: float, p: float, low=None, high=None) -> Tensor:
    """One row, given and returned as a vector."""
    edges = [None if edge is None else x.new_tensor([edge]) for edge in (low, high)]
    args = (x[None], x_adv[None], grad[None], x.new_tensor([eps]), x.new_tensor([alpha]), *edges, None, None, p)
    return reference.pgd_step(*args)[0][0]


# -------------------------------------------------------------------------------------- exact rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_directed_sums_are_the_nearest_numbers_on_their_side(dtype: torch.dtype) -> None:
    a = torch.cat(
        (clean(1, (300,), dtype)[0], -clean(1, (300,), dtype)[0], gradients(1, (100,), dtype, finite=True)[0])
    )
    a = a[a.abs() < 1e30]
    b = a[torch.randperm(len(a))]
    below, above = reference.round_down_sum(a, b), reference.round_up_sum(a, b)
    for first, second, low, high in zip(a.tolist(), b.tolist(), below, above, strict=True):
        exact = Fraction(first) + Fraction(second)
        assert Fraction(low.item()) <= exact <= Fraction(high.item())
        assert Fraction(low.nextafter(low + 1).item()) > exact
        assert Fraction(high.nextafter(high - 1).item()) < exact


@quick
@given(singles, st.floats(-1e3, 1e3) | st.floats(-1e-30, 1e-30))
def test_adding_towards_x_never_moves_further_than_asked(x: float, delta: float) -> None:
    for dtype in FLOATS:
        start = torch.tensor([x], dtype=dtype)
        end = reference.add_towards(start, f64(delta))
        moved = Fraction(end.item()) - Fraction(start.item())
        assert 0 <= moved <= Fraction(delta) or Fraction(delta) <= moved <= 0
        further = end.nextafter(torch.full_like(end, math.copysign(INF, delta)))
        if delta:
            assert abs(Fraction(further.item()) - Fraction(start.item())) > abs(Fraction(delta))


# ----------------------------------------------------------------------------------------------- noise


def philox_by_hand(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x32-10 word by word, from the definition in Salmon et al. 2011."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def signed(low: int, high: int) -> int:
    value = low | high << 32
    return value - 2**64 if value >= 2**63 else value


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the published known answers
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter: list[int], key: list[int], words: list[int]) -> None:
    assert philox_by_hand(counter, key) == words
    block, sample = torch.tensor([signed(*counter[:2])]), torch.tensor([signed(*counter[2:])])
    assert reference.philox(torch.tensor(signed(*key)), block, sample).flatten().tolist() == words


@pytest.mark.parametrize("op", ["operator", "reference"])
def test_noise_is_keyed_by_seed_sample_and_row_major_index(op: str) -> None:
    """Element e of sample s: word e % 4 of block e // 4; read back from a start around zero with eps 1 in fp64."""
    seed, samples, size = 0x1234567890ABCDEF, [0, 7, 2**40 + 3, -1], 150
    x, one = torch.zeros(4, 2, 3, 25, dtype=torch.float64), f64(1.0)
    args = (x, one, torch.tensor(seed), torch.tensor(samples), None, None, None, INF)
    for layout in (torch.contiguous_format, torch.channels_last):
        args = (x.contiguous(memory_format=layout), *args[1:])
        start = torch.ops.fastsal.random_start(*args) if op == "operator" else reference.random_start(*args)[0]
        for row, sample in zip(start.reshape(4, size), samples, strict=True):
            for e in (0, 1, 2, 3, 4, 63, 64, 65, 127, 128, 149):
                counter = [e // 4, 0, sample % 2**32, (sample >> 32) % 2**32]
                word = philox_by_hand(counter, [seed % 2**32, seed >> 32])[e % 4]
                assert row[e].item() == 2 * (((word >> 9) + 0.5) * 2.0**-23) - 1


@each_dtype
def test_starts_are_uniform_in_the_ball(dtype: torch.dtype) -> None:
    """Largest distance between the empirical and the true distribution (Kolmogorov), far beyond chance if wrong."""

    def distance(u: Tensor) -> float:
        ranks = torch.arange(1, len(u) + 1, dtype=torch.float64) / len(u)
        return float((u.double().sort().values - ranks).abs().max())

    count, size = 4000, 5
    x, eps = torch.zeros(count, size, dtype=dtype), torch.tensor([0.5], dtype=dtype)
    bound = 2 / math.sqrt(count)  # passed by chance less than once in a thousand
    (linf,) = reference.random_start(x, eps, torch.tensor(1), None, None, None, None, INF)
    assert distance(linf[:, 0] + 0.5) < bound and distance(linf[:, 4] + 0.5) < bound
    (l2,) = reference.random_start(x, eps, torch.tensor(1), None, None, None, None, 2.0)
    length = l2.double().norm(dim=1)
    assert distance((length / 0.5) ** size) < bound  # the volume inside a radius
    direction = l2.double() / length.unsqueeze(1)
    assert direction.mean(0).abs().max() < 3 * bound
    assert (direction.T @ direction / count - torch.eye(size) / size).abs().max() < bound


# ------------------------------------------------------------------------------------------------ step


def test_linf_steps_by_hand() -> None:
    x, here = f64(0.5, 0.5, 0.5, 0.5, 0.5, 0.5), f64(0.5, 0.5, 0.5, 0.75, 0.25, 0.5)
    grad = f64(3.0, -1e-9, 0.0, 2.0, 2.0, math.nan)
    moved = step(x, here, grad, eps=0.25, alpha=0.125, p=INF)
    assert moved.tolist() == [0.625, 0.375, 0.5, 0.75, 0.375, 0.5]  # up, down, zero, at the edge, inward, not finite
    assert step(x, here, grad, 0.25, -0.125, INF).tolist() == [0.375, 0.625, 0.5, 0.625, 0.25, 0.5]
    assert step(x, here, grad, 0.25, 0.125, INF, low=0.5, high=0.5625).tolist() == [
        0.5625, 0.5, 0.5, 0.5625, 0.5, 0.5,
    ]  # fmt: skip
    assert step(x, x, f64(INF, -INF, 1, 1, 1, 1), 0.0, 1.0, INF).equal(x)


def test_l2_steps_by_hand() -> None:
    x, none = f64(0, 0), f64(0, 0)
    near = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(step(x, none, f64(3, 4), eps=9, alpha=1, p=2.0), f64(0.6, 0.8), **near)
    torch.testing.assert_close(step(x, none, f64(3, 4), eps=0.5, alpha=1, p=2.0), f64(0.3, 0.4), **near)
    torch.testing.assert_close(step(x, f64(0.6, 0.8), f64(0, 0), eps=0.5, alpha=1, p=2.0), f64(0.3, 0.4), **near)
    torch.testing.assert_close(step(x, f64(1, 0), f64(0, -2), eps=1, alpha=1, p=2.0), f64(0.5, -0.5) * 2**0.5, **near)
    torch.testing.assert_close(step(x, none, f64(3, 4), 9, 1, 2.0, low=0, high=0.7), f64(0.6, 0.7), **near)
    assert step(x, f64(0.25, 0), f64(math.nan, 1), eps=1, alpha=1, p=2.0).tolist() == [0.25, 0]
    assert step(f64(0.5), f64(0.5), f64(-7), eps=0.25, alpha=0.125, p=2.0).tolist() == [0.375]


def test_a_gradient_that_is_not_finite_is_flagged_and_padding_is_not() -> None:
    x, one = torch.full((3, 4), 0.5), torch.full((1,), 0.1)
    grad = torch.ones(3, 4)
    grad[1, 2], grad[2, 0] = -INF, math.nan
    for p in (INF, 2.0):
        flags = reference.pgd_step(x, x, grad, one, one, None, None, None, None, p)[1]
        assert flags.tolist() == [False, True, True]
        ids = torch.tensor([0, -1, 2])
        assert reference.pgd_step(x, x, grad, one, one, None, None, None, ids, p)[1].tolist() == [False, False, True]


@quick
@given(
    st.lists(st.tuples(singles, singles, singles), min_size=1, max_size=8), radii, radii, st.sampled_from([INF, 2.0])
)
def test_the_ball_the_box_and_the_way_up(rows: list[tuple[float, ...]], eps: float, alpha: float, p: float) -> None:
    columns = torch.tensor(rows, dtype=torch.float64).T
    for dtype in FLOATS:
        x, here, grad = columns.to(dtype).unbind()
        radius = x.new_tensor(eps).item()
        after = step(x, here, grad, eps, alpha, p)
        apart = [Fraction(a) - Fraction(b) for a, b in zip(after.tolist(), x.tolist(), strict=True)]
        if p == INF:
            assert all(abs(d) <= Fraction(radius) for d in apart)
        else:
            assert sum(d * d for d in apart) <= Fraction(radius) ** 2
        # from x, a step never descends, and a box that holds x holds the result
        up = step(x, x, grad, eps, alpha, p, low=-4, high=4)
        assert (up >= -4).all() and (up <= 4).all()
        assert sum(Fraction(g) * (Fraction(u) - Fraction(v)) for g, u, v in
                   zip(grad.tolist(), up.tolist(), x.tolist(), strict=True)) >= 0  # fmt: skip
        if alpha == 0 and p == INF:
            assert step(x, after, grad, eps, 0.0, p).equal(after)  # projecting twice is projecting once


@quick
@given(st.integers(0, 2**31), st.sampled_from([INF, 2.0]))
def test_rows_do_not_know_of_each_other(seed: int, p: float) -> None:
    torch.manual_seed(seed)
    x, eps = clean(5, (3, 4), torch.float32), torch.rand(5)
    here, grad = around(x, eps, finite=True), gradients(5, (3, 4), torch.float32)
    whole = reference.pgd_step(x, here, grad, eps, eps / 3, None, None, None, None, p)[0]
    order = torch.randperm(5)[:3]
    part = reference.pgd_step(x, here, grad, eps, eps / 3, None, None, order, order, p)[0]
    assert torch.equal(part, whole[order])


# ---------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("classes", [2, 3, 17, 1000])
def test_cross_entropy_is_that_of_torch_and_so_is_its_gradient(classes: int) -> None:
    logits, target = scores(9, classes, torch.float64).requires_grad_(), torch.randint(classes, (9,))
    loss, grad, right, over = reference.truncated_cross_entropy(logits, target, None, 0.7)
    expected = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), logits)[0], rtol=1e-13, atol=1e-15)
    assert torch.equal(over, loss > 0.7)
    assert torch.equal(right, logits.argmax(1) == target)


def test_the_gradients_that_come_back_are_the_derivatives_of_the_losses() -> None:
    torch.manual_seed(4)
    logits, target = torch.randn(4, 6, dtype=torch.float64, requires_grad=True), torch.tensor([0, 5, 2, 2])
    other = torch.tensor([1, 0, 3, 0])
    losses = {
        "cross-entropy": lambda z: reference.truncated_cross_entropy(z, target, None, 0.7)[:2],
        "margin": lambda z: reference.margin_loss(z, target, None, None),
        "targeted margin": lambda z: reference.margin_loss(z, target, other, None),
    }
    for name, loss in losses.items():
        assert torch.autograd.gradcheck(lambda z, loss=loss: loss(z)[0], logits), name
        value, grad = loss(logits)
        torch.testing.assert_close(grad, torch.autograd.grad(value.sum(), logits)[0], msg=name)


def test_losses_by_hand() -> None:
    third, log3 = 1 / 3, math.log(3)
    logits = torch.tensor(
        [[1.0, 1.0, 1.0], [0.0, math.log(2), 0.0], [INF, 0, 0], [0, math.nan, 0], [-INF, 0, 0]]
    ).double()
    target = torch.tensor([0, 1, 0, 0, 0])
    loss, grad, right, over = reference.truncated_cross_entropy(logits, target, None, log3)
    torch.testing.assert_close(loss, f64(log3, math.log(2), math.nan, math.nan, INF), equal_nan=True)
    torch.testing.assert_close(grad[:2], torch.stack((f64(third - 1, third, third), f64(0.25, -0.5, 0.25))))
    assert right.tolist() == [True, True, True, False, False]  # the lowest index wins a tie; NaN is never right
    assert over.tolist() == [False, False, True, True, True]  # a tie with the cut is inside; NaN is over
    margin, slope = reference.margin_loss(logits, target, None, None)
    torch.testing.assert_close(margin, f64(0, -math.log(2), -INF, math.nan, INF), equal_nan=True)
    assert slope[:2].tolist() == [[-1, 1, 0], [1, -1, 0]]
    against = reference.margin_loss(logits, target, torch.tensor([2, 2, 2, 2, 2]), None)
    assert against[1].tolist()[0] == [-1, 0, 1]
    nothing = reference.margin_loss(torch.full((2, 3), -INF), torch.tensor([0, 2]), None, None)[1]
    assert nothing.tolist() == [[-1, 1, 0], [1, 0, -1]]  # all rivals at -inf: the first class that is not the target


def test_a_padding_row_costs_nothing_and_is_over() -> None:
    logits, target, ids = torch.randn(3, 4), torch.tensor([1, 2]), torch.tensor([1, -1, 0])
    loss, grad, right, over = reference.truncated_cross_entropy(logits, target, ids, INF)
    assert loss[1] == 0 and not grad[1].any() and not right[1] and over[1]
    torch.testing.assert_close(loss[[0, 2]], F.cross_entropy(logits[[0, 2]], target[[1, 0]], reduction="none"))
    loss, grad = reference.margin_loss(logits, target, None, ids)
    assert loss[1] == 0 and not grad[1].any()


# ---------------------------------------------------------------------------------------------- retire


@quick
@given(st.integers(0, 2**31), st.integers(0, 9), st.booleans(), st.booleans(), st.booleans())
def test_retire_row_by_row(seed: int, count: int, last: bool, by_right: bool, by_over: bool) -> None:
    """Against a loop over the rows, the result and the stop steps of the others untouched."""
    torch.manual_seed(seed)
    samples = 10
    previous, current = torch.rand(count + 1, 2), torch.rand(count, 2)
    right = torch.rand(count) < 0.7 if by_right else None
    over = torch.rand(count) < 0.3 if by_over else None
    rows = torch.randint(count + 1, (count,))
    ids = torch.where(torch.rand(count) < 0.2, -1, torch.randperm(samples)[:count])
    result, stop = torch.full((samples, 2), 9.0), torch.full((samples,), -1)
    expected, stopped, survivors = result.clone(), stop.clone(), []
    for j in range(count):
        crossed = bool(by_over and over[j]) or bool(by_right and not right[j])
        if ids[j] < 0:
            continue
        if crossed or last:
            expected[ids[j]] = previous[rows[j]] if crossed else current[j]
            stopped[ids[j]] = 4 if crossed else 5
        else:
            survivors.append(j)
    for body in (reference.retire, torch.ops.fastsal.retire):
        into, steps = result.clone(), stop.clone()
        kept, names, live = body(previous, current, right, over, rows, ids, into, steps, 5, last)
        assert torch.equal(into, expected) and torch.equal(steps, stopped)
        assert live.tolist() == [len(survivors)]
        assert kept.tolist() == survivors + [0] * (count - len(survivors))
        assert names.tolist() == ids[survivors].tolist() + [-1] * (count - len(survivors))
