"""What only the data can tell, gathered on its device and read in one copy to the host: one wait per attack call."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Check = Callable[[list[float]], None]


class Facts:
    """Reductions of tensors, and what is to be said when one of them is not as it should be."""

    def __init__(self) -> None:
        self._facts: list[Tensor] = []
        self._checks: list[tuple[int, Check]] = []

    def expect(self, facts: list[Tensor], check: Check) -> None:
        """`check` gets the numbers behind `facts`, one-element tensors on one device, when they are read."""
        self._facts += [fact.reshape(1).to(torch.float64) for fact in facts]
        self._checks.append((len(facts), check))

    def read(self) -> None:
        """Reads all of them and checks in the order in which they were asked for; nothing is looked at twice."""
        facts, checks = self._facts, self._checks
        self._facts, self._checks = [], []
        if not facts:
            return
        numbers: list[float] = torch.cat(facts).tolist()
        for count, check in checks:
            given, numbers = numbers[:count], numbers[count:]
            check(given)
