"""CIFAR-10 and CIFAR-100, binary and Python version.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009;
https://www.cs.toronto.edu/~kriz/cifar.html describes both formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastsal.data.dataset import Dataset, Split
from fastsal.data.errors import DataError, DataNotFoundError
from fastsal.data.restricted_pickle import load_dict

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle",
    "bottle", "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle",
    "caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch",
    "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox",
    "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom",
    "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree",
    "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
    "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake",
    "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle",
    "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip

IMAGE_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class CifarLayout:
    """One of the four ways in which CIFAR comes.

    Attributes:
        name: of the data set.
        folder: that its archive unpacks to.
        archive: its file name on the author's page.
        train_files, test_file: in `folder`.
        train_records, test_records: images per train file and in the test file.
        class_names: in label order.
        pickled: whether this is the Python version.
        label_bytes: binary version: labels before each image, the last of which is used
            (CIFAR-100: coarse, then fine).
        label_key: Python version: under which the labels are (CIFAR-100: the fine ones).
    """

    name: str
    folder: str
    archive: str
    train_files: tuple[str, ...]
    test_file: str
    train_records: int
    test_records: int
    class_names: tuple[str, ...]
    pickled: bool
    label_bytes: int
    label_key: str

    @property
    def how_to_get(self) -> str:
        return (
            f"unpack {self.archive} from https://www.cs.toronto.edu/~kriz/cifar.html into data/, "
            f"which makes data/{self.folder}"
        )


LAYOUTS = (
    CifarLayout(
        "cifar10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz",
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", 10_000, 10_000,
        CIFAR10_CLASSES, pickled=False, label_bytes=1, label_key="",
    ),
    CifarLayout(
        "cifar10", "cifar-10-batches-py", "cifar-10-python.tar.gz",
        tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", 10_000, 10_000,
        CIFAR10_CLASSES, pickled=True, label_bytes=0, label_key="labels",
    ),
    CifarLayout(
        "cifar100", "cifar-100-binary", "cifar-100-binary.tar.gz",
        ("train.bin",), "test.bin", 50_000, 10_000,
        CIFAR100_CLASSES, pickled=False, label_bytes=2, label_key="",
    ),
    CifarLayout(
        "cifar100", "cifar-100-python", "cifar-100-python.tar.gz",
        ("train",), "test", 50_000, 10_000,
        CIFAR100_CLASSES, pickled=True, label_bytes=0, label_key="fine_labels",
    ),
)  # fmt: skip
"""The binary versions come first of each pair: they are read where both are there."""


def has_cifar_files(directory: Path, layout: CifarLayout) -> bool:
    """Whether at least one file of the layout is in the directory."""
    return any((directory / name).is_file() for name in (*layout.train_files, layout.test_file))


def read_cifar_directory(directory: Path, layout: CifarLayout) -> Dataset:
    """All files of a layout out of one directory.

    Raises:
        DataNotFoundError: if a file is missing.
        DataError: if one is damaged, or its pickle names what is not admitted.
    """
    parts = [_read_file(directory, name, layout, layout.train_records) for name in layout.train_files]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    test = _read_file(directory, layout.test_file, layout, layout.test_records)
    return Dataset(
        layout.name, Split(images, labels), Split(*test),
        len(layout.class_names), layout.class_names,
    )  # fmt: skip


def _read_file(directory: Path, name: str, layout: CifarLayout, records: int) -> tuple[Tensor, Tensor]:
    """uint8 (records, 3, 32, 32) images and int64 (records,) labels of one file."""
    path = directory / name
    if not path.is_file():
        raise DataNotFoundError(f"{layout.name}: expected the file {name} in {directory}; get it: {layout.how_to_get}")
    if layout.pickled:
        images, labels = _read_pickle(path, layout.label_key, records)
    else:
        images, labels = _read_binary(path, layout.label_bytes, records)
    # A label out of range would else be found only in the whole set, without the file's name;
    # and one out of a pickle may be too large for a tensor.
    if min(labels) < 0 or max(labels) >= len(layout.class_names):
        raise DataError(f"{path}: labels: expected 0..{len(layout.class_names) - 1}, got {min(labels)}..{max(labels)}")
    return images, torch.tensor(labels, dtype=torch.int64)


def _read_binary(path: Path, label_bytes: int, records: int) -> tuple[Tensor, list[int]]:
    record = label_bytes + _PIXELS
    size = path.stat().st_size
    if size != records * record:
        raise DataError(f"{path}: expected {records * record} bytes ({records} records of {record}), got {size}")
    table = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    table = table.reshape(records, record)
    images = table[:, label_bytes:].reshape(records, *IMAGE_SHAPE)
    return images, table[:, label_bytes - 1].tolist()


def _read_pickle(path: Path, label_key: str, records: int) -> tuple[Tensor, list[int]]:
    # Pixels, of which Python 3 makes up to twice as many bytes in protocol 2; beside them labels
    # and file names, well under as much again.
    size, limit = path.stat().st_size, 4 * records * _PIXELS
    if size > limit:
        raise DataError(f"{path}: expected at most {limit} bytes, got {size}")
    content = load_dict(path.read_bytes(), str(path))
    for key in ("data", label_key):
        if key not in content:
            raise DataError(f"{path}: expected the key {key!r}, got {sorted(content)}")
    pixels, labels = content["data"], content[label_key]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (records, _PIXELS):
        got = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels)
        raise DataError(f"{path}: data: expected uint8 ({records}, {_PIXELS}), got {got}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{path}: {label_key}: expected a list of integers")
    if len(labels) != records:
        raise DataError(f"{path}: {label_key}: expected {records} labels, got {len(labels)}")
    # A copy: the array out of the pickle is read-only, and tensors have no such thing.
    images = torch.from_numpy(np.array(pixels, order="C")).reshape(records, *IMAGE_SHAPE)
    return images, labels
