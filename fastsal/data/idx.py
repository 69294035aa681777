"""IDX, the format of MNIST and its relatives: a strict parser and the four-file layout.

A file is: two zero bytes, a type code, the number of dimensions, each dimension as a big-endian
32-bit number, then the values, last dimension fastest.
Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from fastsal.data.dataset import Dataset, Split
from fastsal.data.errors import DataError, DataNotFoundError

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
MNIST_CLASSES = tuple(str(digit) for digit in range(10))

HOW_TO_GET = {
    "fashion-mnist": (
        "apt install dataset-fashion-mnist (Debian, Ubuntu), or "
        'torchvision.datasets.FashionMNIST("data", download=True)'
    ),
    "mnist": (
        'torchvision.datasets.MNIST("data", download=True), or put the four '
        "*-ubyte.gz files of MNIST into data/MNIST/raw"
    ),
}

STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MAX_VALUES = 2**30
"""A header that promises more is taken for damaged (the largest relative, EMNIST, has 2**29.03)."""

_UINT8 = 0x08
# DEFLATE cannot do better than 1032:1; a header that promises more is lying.
_DEFLATE_LIMIT = 1032


def read_idx(path: Path, ndim: int) -> Tensor:
    """One IDX file of unsigned bytes, plain or, if the name ends in .gz, gzip.

    Never reads or decompresses more than the header promises plus one byte.

    Args:
        path: the file.
        ndim: how many dimensions it must have.

    Returns:
        uint8 tensor with the dimensions of the header.

    Raises:
        DataError: if magic number, type, dimensions or length are other than they should be.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        if path.suffix == ".gz":
            stream = _BoundedGzip(file, path)
            return _parse(stream.read, path, ndim, _DEFLATE_LIMIT * size)
        return _parse(file.read, path, ndim, size)


def has_idx_files(directory: Path) -> bool:
    """Whether at least one of the four files of the layout is in the directory."""
    return any(_locate(directory, stem) is not None for stem in STEMS)


def read_idx_directory(directory: Path, name: str) -> Dataset:
    """The four files of MNIST and its relatives out of one directory.

    Args:
        directory: holds `STEMS`, each plain or with .gz.
        name: "mnist" and "fashion-mnist" have 10 named classes; any other name has as many
            classes as the labels use, named by their numbers.

    Raises:
        DataNotFoundError: if one of the four files is missing.
        DataError: if one is damaged, or images and labels differ in number.
    """
    paths = []
    for stem in STEMS:
        path = _locate(directory, stem)
        if path is None:
            how = HOW_TO_GET.get(name, "the layout needs all of " + ", ".join(STEMS))
            raise DataNotFoundError(
                f"{name}: expected {stem} or {stem}.gz in {directory}, found neither; get it: {how}"
            )
        paths.append(path)
    train = _read_pair(paths[0], paths[1])
    test = _read_pair(paths[2], paths[3])
    classes = {"mnist": MNIST_CLASSES, "fashion-mnist": FASHION_MNIST_CLASSES}.get(name)
    if classes is None:
        highest = max(int(split.labels.max()) for split in (train, test))
        classes = tuple(str(label) for label in range(highest + 1))
    return Dataset(name, train, test, len(classes), classes)


def _read_pair(images_path: Path, labels_path: Path) -> Split:
    images = read_idx(images_path, 3)
    labels = read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: expected {len(images)} labels, one for each image of {images_path.name}, got {len(labels)}"
        )
    return Split(images.unsqueeze(1), labels.to(torch.int64))


def _locate(directory: Path, stem: str) -> Path | None:
    """The plain file before the compressed one: it is quicker to read."""
    for path in (directory / stem, directory / f"{stem}.gz"):
        if path.is_file():
            return path
    return None


def _parse(read: Callable[[int], bytes], path: Path, ndim: int, size_limit: int) -> Tensor:
    header = read(4 + 4 * ndim)
    if len(header) < 4 + 4 * ndim:
        raise DataError(f"{path}: truncated: expected a header of {4 + 4 * ndim} bytes, got {len(header)}")
    if header[:2] != b"\0\0":
        raise DataError(f"{path}: magic number: expected an IDX file to begin with 00 00, got {header[:2].hex(' ')}")
    if header[2] != _UINT8:
        raise DataError(f"{path}: type: expected 0x08 (unsigned byte), got 0x{header[2]:02x}")
    if header[3] != ndim:
        raise DataError(f"{path}: dimensions: expected {ndim}, got {header[3]}")
    shape = struct.unpack(f">{ndim}I", header[4:])
    count = math.prod(shape)
    if not 0 < count <= MAX_VALUES:
        raise DataError(f"{path}: values: expected 1..{MAX_VALUES}, got {count} for shape {shape}")
    if count > size_limit:
        raise DataError(
            f"{path}: truncated: expected {count} values for shape {shape}, but a file of its "
            f"size holds at most {size_limit}"
        )
    values = read(count)
    if len(values) < count:
        raise DataError(f"{path}: truncated: expected {count} values for shape {shape}, got {len(values)}")
    if read(1):
        raise DataError(f"{path}: trailing data: expected the end after {count} values of shape {shape}")
    return torch.frombuffer(bytearray(values), dtype=torch.uint8).reshape(shape)


class _BoundedGzip:
    """Decompresses exactly as many bytes as are asked for.

    The gzip module reads ahead into a buffer; this does not, so a small file that would
    decompress into gigabytes costs no more than the header promises plus one byte.
    """

    _CHUNK = 1 << 16

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        # 31: a window of 2**15 bytes, and a gzip header with its checksum.
        self._inflate = zlib.decompressobj(wbits=31)

    def read(self, count: int) -> bytes:
        """`count` bytes, or fewer at the end of the data, whose checksum is then verified."""
        pieces = bytearray()
        while len(pieces) < count and not self._inflate.eof:
            compressed = self._inflate.unconsumed_tail or self._file.read(self._CHUNK)
            try:
                piece = self._inflate.decompress(compressed, count - len(pieces))
            except zlib.error as error:
                raise DataError(f"{self._path}: damaged gzip data: {error}") from error
            if not compressed and not piece:
                raise DataError(f"{self._path}: truncated: the gzip data end too early")
            pieces += piece
        if self._inflate.eof and (self._inflate.unused_data or self._file.read(1)):
            raise DataError(f"{self._path}: trailing data: expected the end after the gzip data")
        return bytes(pieces)
