"""Data: sets of images in memory, and loaders that keep them on the device.

Usage:

    data = fastsal.data.load("fashion-mnist-mini")
    for x, y in data.train.loader(128, shuffle=True, augment=("crop", "flip"), seed=0):
        ...
"""

from fastsal.data.dataset import Dataset, Split
from fastsal.data.errors import DataError, DataNotFoundError
from fastsal.data.loader import TensorLoader
from fastsal.data.sources import load, names

__all__ = [
    "DataError",
    "DataNotFoundError",
    "Dataset",
    "Split",
    "TensorLoader",
    "load",
    "names",
]
