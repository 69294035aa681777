"""What makes an attack fast, each part with a switch of its own, and what became of it in a call."""

from __future__ import annotations

from dataclasses import dataclass

LIVE_ROWS = ("auto", "exact", "buckets", "off")


@dataclass(frozen=True)
class Levers:
    """The switches of ``SENSE(..., fast=Levers(...))``. ``fast=True`` is ``Levers()``, ``fast=False`` all off.

    Attributes:
        live_rows: "exact" runs the model on the live rows alone, and waits for their number at every step; "buckets"
            on one of six batch sizes, from a number that is up to two steps old (no idle accelerator, shapes that
            repeat); "off" on the whole batch; "auto" is "exact" on a CPU, "buckets" elsewhere and with compile.
        channels_last: 4-D inputs and the weights of convolutions lie channels last, where the model takes that.
        fold_batch_norm: batch norm that follows a convolution directly becomes part of its weights, anew at each call.
            "auto": but for passes that CUDA graphs replay, where the folding takes longer than what it saves.
        lean_batch_norm: the others keep no input for their backward, which is a matter of memory alone. "auto": on a
            CPU; on a GPU it costs launches.
        kept_memory: what is freed during the attack stays with the process for its next layer, instead of going back to
            the system and coming again page by page. On a CPU, with glibc's malloc, for the whole process while the
            attack lasts. What it costs, and the same around a loop of yours: :func:`fastsal.kept_memory`.
        cuda_graphs: the model's forward and backward are recorded into CUDA graphs, one pair per size of batch, and
            replayed, in later attacks too: two to four times as fast where the device waits for the host. What the
            model's own Python code does beside calling torch is done while it is recorded and not again, so
            ``fastsal.evaluate`` does without. What the passes allocate, a copy of the batch, and of each weight that is
            laid out anew, stays in the memory of the device for as long as the model lives. "auto": on a CUDA device,
            while that is at most an eighth of its memory; True: however much it is.
    """

    live_rows: str = "auto"
    channels_last: bool = True
    fold_batch_norm: bool | str = "auto"
    lean_batch_norm: bool | str = "auto"
    kept_memory: bool = True
    cuda_graphs: bool | str = "auto"

    def __post_init__(self) -> None:
        if self.live_rows not in LIVE_ROWS:
            raise ValueError(f"live_rows: expected {', '.join(map(repr, LIVE_ROWS))}, got {self.live_rows!r}")
        for name in ("channels_last", "kept_memory"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: expected True or False, got {getattr(self, name)!r}")
        for name in ("fold_batch_norm", "lean_batch_norm", "cuda_graphs"):
            if not isinstance(getattr(self, name), bool) and getattr(self, name) != "auto":
                raise ValueError(f"{name}: expected True, False or 'auto', got {getattr(self, name)!r}")


OFF = Levers(
    "off", channels_last=False, fold_batch_norm=False, lean_batch_norm=False, kept_memory=False, cuda_graphs=False
)


def levers_of(fast: object) -> Levers:
    if isinstance(fast, Levers):
        return fast
    if isinstance(fast, bool):
        return Levers() if fast else OFF
    raise TypeError(f"fast: expected True, False or fastsal.Levers, got {fast!r}")
