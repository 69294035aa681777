"""Drives the C++ bodies of a sanitized extension; run as a program, in a process with the sanitizer preloaded.

    address_sanitizer.py EXTENSION SIZE

First the shared cases, then indices and labels out of range, which the body has to refuse, and values that the contract
refuses. Every output has memory of exactly its size; an access beside an operand ends the process with the sanitizer's
report. Prints the number of calls by operator, for one thread and for three.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from importlib.machinery import ModuleSpec
from typing import Any

import torch
from torch import Tensor


class Sanitized:
    """Finds one file in the place of fastsal._C."""

    def __init__(self, path: str) -> None:
        self.path = path

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self.path) if name == "fastsal._C" else None


def drive(name: str, size: str) -> int:
    from kernel_cases import Case, cases, wild_cases

    from fastsal.operators import OPERATORS

    body = getattr(torch.ops.fastsal_body, name).default
    calls = 0

    def exact(like: Tensor, offset: int) -> Tensor:
        """Memory that ends with the last element; values as in `like`."""
        return (
            torch.empty(offset + like.numel(), dtype=like.dtype)
            .as_strided(like.shape, like.stride(), offset)
            .copy_(like)
        )

    def call(case: Case, **changed: Tensor) -> int:
        nonlocal calls
        calls += 1
        named = case.named | changed
        for at in case.mutated:
            label = OPERATORS[name].argument_names[at]
            named[label] = exact(named[label], case.offset)
        outs = (exact(out, case.offset) for out in OPERATORS[name].outputs(*case.args))
        return int(body(*named.values(), *outs))

    for case in cases(name, size):
        assert call(case) == 0, f"{case.label}: refused"
    for case in wild_cases(name):
        assert call(case) == 1, f"{case.label}: not refused"
    for case in cases(name, "quick"):  # values that are no radius, no bound, no point
        for label in ("eps", "alpha", "clip_min", "clip_max", "x", "x_adv"):
            if isinstance(operand := case.named.get(label), Tensor):
                for value in (math.nan, math.inf, -math.inf, -1.0):
                    call(case, **{label: torch.full_like(operand, value)})
    return calls


def main() -> None:
    sys.meta_path.insert(0, Sanitized(sys.argv[1]))
    from fastsal.backends import EXTENSION, EXTENSION_MISSING
    from fastsal.operators import OPERATORS

    assert EXTENSION is not None, EXTENSION_MISSING
    assert EXTENSION.__file__ == sys.argv[1]
    for threads in (1, 3):
        torch.set_num_threads(threads)
        print(json.dumps({name: drive(name, sys.argv[2]) for name in OPERATORS}), flush=True)


if __name__ == "__main__":
    main()
