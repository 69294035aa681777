"""Drives the C++ bodies of a sanitized extension; run as a program, in a process with the sanitizer preloaded.

    address_sanitizer.py EXTENSION SIZE

First the shared cases, then indices and labels out of range, which the body has to refuse, and values that the contract
refuses. An access beside an operand ends the process with the sanitizer's report.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from importlib.machinery import ModuleSpec
from typing import Any

import torch


class Sanitized:
    """Finds one file in the place of fastsal._C."""

    def __init__(self, path: str) -> None:
        self.path = path

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self.path) if name == "fastsal._C" else None


def drive(name: str, size: str) -> int:
    from kernel_calls import answer, poisoned_outputs
    from kernel_cases import cases, wild_cases

    body = getattr(torch.ops.fastsal_body, name).default
    calls = 0
    for case in cases(name, size):
        answer(case, body)
        calls += 1
    for case in wild_cases(name):
        args = [a.clone() if isinstance(a, torch.Tensor) else a for a in case.args]
        assert body(*args, *poisoned_outputs(case)) == 1, f"{case.label}: not refused"
        calls += 1
    for case in cases(name, "quick"):  # values that are no radius, no bound, no point
        for label in ("eps", "alpha", "clip_min", "clip_max", "x", "x_adv"):
            for value in (math.nan, math.inf, -math.inf, -1.0):
                if isinstance(case.named.get(label), torch.Tensor):
                    named = case.named
                    named[label] = torch.full_like(named[label], value)
                    body(*named.values(), *poisoned_outputs(case))
                    calls += 1
    return calls


def main() -> None:
    sys.meta_path.insert(0, Sanitized(sys.argv[1]))
    from fastsal.backends import EXTENSION, EXTENSION_MISSING
    from fastsal.operators import OPERATORS

    assert EXTENSION is not None, EXTENSION_MISSING
    assert EXTENSION.__file__ == sys.argv[1]
    for threads in (1, 3):
        torch.set_num_threads(threads)
        print({name: drive(name, sys.argv[2]) for name in OPERATORS}, flush=True)


if __name__ == "__main__":
    main()
