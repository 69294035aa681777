"""Which rows are still attacked, where those that left have gone, and the account of both."""

from __future__ import annotations

import math
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
            rows return their start). APGD returns the best of K + 1 iterates and says K.
        right: (N,) bool, rows that the model got right at first sight (x_0, or x with decide_at="clean"); None where
            nothing looked: another loss than cross-entropy, and no cut.
        ignored: (N,) bool, rows that were never attacked: wrong, or over the cut, where that was decided.
        nonfinite: (N,) bool, rows that met a gradient that was not finite.
        live: rows in forward k = 0, 1, ... (a forward made at x, to decide there, to predict y or for "kl", is not
            among them).
        stepped: rows that took step k = 0, 1, ..., K - 1.
        row_forwards, row_backwards: rows, summed over all forwards and backwards; padding counts.
        levers: what made the attack fast ("precision", "channels_last", "fold_batch_norm", "lean_batch_norm",
            "kept_memory", "cuda_graphs", "compile", "live_rows"), and why what is off is off.
        seconds: of the whole call ("all"), in forwards and backwards ("model") and in the rest of the loop, which is
            the operators of fastsal, a loss of yours, and Python between them ("kernels"), as the host saw them; on an
            accelerator, where work is queued, it is the time to queue it, and waits for a live count are in "kernels".
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
    levers: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def live_share(self) -> list[float]:
        """Share of the batch that took step k = 0, 1, ..., K - 1."""
        return [count / max(len(self.stop_step), 1) for count in self.stepped]

    @property
    def ignored_share(self) -> float:
        """Share of the batch that was never attacked."""
        return int(self.ignored.sum()) / max(len(self.ignored), 1)

    @property
    def forwards_per_sample(self) -> float:
        return self.row_forwards / max(len(self.stop_step), 1)

    @property
    def backwards_per_sample(self) -> float:
        return self.row_backwards / max(len(self.stop_step), 1)

    @property
    def stop_histogram(self) -> dict[int, int]:
        """How many rows stopped at step -1, 0, ..., K."""
        counts = torch.bincount(self.stop_step + 1, minlength=self.steps + 2).tolist()
        return {step - 1: count for step, count in enumerate(counts)}


BUCKETS = (1.0, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 1 / 8)  # shares of a batch


class Counts:
    """The numbers of live rows, as they arrive on the host without anyone waiting for the device.

    Tests put recorded numbers in its place.
    """

    def __init__(self) -> None:
        self._arriving: list[tuple[Tensor, torch.cuda.Event | None]] = []

    def push(self, live: Tensor) -> None:
        """The number (1,) that step 0, 1, ... has left alive, on its device."""
        if live.device.type != "cuda":
            self._arriving.append((live, None))
            return
        on_host = torch.empty(1, dtype=live.dtype, pin_memory=True)
        on_host.copy_(live, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._arriving.append((on_host, arrived))

    def wait(self, step: int) -> int:
        """The number after `step`; the one wait of the host."""
        number, arrived = self._arriving[step]
        if arrived is not None:
            arrived.synchronize()
        return int(number)


class Exact:
    """The batch holds the live rows and no others. The host waits for their number at every step."""

    pads = False
    note = "exact: the batch holds no others"

    def __call__(self, live: Tensor) -> int:
        return int(live)


class WholeBatch:
    """The batch keeps its size for as long as any row is live."""

    pads = True

    def __init__(self, samples: int, note: str = "off: the batch keeps its size") -> None:
        self.samples, self.note = samples, note

    def __call__(self, live: Tensor) -> int:
        return self.samples if int(live) else 0


class Buckets:
    """The batch has one of six sizes, by a number of live rows that is one step older than the newest.

    Counts never grow, so that an old one is a safe upper bound, and the device has work queued while the host waits.
    """

    pads = True
    note = "buckets: the batch has one of six sizes"

    def __init__(self, samples: int, counts: Counts) -> None:
        self.sizes = sorted({max(1, math.ceil(share * samples)) for share in BUCKETS})
        self.counts, self.pushed = counts, 0

    def __call__(self, live: Tensor) -> int:
        self.counts.push(live)
        self.pushed += 1
        return self._bucket(self.counts.wait(self.pushed - 2)) if self.pushed > 1 else self.sizes[-1]

    def newest(self) -> int:
        """The bucket of the newest number; for a later step, when it has arrived."""
        return self._bucket(self.counts.wait(self.pushed - 1))

    def _bucket(self, most: int) -> int:
        return next((size for size in self.sizes if size >= most), self.sizes[-1]) if most else 0


Sizing = Exact | WholeBatch | Buckets


@dataclass
class LiveRows:
    """The live rows of one attack, as index vectors that the operators take; None stands for 0, 1, 2, ...

    ``ids``: the sample of each live row, -1 for padding. ``rows``: its slot in the batch of the last forward, from
    which the next step gathers. ``origin``: the slot, one batch before, of each row of the batch at hand, to which a
    crossed row goes back. ``count``: rows of the next batch, padding included.
    """

    x: Tensor
    steps: int
    sizing: Sizing = field(default_factory=Exact)
    rows: Tensor | None = None
    ids: Tensor | None = None
    origin: Tensor | None = None
    live: list[int | Tensor] = field(default_factory=list)
    stepped: list[int | Tensor] = field(default_factory=list)
    row_forwards: int = 0
    row_backwards: int = 0
    right: Tensor | None = None

    def __post_init__(self) -> None:
        samples = self.x.shape[0]
        self.count = samples
        self.result = empty_rows(self.x, samples)
        self.stop = torch.full((samples,), self.steps, dtype=torch.int64, device=self.x.device)
        self._alive: int | Tensor = samples
        self._rooms: list[Tensor] = []
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
        self.count = 0 if last else self.sizing(live)
        self.rows, self.ids = rows[: self.count], ids[: self.count]
        self._alive = live if self.sizing.pads else self.count
        if right is not None:
            self._attacked = self.ids

    def leave_here(self, current: Tensor, leaving: Tensor, step: int) -> None:
        """Rows leave with their `current` point, x_step, where :meth:`retire` gives them the one before."""
        self.origin = None
        self.retire(current, current, None, leaving, step + 1)

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

    def padded(self) -> Tensor | None:
        """Zeros for the next batch where it has padding, which is never written; None where it has none."""
        if not self.sizing.pads or self.ids is None:
            return None
        return empty_rows(self.x, self.count).zero_()

    def room(self, step: int) -> Tensor | None:
        """Where the next points go; None: into memory of their own.

        On an accelerator, where filling with zeros would be a launch, two rooms take turns.
        """
        if not self.sizing.pads or self.ids is None or self.x.device.type == "cpu":
            return self.padded()
        if not self._rooms:
            self._rooms = [empty_rows(self.x, self.count).zero_() for _ in range(2)]
        return self._rooms[step % 2][: self.count]

    def shrunk(self, x_k: Tensor) -> Tensor:
        """The batch without rows that are known by now to be padding, where no row leaves any more."""
        if isinstance(self.sizing, Buckets) and self.ids is not None:
            self.count = min(self.count, self.sizing.newest())
            self.ids, x_k = self.ids[: self.count], x_k[: self.count]
        return x_k

    def forwarded(self, rows: int, iterate: bool = True) -> None:
        self.row_forwards += rows
        if iterate:
            self.live.append(self._alive)

    def backwarded(self, rows: int, nonfinite: Tensor) -> None:
        self.row_backwards += rows
        self.stepped.append(self._alive)
        self._nonfinite.append((self.ids, nonfinite))

    def info(self, levers: dict[str, str], seconds: dict[str, float]) -> AttackInfo:
        samples = self.x.shape[0]
        nonfinite = torch.zeros(samples, dtype=torch.bool, device=self.x.device)
        for ids, flags in self._nonfinite:
            nonfinite[flags if ids is None else ids[flags & (ids >= 0)]] = True
        ignored = torch.zeros_like(nonfinite)
        if self._attacked is not None:
            ignored[:] = True
            ignored[self._attacked[self._attacked >= 0]] = False
        stepped = [int(count) for count in self.stepped if int(count)]
        return AttackInfo(
            steps=self.steps,
            stop_step=self.stop,
            right=self.right,
            ignored=ignored,
            nonfinite=nonfinite,
            live=[int(count) for count in self.live if int(count)],
            stepped=stepped + [0] * (self.steps - len(stepped)),
            row_forwards=self.row_forwards,
            row_backwards=self.row_backwards,
            levers=levers,
            seconds=seconds,
        )
