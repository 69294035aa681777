"""A loader for sets that fit on the device: no workers, no per-image Python."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastsal.data.augment import PADDING, Draws, draw, gather, parse


class TensorLoader:
    """Yields batches `(x, y)` of a set that lies on the device as a whole.

    x: (B, C, H, W) float32 in [0, 1], contiguous; y: (B,) int64; both on the device, both fresh
    memory, so that changing them in place leaves the set as it is.

    The random choices of an epoch are a function of `seed` and `epoch` alone, on every device:
    set `epoch` to resume a run where it stopped. Each epoch has its own order and augmentation.

    Args:
        images: (N, C, H, W), uint8, or float32 in [0, 1]; copied to the device once, as it is.
        labels: (N,) int64.
        batch_size: at least 1.
        shuffle: whether each epoch visits the images in a new random order.
        augment: None, or "crop" (reflect-pad by 4, cut out the original size at random) and/or
            "flip" (mirror left to right with probability 1/2), as a sequence or as "crop,flip".
        device: None leaves the images where they are.
        seed: None draws one from the global CPU generator, now, by exactly one number. With a
            seed, global generators are never touched.
        drop_last: whether a last batch of fewer than batch_size images is left out.

    Attributes:
        batch_size: as given.
        num_samples: images yielded per epoch: N, less what drop_last leaves out.
        device: where the batches are.
        seed: as given or drawn.
        epoch: how many epochs have been begun; the next one uses this number.

    Raises:
        ValueError: for an argument out of range, images too small for "crop", or when drop_last
            would leave no batch at all.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int = 128,
        *,
        shuffle: bool = False,
        augment: str | Sequence[str] | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
        drop_last: bool = False,
    ) -> None:
        count = _checked_count(images, labels)
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size: expected an integer of at least 1, got {batch_size!r}")
        if drop_last and count < batch_size:
            raise ValueError(
                f"batch_size: expected at most {count}, the number of images, with "
                f"drop_last=True (else there is no batch), got {batch_size}"
            )
        self._augment = parse(augment)
        if "crop" in self._augment and min(images.shape[2:]) <= PADDING:
            raise ValueError(
                f"images: 'crop' reflects {PADDING} pixels and needs more than that in height "
                f"and width, got {tuple(images.shape[2:])}"
            )
        if seed is None:
            seed = int(torch.randint(2**63 - 1, ()))
        self.batch_size = batch_size
        self.num_samples = count - count % batch_size if drop_last else count
        self.device = images.device if device is None else torch.device(device)
        self.seed = seed
        self.epoch = 0
        self._shuffle = shuffle
        self._images = images.to(self.device).contiguous()
        self._labels = labels.to(self.device)
        # A tensor, not a number: CUDA divides by a number by multiplying with its rounded
        # inverse, which differs from the CPU in the last bit.
        self._full_scale = torch.tensor(255.0, device=self.device)

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # All that is random is drawn here, not batch by batch: one transfer an epoch, and a loop
        # that stops early or two loops side by side do not disturb each other.
        generator = torch.Generator().manual_seed(_epoch_seed(self.seed, self.epoch))
        self.epoch += 1
        count = len(self._labels)
        order = torch.randperm(count, generator=generator) if self._shuffle else None
        draws = draw(self._augment, count, generator, self.device)
        return self._batches(torch.arange(count) if order is None else order, draws)

    def _batches(self, order: Tensor, draws: Draws) -> Iterator[tuple[Tensor, Tensor]]:
        order = order.to(self.device)
        for start in range(0, self.num_samples, self.batch_size):
            stop = min(start + self.batch_size, self.num_samples)
            chosen = order[start:stop]
            x = gather(self._images, chosen, draws.batch(start, stop))
            if x.dtype == torch.uint8:
                x = x.to(torch.float32).div_(self._full_scale)
            yield x, self._labels.index_select(0, chosen)


def _checked_count(images: Tensor, labels: Tensor) -> int:
    """The number of images, after a check that images and labels are what they should be."""
    if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32):
        raise ValueError(f"images: expected (N, C, H, W) uint8 or float32, got {tuple(images.shape)} {images.dtype}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels: expected ({images.shape[0]},) int64, got {tuple(labels.shape)} {labels.dtype}")
    if images.shape[0] == 0:
        raise ValueError("images: expected at least one, got none")
    return images.shape[0]


def _epoch_seed(seed: int, epoch: int) -> int:
    """64 bits that differ for every pair; seed + epoch would make seed 1 repeat seed 0's run."""
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "little")
