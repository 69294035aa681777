"""Models that expect normalised images, attacked in pixel units."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalize:
    """(x - mean) / std, one number or one per channel (dimension 1), as a part of the model that is attacked."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, pair: object) -> Normalize:
        """From (mean, std), each a number, a sequence or a tensor of one number per channel."""
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"normalize: expected a pair (mean, std), got {pair!r}")
        mean, std = _numbers("mean", pair[0]), _numbers("std", pair[1])
        if min(std) <= 0:
            raise ValueError(f"normalize: expected every std > 0, got {pair[1]!r}")
        return cls(mean, std)

    def on(self, x: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The same for points like x, in `dtype`."""
        for name, value in (("mean", self.mean), ("std", self.std)):
            if len(value) not in (1, x.shape[1]):
                raise ValueError(
                    f"normalize: expected one {name} or one for each of {x.shape[1]} channels, got {len(value)}"
                )
        shape = (1, -1) + (1,) * (x.dim() - 2)
        mean, std = (torch.tensor(value, dtype=dtype, device=x.device).view(shape) for value in (self.mean, self.std))
        return lambda points: (points - mean) / std


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    try:
        numbers = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().reshape(-1).tolist()
    except (TypeError, ValueError) as error:
        raise ValueError(f"normalize: expected {name} to be a number, or one per channel, got {value!r}") from error
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"normalize: expected {name} to be finite numbers, got {value!r}")
    return tuple(numbers)
