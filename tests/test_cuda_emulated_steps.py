"""The CUDA kernels of pgd_step, random_start and retire, run on the CPU against the reference: for several block sizes
and thread orders, out of range, and however a batch is cut."""

from __future__ import annotations

import functools
import itertools
import math
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from emulated import emulated, run_emulated
from kernel_cases import Case, answer, cases, disagreement, run_reference, wild_cases
from operands import INF, clean, gradients, same_bits
from torch import Tensor

OPERATORS = ("random_start", "pgd_step", "retire")
NORMS = (INF, 2.0, 1.0)
# at most so many threads in a block (0: the usual); the fewer, the shorter the rows that are too long to be held
BLOCKS = (0, 32, 160)

each_operator = pytest.mark.parametrize("name", OPERATORS)


def agrees(case: Case, body: Callable[..., int], **how: Any) -> None:
    problem = disagreement(case, answer(case, functools.partial(body, case.name, **how)), run_reference(case))
    assert problem is None, f"{how}: {problem}"


@pytest.mark.parametrize("threads", BLOCKS)
@each_operator
def test_agrees_with_the_reference(name: str, threads: int, one_thread: None) -> None:
    for seed, case in enumerate(cases(name, "quick")):
        agrees(case, emulated, seed=seed, threads=threads)


@each_operator
def test_indices_out_of_range_count_as_padding(name: str, one_thread: None) -> None:
    for seed, case in enumerate(wild_cases(name)):
        agrees(case, emulated, seed=seed, threads=BLOCKS[seed % 3])


# ------------------------------------------------------------------------------- one result in every way

LENGTHS = (1000, 3069, 13_001)  # held in few turns, in scalar turns, and in segments


def step_arguments(p: float, size: int, rows: int = 7) -> list[Any]:
    shape = (size,)
    x, eps = clean(5, shape, torch.float32), torch.tensor([0.1, 3, 8 / 255, 0.5, 1])
    here = x + 0.3 * torch.randn(rows, size)[:5] * torch.rand(5, 1) ** 4
    slopes = gradients(6, shape, torch.float32, finite=True)
    slopes[3, -1] = math.nan
    ids = torch.randint(-1, 5, (rows,))
    ids[:2] = torch.tensor([4, -1])
    here = torch.cat((here, here[:1]))
    low, high = torch.zeros(1), torch.ones(1)
    return [x, here, slopes, eps, eps / 3, low, high, torch.randint(6, (rows,)), ids, p, max(1, size // 20)]


def start_arguments(p: float, size: int, rows: int = 7) -> list[Any]:
    x, eps = clean(5, (size,), torch.float32), torch.tensor([0.1, 3, 8 / 255, 0.5, 1])
    ids = torch.randint(-1, 5, (rows,))
    return [x, eps, torch.tensor(77), None, torch.zeros(1), torch.ones(1), ids, p]


def results(name: str, args: list[Any], **how: Any) -> tuple[Tensor, ...]:
    """Outputs with zeros where padding left them as they were."""
    outs = run_emulated(name, *args, **how)
    ids = args[8] if name == "pgd_step" else args[6]
    outs[0][ids < 0] = 0
    return outs


def ways() -> Iterator[tuple[str, list[Any], int]]:
    """Operator, arguments, and the position of the first of the index vectors that are cut."""
    for p, size in itertools.product(NORMS, LENGTHS):
        yield "pgd_step", step_arguments(p, size), 7
        yield "random_start", start_arguments(p, size), 6


def test_a_batch_cut_in_any_way_gives_the_same_bits(one_thread: None) -> None:
    for name, args, at in ways():
        whole = results(name, args)
        for cuts in ([1] * 7, [3, 4], [6, 1]):
            vectors = args[at : at + (2 if name == "pgd_step" else 1)]
            split = [vector.split(cuts) if isinstance(vector, Tensor) else [None] * len(cuts) for vector in vectors]
            pieces = [
                results(name, [*args[:at], *piece, *args[at + len(piece) :]], seed=len(cuts))
                for piece in zip(*split, strict=True)
            ]
            for mine, theirs in zip(map(torch.cat, zip(*pieces, strict=True)), whole, strict=True):
                assert same_bits(mine, theirs) if mine.is_floating_point() else torch.equal(mine, theirs)


def test_any_order_of_threads_and_any_grid_gives_the_same_bits(one_thread: None) -> None:
    """A grid that is too small for all rows, or for all segments of one, is launched in pieces."""
    for name, args, _ in ways():
        first, *others = [results(name, args, seed=seed, grid_limit=limit) for seed, limit in ((0, 0), (1, 0), (2, 2))]
        for other in others:
            for mine, theirs in zip(other, first, strict=True):
                assert same_bits(mine, theirs) if mine.is_floating_point() else torch.equal(mine, theirs)


@pytest.mark.parametrize("p", NORMS)
def test_a_start_is_the_same_bits_in_every_memory_format(p: float, one_thread: None) -> None:
    for shape in ((3, 9, 7), (4, 8, 6), (3, 50, 51)):
        x, eps = clean(2, shape, torch.float32), torch.tensor([0.5, 8 / 255])
        args = [eps, torch.tensor(-3), None, torch.rand(shape[0]) - 1, torch.rand(shape[0]) + 1, None, p]
        row_major = run_emulated("random_start", x, *args)[0]
        last = run_emulated("random_start", x.contiguous(memory_format=torch.channels_last), *args)[0]
        assert last.stride(1) == 1 and torch.equal(last, row_major)


# ---------------------------------------------------------------------------------------------- long rows


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("threads", BLOCKS)
def test_a_gradient_that_is_not_finite_flags_its_row_from_every_segment(
    p: float, threads: int, one_thread: None
) -> None:
    size = 13_001
    x, grad = torch.full((8, size), 0.5), torch.ones(8, size)
    for row, place in enumerate((0, 6143, 6144, 12_287, 12_288, size - 1)):
        grad[row, place] = (INF, -INF, math.nan)[row % 3]
    args = [torch.full((1,), 0.1), torch.full((1,), 0.1), None, None, None, None, p, 1]
    next, flags = run_emulated("pgd_step", x, x, grad, *args, threads=threads)
    assert flags.tolist() == [True] * 6 + [False] * 2
    assert next.isfinite().all()


def test_values_that_nobody_checked_neither_hang_nor_harm(one_thread: None) -> None:
    """On an accelerator values are not looked at for each operator."""
    strange = [math.nan, INF, -INF, -1.0, 0.0, 3e38]
    for p, size, eps, alpha in itertools.product(NORMS, (40, 13_001), strange, (0.1, math.nan, INF)):
        x, one = torch.rand(2, size), torch.full((1,), eps)
        x[1, :6] = torch.tensor(strange)
        grad = torch.randn(2, size)
        run_emulated("pgd_step", x, x.flip(0), grad, one, torch.full((1,), alpha), None, None, None, None, p, 5)
        run_emulated("random_start", x, one, torch.tensor(1), None, None, None, None, p)


def test_an_element_beyond_two_to_the_31st(one_thread: None) -> None:
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
        far = run_emulated("pgd_step", x, x_adv, grad, one, one, None, None, last, last, p)
        near = run_emulated("pgd_step", x[-1:], x_adv[-1:], grad[-1:], one, one, None, None, None, None, p)
        assert same_bits(far[0], near[0]) and torch.equal(far[1], near[1])
        far = run_emulated("random_start", x, one, torch.tensor(5), None, None, None, last, p)
        near = run_emulated("random_start", x[-1:], one, torch.tensor(5), last, None, None, None, p)
        assert same_bits(far[0], near[0])
    stop = torch.zeros(slots, dtype=torch.int64)
    run_emulated("retire", x[-1:], near[0], None, None, None, last, x_adv, stop, 3, True)
    assert same_bits(x_adv[-1:], near[0]) and stop[-1] == 3
