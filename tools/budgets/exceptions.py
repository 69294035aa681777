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
    "the search for topk and the projection keep sums and bounds of a row and two inlined divisions; "
    "one block reads a row that is longer than the chip again and again"
)
_CHUNKS = (
    "two online softmaxes, their divergence and the classes that are impossible for adv, four lanes of each a thread; "
    "under a limit of 40 registers 364 bytes are spilled"
)


EXEMPT: tuple[Exempt, ...] = (
    Exempt("triton", "l1_step_in_chunks", "occupancy", 0.25, _L1, ("sm_80", "sm_90", "sm_100")),
    Exempt("triton", "l1_step_in_chunks", "occupancy", 0.5, _L1, ("gfx942",)),
    Exempt(
        "triton",
        "linf_start",
        "occupancy",
        0.5,
        "four chains of Philox at once in channels_last, 62 registers; a limit of 40 spills 192 bytes",
        ("sm_80",),
        "channels last",
    ),
    Exempt("triton", "divergence_in_chunks", "occupancy", 0.25, _CHUNKS, ("sm_80",)),
    Exempt("triton", "divergence_in_chunks", "occupancy", 0.5, _CHUNKS, ("sm_90", "sm_100")),
    Exempt("triton", "divergence_in_chunks", "spills", 16, _CHUNKS, ("sm_80",)),
    Exempt("triton", "divergence_in_chunks", "stack", 8, _CHUNKS, ("sm_80",)),
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
