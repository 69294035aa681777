"""What every source of data turns into: a Dataset with a train and a test Split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastsal.data.errors import DataError
from fastsal.data.loader import TensorLoader


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images and their labels.

    Attributes:
        images: (N, C, H, W), uint8 in 0..255, or float32 in [0, 1].
        labels: (N,), int64, class indices from 0.

    Raises:
        DataError: if a shape, a type or a range is another one, or N = 0.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4:
            raise DataError(f"images: expected shape (N, C, H, W), got {tuple(self.images.shape)}")
        if self.images.dtype not in (torch.uint8, torch.float32):
            raise DataError(f"images: expected uint8 or float32, got {self.images.dtype}")
        if self.labels.dtype != torch.int64:
            raise DataError(f"labels: expected int64, got {self.labels.dtype}")
        if self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"labels: expected one per image, shape ({self.images.shape[0]},), got {tuple(self.labels.shape)}"
            )
        if self.images.numel() == 0:
            raise DataError(f"images: expected at least one pixel, got {tuple(self.images.shape)}")
        if self.images.dtype == torch.float32:
            low, high = (float(bound) for bound in self.images.aminmax())
            # Written so that NaN, for which every comparison is false, is refused too.
            if not (low >= 0.0 and high <= 1.0):
                raise DataError(
                    f"images: expected float values in [0, 1], got [{low:g}, {high:g}]; "
                    "divide by the largest value the format allows, or keep them as uint8"
                )

    def __len__(self) -> int:
        return self.images.shape[0]

    def __repr__(self) -> str:
        return f"Split({len(self)} images {tuple(self.images.shape[1:])}, {self.images.dtype})"

    def loader(
        self,
        batch_size: int = 128,
        *,
        shuffle: bool = False,
        augment: str | Sequence[str] | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
        drop_last: bool = False,
    ) -> TensorLoader:
        """A loader over this split; the arguments are those of `TensorLoader`."""
        return TensorLoader(
            self.images,
            self.labels,
            batch_size,
            shuffle=shuffle,
            augment=augment,
            device=device,
            seed=seed,
            drop_last=drop_last,
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named set of labelled images.

    Attributes:
        name: the registered name, or the name of the folder or file it came from.
        train: images to train on.
        test: images to test on, or None where the source has none. Shape and dtype of its
            images are those of `train`.
        num_classes: labels are in 0..num_classes-1.
        class_names: one per class, in label order.

    Raises:
        DataError: if the parts contradict each other.
    """

    name: str
    train: Split
    test: Split | None
    num_classes: int
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.class_names) != self.num_classes:
            raise DataError(f"{self.name}: class_names: expected {self.num_classes}, got {len(self.class_names)}")
        parts = {"train": self.train}
        if self.test is not None:
            parts["test"] = self.test
        for part, split in parts.items():
            low, high = (int(bound) for bound in split.labels.aminmax())
            if low < 0 or high >= self.num_classes:
                raise DataError(f"{self.name}: {part} labels: expected 0..{self.num_classes - 1}, got {low}..{high}")
            if split.images.shape[1:] != self.image_shape:
                raise DataError(
                    f"{self.name}: {part} images: expected {self.image_shape} each as in train, "
                    f"got {tuple(split.images.shape[1:])}"
                )
            if split.images.dtype != self.train.images.dtype:
                raise DataError(
                    f"{self.name}: {part} images: expected {self.train.images.dtype} as in train, "
                    f"got {split.images.dtype}"
                )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width
