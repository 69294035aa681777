"""Runs Triton kernels under Triton's interpreter, on CPU tensors: a program, since the interpreter is a choice for a
whole process.

    TRITON_INTERPRET=1 python triton_interpreted.py OPERATOR SIZE

Prints how many calls agreed with the reference, then each that did not. SIZE: "quick", as in kernel_cases.py, or
"full", with a fourth of the other cases too. Among the calls there are always some with indices and labels out of
range, some in blocks of other sizes than the usual (with operands off any alignment), and, for random_start, the words
of Philox and batches cut into pieces.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import json
import math
import sys
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from fastsal.kernels.noise import philox
from kernel_cases import Case, answer, cases, disagreement, run_reference, wild_cases
from torch import Tensor
from triton.language import semantic
from triton.runtime import interpreter

from fastsal import backends, kernels, reference

# What the launchers choose their blocks by, in other sizes: rows that fit on chip become too long for it, those that
# one program took are split, and so are the rows of one tile.
BLOCKS: dict[str, list[dict[str, int]]] = {
    "random_start": [
        {"random_start.SEGMENT": 32, "random_start.ON_CHIP": 32, "random_start.PARTS": 2},
        {"random_start.SEGMENT": 256, "random_start.ON_CHIP": 1024},
    ],
    "pgd_step": [
        {"pgd_step.SEGMENT": 32, "pgd_step_l2.ON_CHIP": 32, "pgd_step_l2.SEGMENT": 32, "pgd_step_l2.PARTS": 2}
        | {"pgd_step_l1.ON_CHIP": 32, "pgd_step_l1_long.CHUNK": 32},
        {"pgd_step.SEGMENT": 256, "pgd_step_l2.ON_CHIP": 512, "pgd_step_l2.SEGMENT": 256}
        | {"pgd_step_l1.ON_CHIP": 512, "pgd_step_l1_long.CHUNK": 256, "pgd_step_l1_long.WIDE": 0},
    ],
    "truncated_cross_entropy": [
        {"truncated_cross_entropy.ON_CHIP": 8, "truncated_cross_entropy.CHUNK": 8},
        {"truncated_cross_entropy.ON_CHIP": 512, "truncated_cross_entropy.CHUNK": 128, "logits.SMALL": 32},
    ],
    "margin_loss": [{"margin_loss.ON_CHIP": 8}, {"margin_loss.ON_CHIP": 256, "logits.SMALL": 32}],
    "kl_divergence": [
        {"kl_divergence.ON_CHIP": 8, "kl_divergence.CHUNK": 8},
        {"kl_divergence.ON_CHIP": 512, "kl_divergence.CHUNK": 128, "logits.SMALL": 32},
    ],
    "retire": [{"retire.SEGMENT": 32, "retire.SCAN": 8}, {"retire.SEGMENT": 256, "retire.SCAN": 64}],
}
MOST = 24  # blocks of a call in other blocks than the usual; four times as many in "full"
EVERY, LARGEST = 4, 15_000  # of the "full" cases, and elements of one: the interpreter takes seconds for each


def keep_language() -> None:
    """Triton's interpreter puts its own functions into the language at every call of a device function, which is half
    of its time; from here on they stay there. Half of the rest goes into things of which nothing comes either: types
    that are made anew for every value, and a search for overflows whose result it throws away unless it debugs."""
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda function: interpreter._LangPatchScope()
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=options.debug)
    _keep_types()


def _keep_types() -> None:
    """What follows from the type of a value is kept with the type."""
    looked_up, arrays, blocks = interpreter._get_np_dtype, dict[str, Any](), dict[tuple[Any, ...], Any]()

    def array_dtype(dtype: Any) -> Any:
        if dtype.name not in arrays:
            arrays[dtype.name] = looked_up(dtype)
        return arrays[dtype.name]

    def with_element_ty(block: Any, element: Any) -> Any:
        key = (element.name, *block.shape.values)
        if key not in blocks:
            blocks[key] = tl.block_type(element, block.shape)
        return blocks[key]

    slowly = tl.tensor.__init__

    def made(tensor: Any, handle: Any, dtype: Any) -> None:
        known = vars(dtype).get("of_tensors")
        if known is None:
            slowly(tensor, handle, dtype)
            dtype.of_tensors = tensor.shape, tensor.numel, tensor.dtype
        else:
            tensor.handle, tensor.type = handle, dtype
            tensor.shape, tensor.numel, tensor.dtype = known

    broadcast = semantic.TritonSemantic.broadcast_impl_value

    def broadcast_if_needed(self: Any, left: Any, right: Any) -> tuple[Any, Any]:
        shapes = [one.type.shape.values if one.type.is_block() else [] for one in (left, right)]
        return (left, right) if shapes[0] == shapes[1] else broadcast(self, left, right)

    interpreter._get_np_dtype = array_dtype
    tl.block_type.with_element_ty = with_element_ty
    tl.tensor.__init__ = made
    semantic.TritonSemantic.broadcast_impl_value = broadcast_if_needed


@contextlib.contextmanager
def blocks(sizes: dict[str, int], package: str = kernels.__name__) -> Iterator[None]:
    before = {}
    for place, size in sizes.items():
        module, constant = place.split(".")
        holder = importlib.import_module(f"{package}.{module}")
        before[holder, constant] = getattr(holder, constant)
        setattr(holder, constant, size)
    try:
        yield
    finally:
        for (holder, constant), size in before.items():
            setattr(holder, constant, size)


def aside(case: Case, by: int) -> Case:
    """The case with its rows `by` elements further in memory, the outputs too: at an odd base."""

    def moved(value: Tensor) -> Tensor:
        memory = torch.zeros(by + value.numel(), dtype=value.dtype)
        return memory.as_strided(value.shape, value.stride(), by).copy_(value)

    rows = (isinstance(a, Tensor) and a.is_floating_point() and a.dim() > 1 for a in case.args)
    args = tuple(moved(a) if row else a for a, row in zip(case.args, rows, strict=True))
    return Case(case.name, f"{case.label}-aside={by}", args, by)


def elements(case: Case) -> int:
    return max(a.numel() for a in case.args if isinstance(a, Tensor))


def calls(name: str, size: str) -> Iterator[tuple[dict[str, int], Case]]:
    """A call, and the blocks to make it in."""
    full = size == "full"
    yield from (({}, case) for case in cases(name, "quick"))
    if full:
        rest = (case for case in cases(name, size) if elements(case) <= LARGEST)
        yield from (({}, case) for case in itertools.islice(rest, 0, None, EVERY))
    yield from (({}, case) for case in itertools.islice(wild_cases(name), 0, None, 1 if full else 6))
    yield from in_other_blocks(name, size)


def in_other_blocks(name: str, size: str) -> Iterator[tuple[dict[str, int], Case]]:
    full = size == "full"
    for at, sizes in enumerate(BLOCKS[name]):
        smallest = min(size for place, size in sizes.items() if not place.endswith(("PARTS", "SMALL")))
        most = (4 if full else 1) * MOST * smallest
        chosen = [case for case in cases(name, "quick") if elements(case) <= most]
        in_double = [case for case in chosen if case.args[0].dtype == torch.float64]  # chunks of their own size
        for case in chosen if full else [*chosen[at :: 2 * len(BLOCKS[name])], *in_double[-1:]]:
            yield sizes, aside(case, 1 + at)
    wild = [case for case in wild_cases(name) if elements(case) <= MOST * 32 and case.label.endswith("-wild-rows")]
    yield from ((BLOCKS[name][0], case) for case in wild[:: 1 if full else 9])  # of each norm one


def problems(name: str, size: str) -> tuple[int, list[str]]:
    """How many calls were made, and what was wrong with them."""
    body = backends.body_of(name, "triton")
    count, found = 0, []
    for sizes, case in calls(name, size):
        count += 1
        with blocks(sizes):
            problem = disagreement(case, answer(case, body), run_reference(case))
        found += [] if problem is None else [f"{sizes or 'usual blocks'}: {problem}"]
    return count, found


# ------------------------------------------------------------------------------------------------- noise

EXTREMES = (0, 1, 2**31, 2**32 - 1, 2**32 + 5, 2**63 - 1, -(2**63), -1)


@triton.jit
def words_of_keys(keys, words, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    seed, sample, block = (tl.load(keys + 3 * at + i, mask=inside, other=0) for i in tl.static_range(3))
    a, b, c, d = philox(seed, sample, block)
    tl.store(words + 4 * at, a.to(tl.int64), mask=inside)
    tl.store(words + 4 * at + 1, b.to(tl.int64), mask=inside)
    tl.store(words + 4 * at + 2, c.to(tl.int64), mask=inside)
    tl.store(words + 4 * at + 3, d.to(tl.int64), mask=inside)


def words() -> list[str]:
    """The words of Philox for seeds, samples and counters of every magnitude, in blocks of several sizes."""
    keys = torch.tensor(list(itertools.product(EXTREMES, EXTREMES, EXTREMES)))
    expected = torch.stack([reference.philox(seed, block[None], sample[None])[0, 0] for seed, sample, block in keys])
    found = []
    for block in (16, 64, 256):
        got = torch.full((len(keys), 4), -1)
        words_of_keys[(-(-len(keys) // block),)](keys, got, len(keys), BLOCK=block)
        if not torch.equal(got, expected):
            found.append(f"words of Philox, blocks of {block}: {int((got != expected).sum())} differ")
    return found


def cuts() -> list[str]:
    """The Linf start of a batch that is cut into pieces, named by their ids, against the whole of it; bit for bit."""
    x, eps, found = torch.rand(6, 3, 9, 11), torch.tensor([0.1]), []
    samples = torch.tensor([0, 2**32 + 5, 5, 2**63 - 1, -1, 7])
    low, high = torch.zeros(1), torch.ones(1)
    body = backends.body_of("random_start", "triton")
    for sizes, length, seed in zip(({}, *BLOCKS["random_start"]), (1, 4, 5), (-5, 2**32 + 3, 3), strict=True):
        whole = reference.random_start(x, eps, torch.tensor(seed), samples, low, high, None, math.inf)[0]
        for ids in torch.arange(6).split(length):
            start = torch.full((len(ids), *x.shape[1:]), math.nan)
            with blocks(sizes):
                body(x, eps, torch.tensor(seed), samples, low, high, ids, math.inf, start)
            if not torch.equal(start, whole[ids]):
                found.append(f"{sizes}, cut into {length}: rows {ids.tolist()} differ")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton")  # numpy tells of inf and NaN
    keep_language()
    operator, wanted = sys.argv[1:]
    made, wrong = problems(operator, wanted)
    wrong += words() + cuts() if operator == "random_start" else []
    print(json.dumps([made, wrong]))
