"""How the programs that share a row agree on one flag within one launch.

Each row has a 64-bit counter: its low half counts programs that are done, its high half those that saw something. The
last program to arrive writes the flag and sets the counter back to zero, so that no launch has to clear it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_COUNTERS: dict[tuple[torch.device, int], Tensor] = {}


def counters(like: Tensor, rows: int) -> Tensor:
    """At least `rows` counters at zero, for launches on the current stream of the device of `like`.

    They belong to one stream: launches on it follow each other, and each leaves zeros behind. A graph capture gets
    counters of its own, cleared by a node of the graph, since what is captured does not run now.
    """
    if not like.is_cuda:
        return torch.zeros(rows, dtype=torch.int64, device=like.device)
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(rows, dtype=torch.int64, device=like.device)
    key = (like.device, torch.cuda.current_stream(like.device).cuda_stream)
    if key not in _COUNTERS or _COUNTERS[key].shape[0] < rows:
        _COUNTERS[key] = torch.zeros(max(rows, 1024), dtype=torch.int64, device=like.device)
    return _COUNTERS[key]


@triton.jit
def flag_row(flags, counter, row, seen, programs, SPLIT: tl.constexpr):
    """flags[row] = whether any of the `programs` of this row has `seen` (0 or 1) something."""
    if SPLIT:
        before = tl.atomic_add(counter + row, (seen.to(tl.int64) << 32) + 1, sem="relaxed")
        if (before & 0xFFFFFFFF) + 1 == programs:
            tl.store(flags + row, ((before >> 32) + seen) > 0)
            tl.store(counter + row, tl.full((), 0, tl.int64))
    else:
        tl.store(flags + row, seen > 0)
