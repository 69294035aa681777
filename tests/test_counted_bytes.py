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


def test_a_linf_start_reads_x_once_and_writes_once(elements_and_counts: tuple[int, Counts]) -> None:
    size, counts = elements_and_counts
    assert counts["linf_start_fp32"] == {"x": Count(4 * size, 0, 4 * size), "start": Count(0, 4 * size, 4 * size)}


@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("bf16", 2)])
def test_losses_touch_logits_and_gradient_alone(
    precision: str, width: int, elements_and_counts: tuple[int, Counts]
) -> None:
    """Logits are read again from the cache (largest, sum, its index, gradient); no temporary row is written.

    An fp32 gradient holds the softmax terms until their sum is known: written, read and written, and no exponential
    twice. A 16-bit one cannot hold them, and is written once.
    """
    size, counts = elements_and_counts
    terms = 1 if precision == "fp32" else 0
    block = 64  # elements that the search for the index of the largest may look at beyond it
    for name, loads, held in ((f"cross_entropy_{precision}", 4 - terms, terms), (f"margin_{precision}", 2, 0)):
        logits, grad = counts[name]["logits"], counts[name]["grad"]
        assert logits.touched == width * size and logits.stored == 0
        assert logits.loaded <= width * (loads * size + block)
        assert grad.touched == width * size and grad.loaded == held * width * size
        assert grad.stored <= width * ((1 + held) * size + 2)
