"""Data sets as folders of images, one folder per class.

ROOT/train/CLASS/*.png with ROOT/test/CLASS/*.png (or, where there is no test, ROOT/val), or
ROOT/CLASS/*.png without a test set. Classes are numbered in the order of their sorted names.
Hidden files and files without an image suffix are passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastsal.data.dataset import Dataset, Split
from fastsal.data.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
_TEST_FOLDERS = ("test", "val")


def is_image_folder(directory: Path) -> bool:
    """Whether the directory has the layout that `read_image_folder` reads."""
    return any(_image_files(folder) for folder in _folders(_train_root(directory)))


def read_image_folder(directory: Path) -> Dataset:
    """All images of a folder; needs Pillow.

    Returns:
        Dataset named after the folder. One channel if the images are 8-bit greyscale, three if
        they are 8-bit RGB or have a palette.

    Raises:
        DataError: if Pillow is missing, a class has no image, the test set has a class that the
            train set has not, an image is damaged, or differs from the first in size or kind;
            the message names the first such file.
    """
    train_root = _train_root(directory)
    class_names = tuple(folder.name for folder in _folders(train_root))
    train = _read_split(train_root, class_names)
    test = None
    if train_root != directory:
        for name in _TEST_FOLDERS:
            if (directory / name).is_dir():
                test = _read_split(directory / name, class_names, _size_of(train))
                break
    return Dataset(directory.resolve().name, train, test, len(class_names), class_names)


def _train_root(directory: Path) -> Path:
    """ROOT/train if it holds folders; else ROOT, where "train" may well be a class of images."""
    train = directory / "train"
    return train if train.is_dir() and _folders(train) else directory


def _folders(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(directory: Path) -> list[Path]:
    return sorted(
        path for path in directory.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def _size_of(split: Split) -> tuple[int, int, int]:
    channels, height, width = split.images.shape[1:]
    return channels, height, width


def _read_split(root: Path, class_names: Sequence[str], expected: tuple[int, int, int] | None = None) -> Split:
    """All images under root/CLASS; `expected` is (C, H, W), or None to take the first image's."""
    images: list[Tensor] = []
    labels: list[int] = []
    for folder in _folders(root):
        if folder.name not in class_names:
            raise DataError(f"{folder}: expected a class of the train set, {list(class_names)}, got {folder.name!r}")
        files = _image_files(folder)
        if not files:
            raise DataError(f"{folder}: expected images ({', '.join(SUFFIXES)}), found none")
        for path in files:
            image = _read_image(path, expected)
            if expected is None:
                channels, height, width = image.shape
                expected = (channels, height, width)
            images.append(image)
            labels.append(class_names.index(folder.name))
    if not images:
        raise DataError(f"{root}: expected a folder of images for each class, found none")
    return Split(torch.stack(images), torch.tensor(labels, dtype=torch.int64))


def _read_image(path: Path, expected: tuple[int, int, int] | None) -> Tensor:
    """uint8 (C, H, W); refuses another shape than `expected` before it decodes the pixels."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading an image folder needs Pillow: pip install pillow") from error
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "RGB", "P"):
                raise DataError(f"{path}: expected 8-bit greyscale, RGB or palette, got mode {image.mode}")
            channels = 1 if image.mode == "L" else 3
            shape = (channels, image.height, image.width)
            if expected is not None and shape != expected:
                raise DataError(
                    f"{path}: expected channels, height and width {expected} like the images before it, got {shape}"
                )
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow has no error of its own for damaged files; PNG raises SyntaxError.
        raise DataError(f"{path}: expected an image, cannot read it: {error}") from error
    return torch.from_numpy(pixels).reshape(shape[1], shape[2], channels).permute(2, 0, 1)
