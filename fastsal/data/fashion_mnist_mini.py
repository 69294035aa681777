"""The embedded default data set: 8,000 training and 2,000 test images of Fashion-MNIST.

Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms", 2017; https://github.com/zalandoresearch/fashion-mnist.
Copyright 2017 Zalando SE, MIT licence (FASHION_MNIST_LICENSE beside this file).

800 training and 200 test images of each class, from the training and the test set respectively.
tools/make_fashion_mnist_mini.py says how they are chosen, and rebuilds the file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from fastsal.data.dataset import Dataset, Split
from fastsal.data.errors import DataError, DataNotFoundError
from fastsal.data.idx import FASHION_MNIST_CLASSES
from fastsal.data.npz import read_arrays

NAME = "fashion-mnist-mini"
PATH = Path(__file__).with_name("fashion_mnist_mini.npz")

SHAPES = {
    "x_train": (8000, 28, 28),
    "y_train": (8000,),
    "x_test": (2000, 28, 28),
    "y_test": (2000,),
}
SHA256 = {
    "x_train": "fe5cace2f1b62542ff6eb3a2e62b4e8f87abefd23288a27caf5151e6b5f0d148",
    "y_train": "034a0d80e91f5410e204d3e5fc94aec2410e5475e7c1d6fb4f26ff9a00e72894",
    "x_test": "62102f6fe0af7668b6c6db38db7c9c3eefce9e90378a591776e92ee3870c11d4",
    "y_test": "e0f3e29d9ce3aaa2ed72526563384442f3e479b50bf353b912e316716b7365ed",
}
"""Of each array's bytes, in C order. The bytes of the .npz around them depend on zlib's version."""


def read_fashion_mnist_mini(path: Path = PATH) -> Dataset:
    """The embedded data set: (1, 28, 28) uint8 images of 10 classes, verified.

    Raises:
        DataNotFoundError: if the installation lacks the file.
        DataError: if its contents are not those with the checksums above.
    """
    if not path.is_file():
        raise DataNotFoundError(
            f"{NAME}: expected the file {path}, found none; get it: reinstall fastsal, or in a "
            "checkout run python -m tools.make_fashion_mnist_mini"
        )
    arrays = read_arrays(path)
    for name, expected in SHA256.items():
        if name not in arrays:
            raise DataError(f"{path}: expected the array {name}, got {sorted(arrays)}")
        array = arrays[name]
        if array.dtype != np.uint8 or array.shape != SHAPES[name]:
            raise DataError(f"{path}: {name}: expected uint8 {SHAPES[name]}, got {array.dtype} {array.shape}")
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        if digest != expected:
            raise DataError(f"{path}: {name}: expected SHA-256 {expected}, got {digest}")
    train, test = (
        Split(
            torch.from_numpy(arrays[f"x_{part}"]).unsqueeze(1),
            torch.from_numpy(arrays[f"y_{part}"].astype(np.int64)),
        )
        for part in ("train", "test")
    )
    return Dataset(NAME, train, test, len(FASHION_MNIST_CLASSES), FASHION_MNIST_CLASSES)
