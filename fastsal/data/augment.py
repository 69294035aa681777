"""Random crop and flip of a whole batch as one gather of pixels.

A crop of the reflect-padded image and a mirror image only say from which row and column of the
original each pixel comes. So no padded copy is made: both become index arithmetic, and one
indexing operation reads the augmented batch out of the resident images, uint8 as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PADDING = 4
"""Pixels that "crop" adds on each side, by reflection, before it cuts out the original size."""

AUGMENTATIONS = ("crop", "flip")


def parse(augment: str | Sequence[str] | None) -> tuple[str, ...]:
    """The augmentations asked for, checked.

    Args:
        augment: None, a sequence of names, or a string of names separated by commas.

    Raises:
        ValueError: for a name that is unknown or given twice.
    """
    if augment is None:
        return ()
    if isinstance(augment, str):
        names = tuple(name.strip() for name in augment.split(",") if name.strip())
    else:
        names = tuple(augment)
    for name in names:
        if name not in AUGMENTATIONS:
            raise ValueError(f"augment: expected names out of {AUGMENTATIONS}, got {name!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"augment: expected each name once, got {names}")
    return names


@dataclass(frozen=True)
class Draws:
    """The random choices for N images, None where an augmentation is off.

    Attributes:
        top, left: (N,) int64 in 0..2*PADDING, where the crop starts in the padded image.
        mirrored: (N,) bool, which images are flipped left to right.
    """

    top: Tensor | None
    left: Tensor | None
    mirrored: Tensor | None

    def batch(self, start: int, stop: int) -> Draws:
        """The choices for images start..stop-1."""
        fields = (self.top, self.left, self.mirrored)
        return Draws(*(None if values is None else values[start:stop] for values in fields))


def draw(names: Sequence[str], count: int, generator: torch.Generator, device: torch.device) -> Draws:
    """Choices for `count` images: drawn on the CPU, so they are the same for every device."""
    top = left = mirrored = None
    if "crop" in names:
        top, left = torch.randint(2 * PADDING + 1, (2, count), generator=generator).to(device)
    if "flip" in names:
        mirrored = torch.randint(2, (count,), generator=generator).bool().to(device)
    return Draws(top, left, mirrored)


def gather(images: Tensor, chosen: Tensor, draws: Draws) -> Tensor:
    """Augmented copies of some images.

    Args:
        images: (N, C, H, W).
        chosen: (B,) int64, which images.
        draws: the choices for those B images.

    Returns:
        (B, C, H, W), dtype and device of `images`, contiguous.
    """
    if draws.top is None and draws.mirrored is None:
        return images.index_select(0, chosen)
    channels, height, width = images.shape[1:]
    rows = _window(height, draws.top, images.device)
    columns = _window(width, draws.left, images.device)
    if draws.mirrored is not None:
        columns = torch.where(draws.mirrored[:, None], columns.flip(1), columns)
    return images[
        chosen[:, None, None, None],
        torch.arange(channels, device=images.device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ].contiguous()


def _window(size: int, start: Tensor | None, device: torch.device) -> Tensor:
    """(B, size) source positions of crops that start at `start`; (1, size) without a crop."""
    position = torch.arange(size, device=device)[None, :]
    if start is None:
        return position
    # Fold what sticks out back at either end; the edge pixel itself is not repeated.
    position = (position + start[:, None] - PADDING).abs()
    return (size - 1) - (size - 1 - position).abs()
