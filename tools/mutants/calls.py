"""What a mutant has to get right: calls of an operator's body, or of the maths, each with its judge."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cuda_parts
import emulated
import row_parts
import torch
from kernel_cases import Case, answer, cases, disagreement, run_reference, wild_cases
from torch import Tensor

from tools.mutants.libraries import Target
from tools.mutants.maths import maths_checks
from tools.mutants.memory import fenced, fenced_case

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]  # of without_torch
# Order of the threads, the most of them in a block, and the most blocks in a grid: what a missing barrier, a wrong lane
# or a wrong stride shows up under.
MACHINES = ((0, 0, 0), (1, 32, 3), (2, 64, 5))


@dataclass(frozen=True)
class Check:
    """Something that a library must get right: `problem(library)` says what it got wrong."""

    label: str
    problem: Callable[[ctypes.CDLL], str | None]


class Operand(ctypes.Structure):
    """Layout of without_torch/call.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("sizes", ctypes.c_int64 * 5),
        ("strides", ctypes.c_int64 * 5),
        ("integer", ctypes.c_int64),
        ("real", ctypes.c_double),
    )

    @classmethod
    def of(cls, value: Any) -> Operand:
        operand = cls(dimensions=-1)
        if isinstance(value, Tensor):
            operand.data, operand.dtype, operand.dimensions = value.data_ptr(), DTYPES.index(value.dtype), value.dim()
            operand.sizes[: value.dim()] = value.shape
            operand.strides[: value.dim()] = value.stride()
        elif isinstance(value, float):
            operand.real = value
        elif value is not None:
            operand.integer = value
        return operand


def call_cpu(library: ctypes.CDLL, operands: tuple[Any, ...]) -> int:
    laid_out = (Operand * len(operands))(*map(Operand.of, operands))
    return int(library.run(laid_out))


def checks(target: Target) -> Iterator[Check]:
    """Everything that a target has to get right."""
    if target.kind == "maths":
        yield from (
            Check(label, problem) for label, problem in itertools.chain(maths_checks(), row_parts.checks(fenced))
        )
    elif target.kind == "parts":
        yield from itertools.starmap(Check, cuda_parts.checks())
    elif target.kind == "cpu":
        for bare in cases(target.name, "quick"):
            case = fenced_case(bare)
            yield _agreement(case, call_cpu)
            yield _agreement(fenced_case(bare, in_front=True), call_cpu, "-in-front")
            yield from map(_refusal, _outside(case))
    else:
        for bare in itertools.chain(
            cases(target.name, "quick"), _of_many_segments(target.name), wild_cases(target.name)
        ):
            for seed, threads, grid in MACHINES if "wild" not in bare.label else MACHINES[:1]:
                case = fenced_case(bare, in_front=seed == 1)
                machine = {"seed": seed, "threads": threads, "grid_limit": grid}

                def run(library: ctypes.CDLL, operands: tuple[Any, ...], machine: dict[str, int] = machine) -> int:
                    return int(emulated.emulated(target.name, *operands, library=library, **machine))

                check = _agreement(case, run, f"-seed{seed}-threads{threads}-grid{grid}")
                yield _budgeted(check, target.name)


def _of_many_segments(name: str) -> Iterator[Case]:
    """Rows of more segments than the smallest grid has blocks; under Triton's interpreter they would take minutes."""
    return (case for case in cases(name, "full") if case.label.startswith("random_start-float32-2.0-(3,80,81)"))


def _agreement(case: Case, run: Callable[[ctypes.CDLL, tuple[Any, ...]], int], label: str = "") -> Check:
    expected = run_reference(case)

    def problem(library: ctypes.CDLL) -> str | None:
        found: str | None = disagreement(case, answer(case, lambda *operands: run(library, operands)), expected)
        return found

    return Check(case.label + label, problem)


def _budgeted(check: Check, name: str) -> Check:
    """The check; and launches, bytes and accesses of each operand must be what the first call, which is that without a
    mutation, took: what the budgets of tests/test_cuda_emulated_budgets.py are about."""
    usual: list[Any] = []

    def problem(library: ctypes.CDLL) -> str | None:
        found = check.problem(library)
        taken = (int(library.launches()), emulated.traffic(name))
        usual[:] = usual or [taken]
        return found if found or taken == usual[0] else f"{check.label}: other launches or accesses than usual"

    return Check(check.label, problem)


def _outside(case: Case) -> Iterator[Case]:
    """The case with an x outside the box, first and last element, which a CPU body must refuse."""
    if case.name not in ("random_start", "pgd_step") or "x" not in case.named or not case["x"].numel():
        return
    used = range(len(case["x"])) if case["ids"] is None else [i for i in case["ids"].tolist() if i >= 0]
    for bound, beyond, at in (("clip_min", -1.0, 0), ("clip_max", 1.0, -1), ("clip_max", float("nan"), -1)):
        if not used or case[bound] is None:
            continue
        x = case["x"].clone()
        row = x[used[-1]].reshape(-1)
        edge = case[bound].view(-1)[at]
        row[at] = edge + beyond if beyond != beyond else edge.nextafter(edge + beyond)
        if beyond == beyond and not edge.isfinite():
            continue
        x[used[-1]] = row.view(x.shape[1:])
        args = tuple(x if name == "x" else value for name, value in case.named.items())
        yield fenced_case(Case(case.name, f"{case.label}-outside-{bound}{beyond:+g}", args, case.offset))


def _refusal(case: Case) -> Check:
    def problem(library: ctypes.CDLL) -> str | None:
        refused = []

        def body(*operands: Any) -> int:
            refused.append(call_cpu(library, operands))
            return 0

        answer(case, body)
        return None if refused == [1] else f"{case.label}: not refused"

    return Check(case.label, problem)
