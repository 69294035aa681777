"""Launches, row passes and access widths of the CUDA kernels of pgd_step, random_start and retire, counted on a CPU."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from emulated import Traffic, launches, run_emulated, traffic
from operands import INF, clean, gradients
from torch import Tensor

from fastsal.checks import FLOATS, GRADIENTS

ROWS = 3
SHORT, HELD, LONG = 3072, 12_288, 13_000  # the first two fit on chip; all begin on 16 bytes in every row
NORMS = (INF, 2.0, 1.0)

each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])


def moved(count: int, value: Tensor, width: int, passes: int = 1, stored: bool = False) -> Traffic:
    """`passes` over `count` elements in accesses of `width` bytes."""
    total = passes * count * value.element_size()
    return Traffic(0, total, total // width) if stored else Traffic(total, 0, total // width)


def step(p: float, size: int, dtype: torch.dtype, grad_dtype: torch.dtype, base: int = 0) -> list[Any]:
    """Arguments of a step; `base`: elements by which its operands miss 16 bytes."""

    def laid(value: Tensor) -> Tensor:
        return torch.cat((value.new_zeros(base), value.flatten()))[base:].view(value.shape)

    x, grad = clean(ROWS, (size,), dtype), gradients(ROWS, (size,), grad_dtype, finite=True)
    one = torch.full((1,), 0.1, dtype=dtype)
    return [laid(x), laid(x), laid(grad), one, one, None, None, None, None, p, min(3, max(size, 1))]


@pytest.mark.parametrize("grad_dtype", GRADIENTS, ids=lambda d: str(d)[6:])
@each_dtype
def test_a_linf_step_is_one_launch_and_four_row_passes(dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    """At 16 bytes of x a time where a row begins on 16 bytes, else element by element; long rows in segments."""
    for size, base in ((SHORT, 0), (LONG, 0), (SHORT, 1), (SHORT + 1, 0)):
        args = step(INF, size, dtype, grad_dtype, base)
        run_emulated("pgd_step", *args)
        assert launches("pgd_step") == 1
        wide = base == 0 and size != SHORT + 1
        width = 16 if wide else dtype.itemsize
        counted, elements = traffic("pgd_step"), ROWS * size
        for name in ("x", "x_adv"):
            assert counted[name] == moved(elements, args[0], width)
        group = width // dtype.itemsize
        assert counted["grad"] == moved(elements, args[2], group * grad_dtype.itemsize)
        assert counted["next_out"] == moved(elements, args[0], width, stored=True)
        if dtype == grad_dtype == torch.float32:
            flags = counted.pop("nonfinite_out")
            assert flags.stored == ROWS
            assert sum(c.loaded + c.stored for c in counted.values()) == 4 * 4 * elements


@each_dtype
def test_an_l2_step_reads_a_row_that_fits_on_chip_once(dtype: torch.dtype) -> None:
    held = HELD * 4 // dtype.itemsize
    for size, width in ((SHORT, 16), (held, 16), (SHORT - 1, dtype.itemsize)):
        args = step(2.0, size, dtype, dtype)
        run_emulated("pgd_step", *args)
        assert launches("pgd_step") == 1
        counted = traffic("pgd_step")
        for name in ("x", "x_adv", "grad"):
            assert counted[name] == moved(ROWS * size, args[0], width)
        assert counted["next_out"] == moved(ROWS * size, args[0], width, stored=True)


@each_dtype
def test_an_l2_step_of_a_long_row_takes_three_launches(dtype: torch.dtype) -> None:
    """The gradient alone, then all operands twice."""
    args = step(2.0, LONG, dtype, torch.float16)
    run_emulated("pgd_step", *args)
    assert launches("pgd_step") == 3
    counted = traffic("pgd_step")
    for name in ("x", "x_adv"):
        assert counted[name] == moved(ROWS * LONG, args[0], 16, passes=2)
    assert counted["grad"].loaded == 3 * ROWS * LONG * 2
    assert counted["next_out"] == moved(ROWS * LONG, args[0], 16, stored=True)


def test_an_l1_step_is_one_launch_and_reads_a_row_that_fits_on_chip_once() -> None:
    for size, dtype in ((SHORT, torch.float32), (HELD, torch.float32), (SHORT, torch.float64)):
        args = step(1.0, size, dtype, dtype)
        run_emulated("pgd_step", *args)
        assert launches("pgd_step") == 1
        counted = traffic("pgd_step")
        for name in ("x", "x_adv", "grad"):
            assert counted[name] == moved(ROWS * size, args[0], 16)
        assert counted["next_out"] == moved(ROWS * size, args[0], 16, stored=True)
    run_emulated("pgd_step", *step(1.0, LONG, torch.float32, torch.float32))
    assert launches("pgd_step") == 1


@each_dtype
def test_a_start_reads_x_once(dtype: torch.dtype) -> None:
    """In one launch, or in two for the length of a long row's noise; four elements are 16 bytes of fp32, 32 of fp64."""
    for p, size, last in itertools.product(NORMS, (SHORT, LONG), (False, True)):
        shape = (4, size // 4, 1)
        x = clean(ROWS, shape, dtype)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        run_emulated("random_start", x, torch.full((1,), 0.1, dtype=dtype), torch.tensor(3), None, None, None, None, p)
        assert launches("random_start") == (2 if p != INF and size == LONG else 1)
        width = dtype.itemsize if last and p != INF else 4 * dtype.itemsize
        counted = traffic("random_start")
        assert counted["x"] == moved(x.numel(), x, width)
        assert counted["start_out"] == moved(x.numel(), x, width, stored=True)


def test_retire_is_one_launch_and_copies_what_leaves() -> None:
    """One row copy for each row that leaves, in the widest accesses that its length and base allow."""
    for size, width in ((SHORT, 16), (3070, 8), (3069, 4)):
        points, previous = clean(8, (size,), torch.float32), clean(8, (size,), torch.float32)
        over = torch.arange(8) % 3 == 0
        ids = torch.tensor([0, 1, 2, -1, 4, 5, 6, 7])
        stop, result = torch.zeros(8, dtype=torch.int64), torch.zeros(8, size)
        args = (previous, points, None, over, None, ids, result, stop, 3)
        run_emulated("retire", *args, False)
        assert launches("retire") == 1
        counted = traffic("retire")
        assert counted["previous"] == moved(2 * size, points, width) and counted["current"] == Traffic(0, 0, 0)
        assert counted["result"] == moved(2 * size, points, width, stored=True)
        run_emulated("retire", *args, True)
        counted = traffic("retire")
        assert counted["previous"] == moved(2 * size, points, width)
        assert counted["current"] == moved(5 * size, points, width)
        assert counted["result"] == moved(7 * size, points, width, stored=True)


def test_nothing_to_do_launches_nothing() -> None:
    """But for `retire`, which says how many rows are left: none."""
    for p in NORMS:
        run_emulated("pgd_step", *[a[:0] if isinstance(a, Tensor) and a.dim() == 2 else a
                                   for a in step(p, 8, torch.float32, torch.float32)])  # fmt: skip
        assert launches("pgd_step") == 0
        run_emulated("random_start", torch.zeros(0, 8), torch.ones(1), torch.tensor(3), *[None] * 4, p)
        assert launches("random_start") == 0
    nothing, none = torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64)
    rows, ids, live = run_emulated("retire", nothing, nothing, None, None, None, None, nothing, none, 3, False)
    assert rows.numel() == ids.numel() == 0 and live.tolist() == [0]


def test_empty_rows_are_flagged_as_finite() -> None:
    for p in NORMS:
        args = step(p, 0, torch.float32, torch.float32)
        assert run_emulated("pgd_step", *args)[1].tolist() == [False] * ROWS
