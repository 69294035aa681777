"""Which rows are still attacked, where those that left have gone, and the account of both."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastsal.operators import empty_rows

_retire = torch.ops.fastsal.retire.default


@dataclass(frozen=True)
class AttackInfo:
    """What an attack did.

    Attributes:
        steps: K, the number of steps asked for.
        stop_step: (N,) int64, k of the returned iterate x_k; -1 for a row that never left x (or x_0, when ignored
            rows return their start).
        right: (N,) bool, rows that the model got right at first sight (x_0, or x with decide_at="clean"); None where
            nothing looked: another loss than cross-entropy, and no cut.
        ignored: (N,) bool, rows that were never attacked: wrong, or over the cut, where that was decided.
        nonfinite: (N,) bool, rows that met a gradient that was not finite.
        live: rows in forward k = 0, 1, ... (a forward made to decide at x, or to predict y, is not among them).
        stepped: rows that took step k = 0, 1, ..., K - 1.
        row_forwards, row_backwards: rows, summed over all forwards and backwards.
    """

    steps: int
    stop_step: Tensor
    right: Tensor | None
    ignored: Tensor
    nonfinite: Tensor
    live: list[int]
    stepped: list[int]
    row_forwards: int
    row_backwards: int

    @property
    def live_share(self) -> list[float]:
        """Share of the batch that took step k = 0, 1, ..., K - 1."""
        return [count / max(len(self.stop_step), 1) for count in self.stepped]


@dataclass
class LiveRows:
    """The live rows of one attack, as index vectors that the operators take; None stands for 0, 1, 2, ...

    ``ids``: the sample of each live row. ``rows``: its slot in the batch of the last forward, from which the next
    step gathers. ``origin``: the slot, one batch before, of each row of the batch at hand, to which a crossed row
    goes back.
    """

    x: Tensor
    steps: int
    rows: Tensor | None = None
    ids: Tensor | None = None
    origin: Tensor | None = None
    live: list[int] = field(default_factory=list)
    stepped: list[int] = field(default_factory=list)
    row_forwards: int = 0
    row_backwards: int = 0
    right: Tensor | None = None

    def __post_init__(self) -> None:
        samples = self.x.shape[0]
        self.count = samples
        self.result = empty_rows(self.x, samples)
        self.stop = torch.full((samples,), self.steps, dtype=torch.int64, device=self.x.device)
        self._attacked: Tensor | None = None
        self._nonfinite: list[tuple[Tensor | None, Tensor]] = []

    def retire(
        self,
        previous: Tensor,
        current: Tensor,
        right: Tensor | None,
        over: Tensor | None,
        step: int,
        last: bool = False,
    ) -> None:
        rows, ids, live = _retire(
            previous, current, right, over, self.origin, self.ids, self.result, self.stop, step, last
        )
        self.count = int(live)  # the one wait of a step
        self.rows, self.ids = rows[: self.count], ids[: self.count]
        if right is not None:
            self._attacked = self.ids

    def compacted(self) -> None:
        """The batch at hand now holds the live rows only, in order."""
        self.origin, self.rows = self.rows, None

    def finish(self, current: Tensor) -> None:
        """Every row that is still live ends at `current`."""
        if self.ids is None:
            self.result = current
        elif self.count:
            self.origin = None
            self.retire(current, current, None, None, self.steps, last=True)

    def forwarded(self, rows: int, iterate: bool = True) -> None:
        self.row_forwards += rows
        if iterate:
            self.live.append(rows)

    def backwarded(self, rows: int, nonfinite: Tensor) -> None:
        self.row_backwards += rows
        self.stepped.append(self.count)
        self._nonfinite.append((self.ids, nonfinite))

    def info(self) -> AttackInfo:
        samples = self.x.shape[0]
        nonfinite = torch.zeros(samples, dtype=torch.bool, device=self.x.device)
        for ids, flags in self._nonfinite:
            nonfinite[flags if ids is None else ids[flags]] = True
        ignored = torch.zeros_like(nonfinite)
        if self._attacked is not None:
            ignored[:] = True
            ignored[self._attacked] = False
        return AttackInfo(
            steps=self.steps,
            stop_step=self.stop,
            right=self.right,
            ignored=ignored,
            nonfinite=nonfinite,
            live=self.live,
            stepped=self.stepped + [0] * (self.steps - len(self.stepped)),
            row_forwards=self.row_forwards,
            row_backwards=self.row_backwards,
        )
