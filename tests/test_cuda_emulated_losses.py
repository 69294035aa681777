"""The CUDA kernels of the losses, run on the CPU: against the reference, for several block sizes and thread orders."""

from __future__ import annotations

import functools

import pytest
import torch
from emulated import emulated, launches
from kernel_cases import Case, answer, cases, disagreement, run_reference, wild_cases
from operands import scores

LOSSES = ("truncated_cross_entropy", "margin_loss", "kl_divergence")
# at most so many threads in a block (0: the usual); the fewer, the shorter the rows that are too long to be held
BLOCKS = (0, 32, 96)


def agrees(case: Case, seed: int, threads: int) -> None:
    body = functools.partial(emulated, case.name, seed=seed, threads=threads)
    problem = disagreement(case, answer(case, body), run_reference(case))
    assert problem is None, f"blocks of {threads} threads: {problem}"


@pytest.mark.parametrize("threads", BLOCKS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_agrees_with_the_reference(name: str, threads: int, one_thread: None) -> None:
    for seed, case in enumerate(cases(name, "quick")):
        agrees(case, seed, threads)


@pytest.mark.parametrize("name", LOSSES)
def test_labels_and_ids_out_of_range_touch_nothing_else(name: str, one_thread: None) -> None:
    for seed, case in enumerate(wild_cases(name)):
        agrees(case, seed, BLOCKS[seed % len(BLOCKS)])


def call(name: str, logits: torch.Tensor) -> Case:
    label = torch.arange(len(logits)) % logits.shape[1]
    rest = {"truncated_cross_entropy": (label, None, 0.7), "margin_loss": (label, None, None, True)}
    args = (logits, *rest[name]) if name in rest else (logits.flip(0).contiguous(), logits, None, True)
    return Case(name, f"{name} of {tuple(logits.shape)} {logits.dtype}", args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_wide_rows_and_rows_of_any_length_or_base(name: str, dtype: torch.dtype, one_thread: None) -> None:
    """16-byte accesses where every row begins on 16 bytes, else element by element: on both sides of what a warp, and
    what a block of 32 threads, can hold."""
    for classes in (16, 37, 128, 509, 512, 520, 1001, 1024, 1100, 2052, 4099):
        for threads in (0, 32):
            agrees(call(name, scores(3, classes, dtype)), classes, threads)
    shifted = torch.cat((torch.zeros(1, dtype=dtype), scores(2, 64, dtype).flatten()))[1:].view(2, 64)
    agrees(call(name, shifted), 1, 0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_of_the_most_classes_takes_one_launch(name: str, one_thread: None) -> None:
    """Too long to be held: read twice, by one kernel all the same."""
    agrees(call(name, scores(2, 100_000, torch.float32)), 3, 0)
    assert launches(name) == 1


@pytest.mark.parametrize("name", LOSSES)
def test_no_row_no_launch(name: str) -> None:
    agrees(call(name, scores(0, 10, torch.float32)), 0, 0)
    assert launches(name) == 0


@pytest.mark.parametrize("threads", BLOCKS)
def test_equal_rows_at_distant_levels_do_not_diverge(threads: int, one_thread: None) -> None:
    """The divergence does not see what a whole row is raised by; nor may its rounding."""
    clean = scores(4, 2000, torch.float32).clamp(-4, 4)
    case = Case("kl_divergence", "raised", (clean, (clean + 1024), None, True))
    loss = answer(case, functools.partial(emulated, "kl_divergence", threads=threads))[0]
    assert float(loss.abs().max()) < 2e-4  # adv is rounded to steps of 2**-13
    agrees(case, 0, threads)


@pytest.mark.parametrize("threads", BLOCKS)
def test_one_order_of_threads_or_another_gives_the_same_bits(threads: int, one_thread: None) -> None:
    for name in LOSSES:
        case = call(name, scores(5, 700, torch.float32))
        first, *others = (answer(case, functools.partial(emulated, name, seed=s, threads=threads)) for s in range(4))
        for other in others:
            for mine, theirs in zip(other, first, strict=True):
                assert torch.equal(torch.nan_to_num(mine), torch.nan_to_num(theirs))
