"""Batches to time a step on: small enough for the cache, and so many large ones that none is found there."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

EPS, ALPHA = 8 / 255, 2 / 255
SIZES = {  # in cache, in cache, out of cache
    "256x1x28x28": (256, 1, 28, 28),
    "128x3x32x32": (128, 3, 32, 32),
    "64x3x224x224": (64, 3, 224, 224),
}
PASSES = 4  # the budget of a Linf step: x, x_adv, grad, next


def last_level_cache() -> int:
    """Bytes, as the system reports them; 32 MiB where it does not."""
    names = getattr(os, "sysconf_names", {})
    size = os.sysconf("SC_LEVEL3_CACHE_SIZE") if "SC_LEVEL3_CACHE_SIZE" in names else 0
    return size if size > 0 else 32 * 2**20


@dataclass
class StepInputs:
    x: Tensor
    x_adv: Tensor
    grad: Tensor
    out: Tensor  # room for the next point
    flags: Tensor


class Rotation:
    """Batches in turn. One where it fits the cache; otherwise so many that twice the cache lies between two uses."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        bytes_per_batch = PASSES * 4 * math.prod(shape)
        fits = bytes_per_batch < last_level_cache() / 2
        count = 1 if fits else 2 + 2 * last_level_cache() // bytes_per_batch
        generator = torch.Generator().manual_seed(1)
        self.batches = [self._batch(shape, generator) for _ in range(count)]
        self.bytes_per_step = bytes_per_batch
        self._turns = cycle(self.batches)

    @staticmethod
    def _batch(shape: tuple[int, ...], generator: torch.Generator) -> StepInputs:
        x = torch.rand(shape, generator=generator)
        noise = EPS * (2 * torch.rand(shape, generator=generator) - 1)
        grad = torch.randn(shape, generator=generator)
        flags = torch.zeros(shape[0], dtype=torch.bool)
        return StepInputs(x, (x + noise).clamp_(0, 1), grad, torch.zeros_like(x), flags)

    def next(self) -> StepInputs:
        return next(self._turns)
