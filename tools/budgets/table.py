"""docs/kernel_budgets.md: made from budgets, one section per kernel, one line per variant, one column per target."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence

from tools.budgets.budget import OCCUPANCY_FLOOR, Budget
from tools.budgets.exceptions import EXEMPT, Exempt
from tools.budgets.targets import TARGETS

INTRODUCTION = """# Budgets of the GPU kernels

Written by `python -m tools.budgets --write`, compared with the build by `make test-device-code`: do not edit. No GPU
takes part: the numbers are read from compiled code. CUDA kernels are compiled by nvcc with the flags of `setup.py`, all
instances of them; Triton kernels are compiled ahead of time as their launchers launch them, for the calls named here.
Row passes, launches and access widths of the CUDA kernels are counted where they run, by
`tests/test_cuda_emulated_budgets.py` and `tests/test_cuda_emulated_losses.py`; of Triton's launches each is a line.

What is asked of every kernel on every target:

- no *spill* and no *stack*: where there is one, the cell says how many bytes of a thread;
- *128-bit*: loads / stores of 128 bits in the code, the fewest of all targets, and how many are due when each operand
  of a row moves 16 bytes at a time wherever a thread has so much of it (16-bit gradients beside fp32 move in 8 bytes).
  Asked of rows of a multiple of 8 elements on a 16-byte base; any other row takes the scalar path, marked `any`;
- *fma*: multiply-adds that a compiler fused: 0. Divisions and square roots consist of such instructions; their number,
  in parentheses, appears only in kernels that divide or take roots. Read from PTX and SASS, LLVM IR and GCN assembly;
- *occupancy*: at least FLOORS. It is the share of a multiprocessor's warps that are resident: whole blocks, as many as
  the least of: its blocks; warps / warps of a block; warps whose registers fit / warps of a block; shared memory /
  shared memory of a block. Units in which registers and shared memory are given stand in `tools/budgets/targets.py`.

A cell reads *registers of a thread* · *occupancy*; what breaks a budget is **bold**.
"""


def _cell(budget: Budget) -> str:
    broken = budget.broken()
    share = f"{budget.occupancy:.0%}"
    words = [str(budget.registers), f"**{share}**" if "occupancy" in broken else share]
    words += [f"**spill {budget.spills}**"] * ("spills" in broken) + [f"**stack {budget.stack}**"] * ("stack" in broken)
    return " · ".join(words)


def _line(budgets: Sequence[Budget], targets: Sequence[str]) -> str:
    """The same variant of a kernel on all targets."""
    first, by_target = budgets[0], {budget.target: budget for budget in budgets}
    loads, stores = min(b.wide_loads for b in budgets), min(b.wide_stores for b in budgets)
    width = f"{loads}/{stores} of {first.loads_due}/{first.stores_due}" if first.aligned else "any"
    if any({"loads", "stores"} & b.broken().keys() for b in budgets):
        width = f"**{width}**"
    fused, divided = max(b.fused for b in budgets), max(b.fused_in_division for b in budgets)
    fma = (f"**{fused}**" if fused else "0") + (f" ({divided})" if divided else "")
    threads, shared = max(b.threads for b in budgets), max(b.shared for b in budgets)
    cells = [_cell(by_target[target]) if target in by_target else "" for target in targets]
    return f"| {' | '.join([first.call, str(threads), str(shared), width, fma, *cells])} |\n"


def _section(budgets: Sequence[Budget]) -> str:
    first = budgets[0]
    targets = [target for target in TARGETS if any(b.target == target for b in budgets)]
    head = ["for", "threads", "shared", "128-bit", "fma", *targets]
    calls = {b.call: [] for b in budgets}  # type: dict[str, list[Budget]]
    for budget in budgets:
        calls[budget.call].append(budget)
    floor = OCCUPANCY_FLOOR[first.kind]
    lines = "".join(_line(variant, targets) for variant in calls.values())
    kind = f"{first.kind}: at least {floor:.0%}"
    return f"\n### {first.kernel} ({kind})\n\n| {' | '.join(head)} |\n{'|---' * len(head)}|\n{lines}"


def backend_part(backend: str, version: str, budgets: Sequence[Budget]) -> str:
    """All that the table says of one backend."""
    kinds = sorted({(b.kernel, b.kind) for b in budgets}, key=lambda k: [(b.kernel, b.kind) for b in budgets].index(k))
    sections = [_section([b for b in budgets if (b.kernel, b.kind) == kind]) for kind in kinds]
    return f"\n## {backend} ({version})\n{''.join(sections)}"


def render(parts: Mapping[str, str], exempt: Sequence[Exempt] = EXEMPT) -> str:
    floors = " and ".join(f"{floor:.0%} ({kind})" for kind, floor in OCCUPANCY_FLOOR.items())
    limits = "".join(
        f"| {name} | {t.warps} of {t.warp} threads | {t.blocks} | {t.registers} | {t.shared // 1024} KiB |\n"
        for name, t in TARGETS.items()
    )
    debts = "".join(
        f"| {e.backend} {e.kernel}{f' ({e.calls})' if e.calls else ''} | {', '.join(e.targets) or 'all'} "
        f"| {e.budget} | {f'{e.measured:.1%}' if e.budget == 'occupancy' else f'{e.measured:g}'} | {e.reason} |\n"
        for e in exempt
    )
    head = INTRODUCTION.replace("FLOORS", floors)
    head += (
        "\nA multiprocessor holds:\n\n| target | warps | blocks | registers | shared |\n|---|---|---|---|---|\n"
        + limits
    )
    head += "\n## Budgets that are not kept\n\n"
    if exempt:
        head += "Measured at worst; doing worse fails the check, and so does doing better without a correction here "
        head += "(`tools/budgets/exceptions.py`).\n\n"
        head += "| kernel | targets | budget | measured | reason |\n|---|---|---|---|---|\n" + debts
    else:
        head += "None.\n"
    return head + "".join(parts.values())


def part_of(written: str, backend: str) -> tuple[str, str]:
    """(version, text) of a backend's part of a written table; empty where there is none."""
    found = re.search(rf"^\n## {backend} \(([^)\n]*)\)\n.*?(?=^\n## |\Z)", written, re.MULTILINE | re.DOTALL)
    return (found[1], found[0]) if found else ("", "")


def differences(written: str, built: str) -> list[str]:
    """The lines that are not the same, as a diff shows them."""
    lines = difflib.unified_diff(written.splitlines(), built.splitlines(), "written", "built", lineterm="", n=0)
    return list(itertools.islice((line for line in lines if not line.startswith(("---", "+++", "@@"))), 200))
