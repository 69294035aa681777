"""The C++ bodies against the reference, on fresh memory full of NaN.

Linf step, Linf start, margins, flags and retire agree bit for bit; L2 within 1e-6 * eps; cross-entropy within what
fp32 arithmetic can hold.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator

import pytest
import torch
from operands import BODIES, BOXES, INF, LAYOUTS, around, bits, box, clean, gradients, laid_out, run, same_bits, scores
from torch import Tensor

from fastsal.checks import FLOATS, GRADIENTS

if "cpp" not in BODIES:
    pytest.skip("the C++ extension is not built", allow_module_level=True)

SHAPES = [(), (1,), (63,), (1000,), (3, 33, 31), (2, 3, 5, 4)]
SEGMENTS = (3, 80, 81)  # more than the 16,384 elements at which the Linf body cuts a row
WAYS = [(0, "none"), (1, "unit"), *((5, kind) for kind in BOXES)]  # number of samples, and box
CLASSES = [2, 3, 10, 15, 16, 17, 33, 1000, 100_000]

each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
each_gradient = pytest.mark.parametrize("grad_dtype", GRADIENTS, ids=lambda d: str(d)[6:])
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(autouse=True)
def poisoned(one_thread: None) -> Iterator[None]:
    """Fresh tensors hold NaN, the largest integer, or True: whatever a body forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def shapes_of(layout: str) -> list[tuple[int, ...]]:
    return [shape for shape in SHAPES if layout != "channels_last" or len(shape) > 2]


def gather(points: int, samples: int, rows: int) -> tuple[Tensor, Tensor]:
    """rows and ids with repetitions and padding slots."""
    ids = torch.randint(-1, samples, (rows,))
    ids[0] = -1
    return torch.randint(points, (rows,)), ids


# ----------------------------------------------------------------------------------------------- step


def steps(
    dtype: torch.dtype, grad_dtype: torch.dtype, layout: str, p: float, finite: bool = False
) -> Iterator[tuple[list[object], Tensor]]:
    """Arguments of pgd_step, and which of its rows are real."""
    for shape in [*shapes_of(layout), SEGMENTS]:
        for at, (count, kind) in enumerate(WAYS if shape != SEGMENTS else [(2, "unit"), (2, "per channel")]):
            x = clean(count, shape, dtype, kind)
            eps = torch.tensor([0, 8 / 255, 0.25, 1e-40, 3], dtype=dtype)[:count]
            alpha = torch.tensor([0.01, 2 / 255, -0.0, 0.3, -0.7], dtype=dtype)[:count]
            x_adv, grad = around(x, eps, p == 2) if count else x, gradients(count, shape, grad_dtype, finite)
            if at % 2:
                eps, alpha = torch.full((1,), 8 / 255, dtype=dtype), torch.full((1,), 0.01, dtype=dtype)
            rows, ids = gather(count, count, 7) if count and at != 1 else (None, None)
            real = torch.ones(count, dtype=torch.bool) if ids is None else ids >= 0
            operands = [laid_out(operand, layout) for operand in (x, x_adv, grad, eps, alpha)]
            yield [*operands, *box(kind, shape[0] if shape else 1, dtype), rows, ids, p], real


@each_layout
@each_gradient
@each_dtype
def test_linf_step_bit_for_bit(dtype: torch.dtype, grad_dtype: torch.dtype, layout: str) -> None:
    for args, real in steps(dtype, grad_dtype, layout, INF):
        got, expected = run("cpp", "pgd_step", *args), run("reference", "pgd_step", *args)
        assert same_bits(got[0][real], expected[0][real])
        assert torch.equal(got[1], expected[1])
        assert got[0][~real].isnan().all() and not got[1][~real].any()  # padding: never written, never flagged


@each_layout
@each_gradient
@each_dtype
def test_l2_step_within_a_millionth_of_eps(dtype: torch.dtype, grad_dtype: torch.dtype, layout: str) -> None:
    elements = crossings = 0
    for finite in (True, False):
        for args, real in steps(dtype, grad_dtype, layout, 2.0, finite):
            got, expected = run("cpp", "pgd_step", *args), run("reference", "pgd_step", *args)
            crossings += l2_agreement(got[0][real], expected[0][real], args[3], args[8])
            elements += int(real.sum()) * math.prod(args[0].shape[1:])
            assert torch.equal(got[1], expected[1])
            assert got[0][~real].isnan().all() and not got[1][~real].any()
    assert crossings <= 1e-4 * elements


def l2_agreement(got: Tensor, expected: Tensor, eps: Tensor, ids: Tensor | None) -> int:
    """Within 1e-6 * eps, or neighbours: both round one real number, and how many fell to either side is returned."""
    if ids is not None and eps.shape[0] > 1:
        eps = eps[ids[ids >= 0]]
    near = 1e-6 * eps.double().view(-1, *[1] * (got.dim() - 1))
    apart = (got.double() - expected.double()).abs() > near
    neighbours = same_bits(got[apart].nextafter(expected[apart]), expected[apart])
    assert neighbours, (got[apart], expected[apart])
    return int(apart.sum())


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


# ---------------------------------------------------------------------------------------------- start


@each_layout
@each_dtype
@pytest.mark.parametrize("p", [INF, 2.0])
def test_start(p: float, dtype: torch.dtype, layout: str) -> None:
    """Linf bit for bit; L2 within 1e-6 * eps, since log, cos and powers differ between maths libraries."""
    seeds = [0, -1, 2**63 - 1, 0x123456789ABCDEF]
    elements = crossings = 0
    for shape in shapes_of(layout):
        for at, (count, kind) in enumerate(WAYS):
            x = laid_out(clean(count, shape, dtype, kind), layout)
            eps = torch.tensor([0.1] if at % 2 else [0, 8 / 255, 0.25, 1e-40, 3][:count], dtype=dtype)
            ids = gather(count, count, 7)[1] if count and at != 1 else None
            keys = torch.randint(-(2**63), 2**63 - 1, (count,)) if at > 1 else None
            args = [x, eps, torch.tensor(seeds[at % 4]), keys, *box(kind, shape[0] if shape else 1, dtype), ids, p]
            (got,), (expected,) = run("cpp", "random_start", *args), run("reference", "random_start", *args)
            real = torch.ones(count, dtype=torch.bool) if ids is None else ids >= 0
            assert got[~real].isnan().all()
            if p == INF:
                assert same_bits(got[real], expected[real])
            else:
                crossings += l2_agreement(got[real], expected[real], eps, ids)
                elements += int(real.sum()) * math.prod(shape)
    assert crossings <= 1e-4 * elements


# ---------------------------------------------------------------------------------------------- losses


def with_specials(logits: Tensor) -> Tensor:
    """Three rows with -inf, inf or NaN beside finite logits; one of nothing but -inf, one of one value."""
    if len(logits) > 6:
        classes = logits.shape[1]
        logits[1, :: max(classes // 3, 1)] = -INF
        logits[2, classes // 2] = INF
        logits[3, classes // 2] = math.nan
        logits[4] = -INF
        logits[5] = 0.25
    return logits


@each_gradient
@pytest.mark.parametrize("classes", CLASSES)
def test_cross_entropy(classes: int, grad_dtype: torch.dtype) -> None:
    accuracy = 1e-13 if grad_dtype == torch.float64 else 4e-7 + 2e-8 * math.sqrt(classes)
    for count in (0, 1, 12):
        logits = with_specials(scores(count, classes, grad_dtype))
        target = torch.randint(classes, (20,))
        ids = gather(count, 20, count)[1] if count == 12 else torch.arange(count)
        for cut in (0.7, 0.0, INF, -INF):
            args = [laid_out(logits, "strided"), target, ids, cut]
            got, expected = (run(body, "truncated_cross_entropy", *args) for body in ("cpp", "reference"))
            assert torch.equal(got[2], expected[2])
            torch.testing.assert_close(got[0], expected[0], rtol=accuracy, atol=accuracy, equal_nan=True)
            ulp = torch.finfo(grad_dtype).eps
            torch.testing.assert_close(got[1], expected[1], rtol=ulp, atol=max(accuracy, ulp / 2**7), equal_nan=True)
            at_the_cut = (expected[0] - cut).abs() <= accuracy * (1 + abs(cut))
            assert torch.equal(got[3] | at_the_cut, expected[3] | at_the_cut)
            if not math.isinf(cut):
                real = ids >= 0
                assert torch.equal(got[3][real], ~(got[0][real] <= torch.tensor(cut, dtype=got[0].dtype)))


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


@each_gradient
@pytest.mark.parametrize("classes", CLASSES)
def test_margin_bit_for_bit(classes: int, grad_dtype: torch.dtype) -> None:
    for count in (0, 1, 12):
        logits = with_specials(scores(count, classes, grad_dtype))
        target = torch.randint(classes, (20,))
        ids = gather(count, 20, count)[1] if count == 12 else torch.arange(count)
        for other in (None, (target + torch.randint(1, classes, (20,))) % classes):
            args = [laid_out(logits, "strided"), target, other, ids]
            got, expected = run("cpp", "margin_loss", *args), run("reference", "margin_loss", *args)
            assert same_bits(got[0], expected[0])
            assert same_bits(got[1], expected[1])


# ---------------------------------------------------------------------------------------------- retire


@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_retire_bit_for_bit(layout: str, dtype: torch.dtype) -> None:
    for shape in shapes_of(layout):
        for count in (0, 1, 9):
            for variant in range(8):
                last, tested = bool(variant & 1), bool(variant & 2)
                current, samples = clean(count, shape, dtype), 12
                previous = clean(count + 2, shape, dtype)
                rows, ids = torch.randint(count + 2, (count,)), torch.randperm(samples)[:count]
                ids[1::4] = -1
                if variant & 4:
                    previous, rows, ids, samples = clean(count, shape, dtype), None, None, count
                right = torch.rand(count) < 0.8 if tested else None
                over = torch.rand(count) < 0.3
                fresh = torch.full((samples, *shape), 7, dtype=dtype)
                outcomes = []
                for body in ("cpp", "reference"):
                    result = laid_out(fresh.clone(), "contiguous" if layout == "strided" else layout)
                    stop = torch.full((samples,), -1)
                    points = [laid_out(previous, layout), laid_out(current, layout)]
                    out = run(body, "retire", *points, right, over, rows, ids, result, stop, 4, last)
                    outcomes.append([bits(result), stop, *out])
                assert all(map(torch.equal, *outcomes))


# ------------------------------------------------------------------------------------ threads, offsets


@pytest.mark.parametrize("p", [INF, 2.0])
def test_the_number_of_threads_changes_no_bit(p: float) -> None:
    x, one, seed = clean(50, (3, 60, 61), torch.float32), torch.full((1,), 0.1), torch.tensor(3)
    x_adv, grad = around(x, one), gradients(50, (3, 60, 61), torch.float32, finite=True)
    outcomes = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        step = run("cpp", "pgd_step", x, x_adv, grad, one, one, None, None, None, None, p)
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
    for p in (INF, 2.0):
        got, flag = run("cpp", "pgd_step", x, x_adv, grad, one, one, None, None, last, last, p)
        near, near_flag = run("cpp", "pgd_step", x[-1:], x_adv[-1:], grad[-1:], one, one, None, None, None, None, p)
        assert same_bits(got, near) and torch.equal(flag, near_flag)
    start = run("cpp", "random_start", x, one, torch.tensor(5), None, None, None, last, INF)[0]
    assert same_bits(start, run("cpp", "random_start", x[-1:], one, torch.tensor(5), last, None, None, None, INF)[0])
    stop = torch.zeros(slots, dtype=torch.int64)
    run("cpp", "retire", x[-1:], got, None, None, None, last, x_adv, stop, 3, True)
    assert same_bits(x_adv[-1:], got) and stop[-1] == 3
