"""docs/kernel_budgets.md: written from budgets, and compared with them row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tools.budgets.budget import OCCUPANCY_FLOOR, Budget
from tools.budgets.targets import TARGETS

INTRODUCTION = """# Budgets of the GPU kernels

Written by `python -m tools.budgets --write`, compared with the build by `python -m tools.budgets --check`: do not edit.
No GPU is needed: the numbers come from the compiled code, the launches and row passes from counted runs.

- *rows*: `aligned` has rows of a multiple of 8 elements on a 16-byte base, `any` has any others (the scalar path).
- *regs*, *spill*, *stack*: per thread; *shared*: bytes per block. Spills and stack must be 0.
- *128-bit*: loads / stores of 128 bits in the code, of the row operands read / written: one each for aligned rows.
- *narrow*: other accesses to elements of aligned rows; must be 0.
- *fma*: fused multiply-adds; must be 0 where the contract fixes the rounding; `free` elsewhere.
- *launches*, *passes*: of the whole operator: kernels started, and rows read + written per row, in bytes of a row of x.
- *occupancy*: resident warps / most warps, by the formula `blocks = min(blocks, warps / warps of a block, registers,
  shared memory)` of `tools/budgets/targets.py`; at least FLOORS.

Per multiprocessor:

| target | warps | blocks | registers | shared |
|---|---|---|---|---|
"""
HEAD = (
    "| backend | kernel | dtypes | rows | target | kind | threads | regs | spill | stack | shared | 128-bit | narrow "
    "| fma | launches | passes | occupancy |\n" + "|---" * 17 + "|\n"
)


def _count(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


COLUMNS: dict[str, Callable[[Budget], object]] = {
    "backend": lambda b: b.backend,
    "kernel": lambda b: b.kernel,
    "dtypes": lambda b: b.dtypes,
    "rows": lambda b: b.rows,
    "target": lambda b: b.target,
    "kind": lambda b: b.kind,
    "threads": lambda b: b.threads,
    "regs": lambda b: b.registers,
    "spill": lambda b: b.spills,
    "stack": lambda b: b.stack,
    "shared": lambda b: b.shared,
    "128-bit": lambda b: f"{b.wide_loads}/{b.wide_stores} of {b.operands_read}/{b.operands_written}",
    "narrow": lambda b: b.narrow,
    "fma": lambda b: "free" if b.fused_allowed else b.fused,
    "launches": lambda b: b.launches,
    "passes": lambda b: f"{_count(b.reads)} + {_count(b.writes)}",
    "occupancy": lambda b: f"{b.occupancy:.0%}",
}
KEY = 5  # the columns that name a row


def line(budget: Budget) -> str:
    return "| " + " | ".join(str(column(budget)) for column in COLUMNS.values()) + " |"


def render(budgets: Sequence[Budget]) -> str:
    floors = ", ".join(f"{floor:.0%} ({kind})" for kind, floor in OCCUPANCY_FLOOR.items())
    limits = "".join(
        f"| {name} | {t.warps} of {t.warp} threads | {t.blocks} | {t.registers} | {t.shared // 1024} KiB |\n"
        for name, t in TARGETS.items()
    )
    rows = "".join(line(budget) + "\n" for budget in budgets)
    return f"{INTRODUCTION.replace('FLOORS', floors)}{limits}\n{HEAD}{rows}"


def differences(written: str, budgets: Sequence[Budget], skipped: tuple[str, ...]) -> list[str]:
    """How the table and the build differ, a sentence for each row; rows of a skipped backend are left alone."""
    known = {}
    for text in written[written.find(HEAD) + len(HEAD) :].splitlines() if HEAD in written else ():
        cells = [cell.strip() for cell in text.strip("|").split("|")]
        if cells[0] not in skipped:
            known[tuple(cells[:KEY])] = cells
    found = []
    for budget in budgets:
        cells = [str(column(budget)) for column in COLUMNS.values()]
        old = known.pop(tuple(cells[:KEY]), None)
        if old is None:
            found.append(f"{budget.name}: not in the table")
        elif old != cells:
            changed = [
                f"{name} {was} -> {now}" for name, was, now in zip(COLUMNS, old, cells, strict=True) if was != now
            ]
            found.append(f"{budget.name}: {', '.join(changed)}")
    return found + [f"{' '.join(key)}: in the table, but not built" for key in known]
