"""The budget of bytes: what a row body loads and stores, counted by a pointer that counts.

Two numbers per operand. *Moved* is every load and store that the body asks for. *Touched* is the distinct addresses
among them: what has to come from memory and go back to it when a row fits in the cache. Where an operand is read once
the two are the same.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from compiled import build


class Count(NamedTuple):
    loaded: int  # bytes per row
    stored: int
    touched: int


Counts = dict[str, dict[str, Count]]


@pytest.fixture(scope="module")
def elements_and_counts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Counts]]:
    program = build("counted_bytes.cpp", tmp_path_factory.mktemp("counted"))
    first, *lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    counts: Counts = {}
    for line in lines:
        body, operand, *numbers = line.split()
        counts.setdefault(body, {})[operand] = Count(*map(int, numbers))
    yield int(first.split()[-1]), counts


@pytest.mark.parametrize(
    ("body", "width", "grad_width"),
    [
        ("linf_step_fp32", 4, 4),
        ("linf_step_bf16_grad", 4, 2),
        ("linf_step_fp16_grad", 4, 2),
        ("linf_step_fp64", 8, 8),
    ],
)
def test_a_linf_step_is_four_row_passes(
    body: str, width: int, grad_width: int, elements_and_counts: tuple[int, Counts]
) -> None:
    """Read x, x_adv and grad, write next: each once, and nothing is read back."""
    size, counts = elements_and_counts
    for operand in ("x", "x_adv"):
        assert counts[body][operand] == Count(width * size, 0, width * size)
    assert counts[body]["grad"] == Count(grad_width * size, 0, grad_width * size)
    assert counts[body]["next"] == Count(0, width * size, width * size)
    moved = sum(c.loaded + c.stored for c in counts[body].values())
    assert moved == (3 * width + grad_width) * size
    if body == "linf_step_fp32":
        assert moved <= 4 * width * size  # the budget: 4 row passes


@pytest.mark.parametrize(
    ("body", "width", "grad_width", "passes"),
    [
        ("l2_step_fp32", 4, 4, {"x": 3, "x_adv": 2, "grad": 3}),
        ("l2_step_bf16_grad", 4, 2, {"x": 3, "x_adv": 2, "grad": 3}),
        ("l2_step_fp64", 8, 8, {"x": 3, "x_adv": 2, "grad": 3}),
        ("l2_step_zero_gradient", 4, 4, {"x": 3, "x_adv": 2, "grad": 1}),
    ],
)
def test_an_l2_step_touches_four_rows(
    body: str, width: int, grad_width: int, passes: dict[str, int], elements_and_counts: tuple[int, Counts]
) -> None:
    """Two norms and a projection read a row again from the cache; it touches x, x_adv, grad and next, no more."""
    size, counts = elements_and_counts
    for operand, times in passes.items():
        element = grad_width if operand == "grad" else width
        assert counts[body][operand] == Count(times * element * size, 0, element * size)
    assert counts[body]["next"] == Count(0, width * size, width * size)  # written once, never read
    assert sum(c.touched for c in counts[body].values()) == (3 * width + grad_width) * size


@pytest.mark.parametrize(
    ("body", "width", "grad_width", "searches"),
    [
        ("l1_step_fp32", 4, 4, 9),
        ("l1_step_bf16_grad", 4, 2, 9),
        ("l1_step_fp64", 8, 8, 9),
        ("l1_step_inside", 4, 4, 1),
    ],
)
def test_an_l1_step_touches_four_rows(
    body: str, width: int, grad_width: int, searches: int, elements_and_counts: tuple[int, Counts]
) -> None:
    """Bisecting for the largest gradients reads them once per bit of a number, from the cache; the search for the
    shrinkage reads x a few times, and once where the step stays in the ball."""
    size, counts = elements_and_counts
    x, x_adv, grad, out = (counts[body][operand] for operand in ("x", "x_adv", "grad", "next"))
    assert x_adv == Count(width * size, 0, width * size)
    assert out == Count(0, width * size, width * size)
    assert x.touched == width * size and x.stored == 0
    assert x.loaded <= (2 + searches) * width * size
    bits = 8 * max(grad_width, 4)
    assert grad.touched == grad_width * size and grad.stored == 0
    assert grad.loaded <= (bits + 5) * grad_width * size


@pytest.mark.parametrize("body", ["linf_start_fp32", "l2_l1_start_fp32"])
def test_a_start_reads_x_once_and_writes_once(body: str, elements_and_counts: tuple[int, Counts]) -> None:
    size, counts = elements_and_counts
    assert counts[body] == {"x": Count(4 * size, 0, 4 * size), "start": Count(0, 4 * size, 4 * size)}


class Passes(NamedTuple):
    """How often each element of an operand is read and written, at most."""

    read: int
    written: int


HELD = Passes(1, 2)  # a gradient that holds the softmax terms until their sum is known, so that none is computed twice
ONCE = Passes(0, 1)
LOSSES = {
    "cross_entropy_fp32": {"logits": Passes(3, 0), "grad": HELD},
    "cross_entropy_bf16": {"logits": Passes(4, 0), "grad": ONCE},  # 16 bits cannot hold a term
    "margin_fp32": {"logits": Passes(2, 0), "grad": ONCE},
    "margin_bf16": {"logits": Passes(2, 0), "grad": ONCE},
    "dlr_fp32": {"logits": Passes(6, 0), "grad": ONCE},  # NaN?, the four largest, and where each of them stands
    "dlr_bf16": {"logits": Passes(6, 0), "grad": ONCE},
    "kl_fp32": {"clean": Passes(4, 0), "adv": Passes(5, 0), "adv_grad": HELD, "clean_grad": HELD},
    "kl_bf16": {"clean": Passes(5, 0), "adv": Passes(6, 0), "adv_grad": ONCE, "clean_grad": ONCE},
    "kl_one_fp32": {"clean": Passes(4, 0), "adv": Passes(4, 0), "adv_grad": HELD, "clean_grad": Passes(0, 0)},
    "kl_one_bf16": {"clean": Passes(4, 0), "adv": Passes(5, 0), "adv_grad": ONCE, "clean_grad": Passes(0, 0)},
}


@pytest.mark.parametrize("body", LOSSES)
def test_losses_touch_logits_and_gradients_alone(body: str, elements_and_counts: tuple[int, Counts]) -> None:
    """Logits are read again from the cache; no temporary row is written."""
    size, counts = elements_and_counts
    width = 2 if body.endswith("bf16") else 4
    apart = 140  # elements read beyond a pass: the label's, the rest of the last vector, a search that went too far
    assert counts[body].keys() == LOSSES[body].keys()
    for operand, passes in LOSSES[body].items():
        count = counts[body][operand]
        assert count.touched == (width * size if any(passes) else 0)
        assert count.loaded <= width * (passes.read * size + (apart if passes.read else 0))
        assert count.stored <= width * (passes.written * size + (5 if passes.written else 0))


def test_short_rows_are_read_and_written_once(elements_and_counts: tuple[int, Counts]) -> None:
    """Ten rows of ten classes in sixteen lanes: the six lanes that are left read the first row again."""
    logits, grad = (elements_and_counts[1]["cross_entropy_short_rows"][operand] for operand in ("logits", "grad"))
    assert logits == Count(4 * 16 * 10, 0, 4 * 100)
    assert grad == Count(0, 4 * (100 + 10), 4 * 100)  # the label's slope is written twice
    kl = elements_and_counts[1]["kl_short_rows"]
    for operand in ("clean", "adv"):
        assert kl[operand] == Count(4 * 16 * 10, 0, 4 * 100)
    for operand in ("adv_grad", "clean_grad"):
        assert kl[operand] == Count(0, 4 * 100, 4 * 100)
