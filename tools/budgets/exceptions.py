"""Budgets that are not kept: which, how far off, and why. The floors stay what they are; each line here is a debt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tools.budgets.budget import Budget


@dataclass(frozen=True)
class Exempt:
    """Kernels that break one budget. The worst of them measures exactly `measured`: none may do worse, and where all do
    better the line has to be corrected."""

    backend: str
    kernel: str
    budget: str  # a key of Budget.broken
    measured: float
    reason: str
    targets: tuple[str, ...] = ()  # all
    calls: str = ""  # part of the call; all

    def covers(self, budget: Budget) -> bool:
        named = (budget.backend, budget.kernel) == (self.backend, self.kernel) and self.calls in budget.call
        return named and (not self.targets or budget.target in self.targets)


_L1 = (
    "channel, bounds and row-major index of four elements a thread, in fp64 arithmetic; a limit of 40 registers spills"
)
_MARGIN = (
    "four lanes of three keys and their classes, equal keys by class; without a limit of 40 registers occupancy falls"
)
_SM = ("sm_80", "sm_90", "sm_100")

EXEMPT: tuple[Exempt, ...] = (
    Exempt("triton", "l1_moves_in_chunks", "occupancy", 0.5, _L1, _SM, "channels last"),
    Exempt("triton", "l1_shrinkage_in_chunks", "occupancy", 0.5, _L1, _SM, "channels last"),
    Exempt("triton", "l1_segment", "occupancy", 0.5, _L1, _SM, "channels last"),
    Exempt("triton", "margin", "spills", 56, _MARGIN, ("sm_100",), "DLR"),
    Exempt("triton", "margin", "stack", 16, _MARGIN, ("sm_100",), "DLR"),
)

HIGHER_IS_BETTER = ("occupancy", "loads", "stores")


def value_of(budget: Budget, broken: str) -> float:
    values = {
        "spills": budget.spills,
        "stack": budget.stack,
        "occupancy": round(budget.occupancy, 4),
        "loads": budget.wide_loads,
        "stores": budget.wide_stores,
        "fused": budget.fused,
    }
    return values[broken]


def faults(budgets: Sequence[Budget], exempt: Sequence[Exempt] = EXEMPT) -> list[str]:
    """Every broken budget that no line excuses, and every line that does not say how things are."""
    found, worst = [], {}
    backends = {budget.backend for budget in budgets}
    for budget in budgets:
        for what, words in budget.broken().items():
            value, excused = value_of(budget, what), False
            for line in exempt:
                if line.budget == what and line.covers(budget):
                    better = value >= line.measured if what in HIGHER_IS_BETTER else value <= line.measured
                    pick = min if what in HIGHER_IS_BETTER else max
                    worst[line] = pick(worst.get(line, value), value)
                    excused |= better
            if not excused:
                found.append(f"{budget.name} on {budget.target}: {words}")
    for line in exempt:
        if line.backend in backends and worst.get(line) != line.measured:
            now = f"now {worst[line]:g} at worst" if line in worst else "kept by now"
            found.append(f"exceptions: {line.backend} {line.kernel}, {line.budget} {line.measured:g}: {now}")
    return found
