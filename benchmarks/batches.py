"""Batches to time an operator on: one where it fits the cache, else so many that none is found there again."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

import fastsal  # noqa: F401  defines the operators
from benchmarks import where
from benchmarks.where import here

PIXELS = {  # in cache, in cache, out of cache
    "256x1x28x28": (256, 1, 28, 28),
    "128x3x32x32": (128, 3, 32, 32),
    "64x3x224x224": (64, 3, 224, 224),
}
LOGITS = {"256x10": (256, 10), "256x1000": (256, 1000), "8x100000": (8, 100_000)}
REACH = {math.inf: (8 / 255, 2 / 255), 2.0: (0.5, 0.125), 1.0: (12.0, 3.0)}  # eps and alpha by p
CUT = math.log(2)
ROOM = 4  # full-size operands of a batch of pixels: x, x_adv, grad and the next point


def last_level_cache() -> int:
    """Bytes of that of the device measured; of a CPU as the system reports them, 32 MiB where it does not."""
    if where.device().type == "cuda":
        return int(torch.cuda.get_device_properties(where.device()).L2_cache_size)
    names = getattr(os, "sysconf_names", {})
    size = os.sysconf("SC_LEVEL3_CACHE_SIZE") if "SC_LEVEL3_CACHE_SIZE" in names else 0
    return size if size > 0 else 32 * 2**20


@dataclass
class Pixels:
    x: Tensor
    x_adv: Tensor
    grad: Tensor
    out: Tensor


@dataclass
class Batch:
    """The arguments of one call, the memory of its results, and two operands of which one is copied to the other."""

    arguments: tuple[Any, ...]
    outs: tuple[Tensor, ...]
    source: Tensor
    target: Tensor
    pixels: Pixels | None = None


class Rotation:
    """Batches in turn."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches
        self._turns = cycle(batches)

    def next(self) -> Batch:
        return next(self._turns)


def turns_past_cache(bytes_of_a_call: int) -> int:
    """So many that twice the cache lies between two uses of one batch."""
    return 2 + 2 * last_level_cache() // bytes_of_a_call


def pixels(shape: tuple[int, ...], p: float) -> list[Pixels]:
    """As in the middle of an attack: x_adv somewhere in the ball."""
    of_a_batch = ROOM * 4 * math.prod(shape)
    count = 1 if of_a_batch < last_level_cache() / 2 else turns_past_cache(of_a_batch)
    eps, low, high = here(torch.tensor([REACH[p][0]])), here(torch.zeros(1)), here(torch.ones(1))
    generator = torch.Generator().manual_seed(1)
    made = []
    for turn in range(count):
        x, grad = (here(draw(shape, generator=generator)) for draw in (torch.rand, torch.randn))
        x_adv = torch.ops.fastsal.random_start(x, eps, here(torch.tensor(turn)), None, low, high, None, p)
        made.append(Pixels(x, x_adv, grad, torch.zeros_like(x)))
    return made
