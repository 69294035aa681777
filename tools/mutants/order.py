"""Which check is tried first: the one that is likeliest to catch a mutant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from tools.mutants.mutation import Mutation


class _Timed(Protocol):
    @property
    def seconds(self) -> float: ...


Check = TypeVar("Check", bound=_Timed)
NEAR = 8  # lines


class Order(Generic[Check]):
    """Checks that caught the neighbours first; then by what they cost and how often they caught something."""

    def __init__(self) -> None:
        self._near: dict[tuple[str, int], Check] = {}
        self._kills: Counter[Check] = Counter()

    def caught(self, mutation: Mutation, by: Check) -> None:
        self._near[mutation.path, mutation.line] = by
        self._kills[by] += 1

    def __call__(self, mutation: Mutation, checks: Sequence[Check]) -> list[Check]:
        near = [self._near.get((mutation.path, mutation.line - back)) for back in range(NEAR)]
        first = {check for check in near if check is not None}
        rest = sorted(checks, key=lambda check: check.seconds / (1 + self._kills[check]))
        return sorted(rest, key=lambda check: check not in first)  # stable
