"""What the functions of cuda_parts.cpp must make: integers, of which Python has all."""

from __future__ import annotations

import ctypes
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from row_parts import Problem, call

SOURCE = (Path(__file__).parent / "cuda_parts.cpp").read_text()


def checks() -> Iterator[tuple[str, Problem]]:
    yield "quotients", _quotients
    yield "row order", _orders
    yield "bounds by channel", _edges
    yield "segments and threads", _sizes


def _quotients(library: ctypes.CDLL) -> str | None:
    """Of numbers on both sides of 2^32 and up to 2^63."""
    numbers = random.Random(1)
    ends = [0, 1, 2, 3, 7, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33 + 5, 2**62 - 1, 2**62, 2**62 + 1, 2**63 - 1]
    pairs = [(a, b) for a, b in itertools.product(ends, ends) if b]
    pairs += [(numbers.getrandbits(numbers.randint(1, 63)), 1 + numbers.getrandbits(numbers.randint(1, 62)))
              for _ in range(2000)]  # fmt: skip
    pairs += [(a * b + rest, b) for a, b in ((3, 2**40 + 1), (2**30, 2**32), (2**21 - 1, 2**41)) for rest in (-1, 0, 1)]
    a, b = (torch.tensor(column) for column in zip(*pairs, strict=True))
    out = torch.full_like(a, -7)
    call(library.quotients, a, b, out, len(a))
    wrong = [pair for pair, found in zip(pairs, out.tolist(), strict=True) if found != pair[0] // pair[1]]
    return f"{len(wrong)} wrong quotients, first {wrong[0]}" if wrong else None


def _orders(library: ctypes.CDLL) -> str | None:
    for channels, places in ((3, 5), (1, 7), (7, 2**33 + 1), (2**33 + 1, 5)):
        size = channels * places
        at = torch.tensor(
            sorted({min(size - 1, max(0, i)) for i in (0, 1, 2, size // 3, size // 2, size - 2, size - 1)})
        )
        logical, offset = torch.full_like(at, -7), torch.full_like(at, -7)
        call(library.orders, channels, places, at, logical, offset, len(at))
        if logical.tolist() != [i % channels * places + i // channels for i in at.tolist()]:
            return f"{channels} channels of {places}: {logical.tolist()} in order"
        if offset.tolist() != [i % places * channels + i // places for i in at.tolist()]:
            return f"{channels} channels of {places}: {offset.tolist()} in memory"
    return None


def _edges(library: ctypes.CDLL) -> str | None:
    """Segments at the start, in the middle and at the end of rows, some of them with more places than 2^31."""
    length = 40
    for (channels, places), last in itertools.product(
        ((3, 20), (5, 7), (41, 2), (1, 64), (3, 2**30), (3, 2**30 + 7), (5, 2**31 + 3), (2, 2**40)), (False, True)
    ):
        bounds, size = torch.arange(channels).double() / 8 - 1, channels * places
        bounds[0], bounds[-1] = -torch.inf, torch.inf  # none: the largest finite number stands for it
        info = torch.finfo(torch.float64)
        lows, highs = bounds.clamp(min=info.min), bounds.clamp(max=info.max)
        for first in {0, places - 1, size // 2, places * (channels - 1) - 20, size - length}:
            if not 0 <= first <= size - length:
                continue
            low, high = torch.full((2, length), torch.nan, dtype=torch.float64)
            call(library.edges, bounds, channels, places, last, first, ctypes.c_int(length), low, high)
            of = [i % channels if last else i // places for i in range(first, first + length)]
            if not torch.equal(low, lows[of]) or not torch.equal(high, highs[of]):
                return f"{channels} channels of {places} from {first}, last: {last}: {low.tolist()}, {high.tolist()}"
    return None


def _sizes(library: ctypes.CDLL) -> str | None:
    """As few turns as the largest block takes, and of the blocks that take no more the smallest, in whole warps."""
    for size in (0, 1, 6143, 6144, 6145, 12288, 12289, 2**40 + 1):
        if call(library.segments, size) != max(1, -(-size // 6144)):
            return f"{size} elements: {call(library.segments, size)} segments"
    for groups, usual in itertools.product(
        [0, 1, 31, 32, 33, 383, 384, 385, 400, 768, 769, 1500, 6144], (32, 384, 1024)
    ):
        turns = max(1, -(-groups // usual))
        expected = next(n for n in range(32, usual + 1, 32) if n * turns >= groups)
        if call(library.threads_of, groups, usual) != expected:
            return f"{groups} groups: {call(library.threads_of, groups, usual)} threads, expected {expected}"
    return None
