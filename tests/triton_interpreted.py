"""Runs Triton kernels under Triton's interpreter, on CPU tensors: a program, since the interpreter is a choice for a
whole process.

    TRITON_INTERPRET=1 python triton_interpreted.py OPERATOR SIZE

Prints how many calls agreed with the reference, then each that did not. SIZE: "quick" or "full", as in kernel_cases.py;
calls with indices and labels out of range are always among them.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Iterator

import torch
from kernel_cases import Case, answer, cases, disagreement, run_reference, wild_cases

from fastsal import backends


def calls(name: str, size: str) -> Iterator[Case]:
    yield from cases(name, size)
    yield from wild_cases(name)


def problems(name: str, size: str) -> tuple[int, list[str]]:
    """How many calls were made, and what was wrong with them."""
    body = backends.body_of(name, "triton")
    count, found = 0, []
    for case in calls(name, size):
        count += 1
        problem = disagreement(case, answer(case, body), run_reference(case))
        found += [] if problem is None else [problem]
    return count, found


def cuts() -> list[str]:
    """The Linf start of a batch that is cut into pieces, named by their ids, against the whole of it."""
    x, seed, eps = torch.rand(11, 3, 33, 31), torch.tensor(-5), torch.tensor([0.1])
    low, high, found = torch.zeros(1), torch.ones(1), []
    whole = backends.reference.random_start(x, eps, seed, None, low, high, None, math.inf)[0]
    body = backends.body_of("random_start", "triton")
    for length in (1, 4, 10):
        for ids in torch.arange(11).split(length):
            start = torch.full((len(ids), *x.shape[1:]), math.nan)
            body(x[ids], eps, seed, ids, low, high, None, math.inf, start)
            if not torch.equal(start, whole[ids]):
                found.append(f"cut into {length}: rows {ids.tolist()} differ")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton")  # numpy tells of inf and NaN
    operator, wanted = sys.argv[1:]
    made, wrong = problems(operator, wanted)
    wrong += cuts() if operator == "random_start" else []
    print(json.dumps([made, wrong]))
