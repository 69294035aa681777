"""Data sets in one NumPy .npz file.

Arrays: x_train, y_train and, if there is a test set, x_test, y_test; or images, labels for a set
without one. Beside them, optionally, class_names (strings, in label order) and layout ("NCHW" or
"NHWC").

Images are uint8, or floats in [0, 1]. Which axis holds the channels: (N, H, W) has one channel;
of four axes, the second or the last is the channel axis if it, and not the other, has size 1 or 3.
If that leaves it open, `layout` decides, and without it the file is refused.
Labels are integers in 0..99999, (N,) or (N, 1).
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsal.data.dataset import Dataset, Split
from fastsal.data.errors import DataError, DataNotFoundError

_KNOWN = ("x_train", "y_train", "x_test", "y_test", "images", "labels", "class_names", "layout")
_CHANNELS = (1, 3)

MAX_CLASSES = 100_000
"""A higher label is taken for a fault: without class_names, each class up to it would get a name."""


def read_npz(path: Path) -> Dataset:
    """A data set out of a .npz file; the module's text says which arrays and shapes.

    Returns:
        Dataset named after the file. uint8 images stay uint8, floats become float32.

    Raises:
        DataNotFoundError: if there is no such file.
        DataError: if it is damaged, holds pickled objects, or arrays other than expected.
    """
    arrays = read_arrays(path)
    if "images" in arrays:
        pairs = [("images", "labels")]
        if {"x_train", "x_test"} & arrays.keys():
            raise DataError(f"{path}: expected images, labels or x_train, y_train, got {sorted(arrays)}")
    else:
        pairs = [("x_train", "y_train")]
        if {"x_test", "y_test"} & arrays.keys():
            pairs.append(("x_test", "y_test"))
    for name in (name for pair in pairs for name in pair):
        if name not in arrays:
            raise DataError(
                f"{path}: expected the array {name} (x_train, y_train and perhaps x_test, "
                f"y_test; or images, labels), got {sorted(arrays)}"
            )
    layout = _layout(arrays, path)
    splits = [_split(arrays[x], arrays[y], f"{path}: {x}", f"{path}: {y}", layout) for x, y in pairs]
    names = _class_names(arrays, path)
    if names is None:
        highest = max(int(split.labels.max()) for split in splits)
        names = tuple(str(label) for label in range(highest + 1))
    return Dataset(path.stem, splits[0], splits[1] if len(splits) > 1 else None, len(names), names)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz file that this package knows the names of; never unpickles.

    Raises:
        DataNotFoundError: if there is no such file.
        DataError: if it is damaged or holds pickled objects.
    """
    if not path.is_file():
        raise DataNotFoundError(f"expected a .npz file at {path}, found none")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: expected a .npz archive, got another or a truncated file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            known = [name for name in archive.files if name in _KNOWN]
            if not known:
                raise DataError(f"{path}: expected arrays out of {_KNOWN}, got {archive.files}")
            for name in known:
                _check_header(archive.zip, name, path)
            return {name: archive[name] for name in known}
    except DataError:
        raise
    except (
        ValueError,
        EOFError,
        OSError,
        KeyError,
        RuntimeError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        # zipfile raises NotImplementedError and RuntimeError for methods and encryption that a damaged byte claims.
        raise DataError(
            f"{path}: expected a .npz archive of plain arrays, got {type(error).__name__}: {error}"
        ) from error


def _check_header(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    """Refuses a header that promises other than the archive holds, before memory is set aside for it."""
    member = f"{name}.npy"
    if member not in archive.namelist():
        raise DataError(f"{path}: expected {name} as {member}, got {name}")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        else:  # 3.0 is for structured arrays only
            raise DataError(f"{path}: {name}: expected .npy format 1.0 or 2.0, got {version}")
        if dtype.hasobject:
            raise DataError(f"{path}: {name}: expected plain arrays, got pickled objects")
        promised, held = math.prod(shape) * dtype.itemsize, archive.getinfo(member).file_size - file.tell()
        if promised != held:
            raise DataError(f"{path}: {name}: expected {promised} bytes for {dtype} {shape}, got {held}")


def _split(images: NDArray[Any], labels: NDArray[Any], images_name: str, labels_name: str, layout: str) -> Split:
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{images_name}: expected uint8 or floats in [0, 1], got {images.dtype}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{labels_name}: expected integers, got {labels.dtype}")
    if images.ndim == 0:
        raise DataError(f"{images_name}: expected (N, H, W), (N, H, W, C) or (N, C, H, W), got a single value")
    if labels.shape not in ((len(images),), (len(images), 1)):
        raise DataError(f"{labels_name}: expected one label per image, shape ({len(images)},), got {labels.shape}")
    if labels.size:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= MAX_CLASSES:
            raise DataError(f"{labels_name}: expected class indices in 0..{MAX_CLASSES - 1}, got {low}..{high}")
    kind = np.uint8 if images.dtype == np.uint8 else np.float32
    x = torch.from_numpy(np.ascontiguousarray(images, dtype=kind))
    y = torch.from_numpy(labels.reshape(-1).astype(np.int64))
    try:
        return Split(_to_nchw(x, layout, images_name), y)
    except DataError as error:
        raise DataError(f"{images_name}: {error}") from error


def _to_nchw(images: Tensor, layout: str, name: str) -> Tensor:
    if images.ndim == 3:
        return images.unsqueeze(1)
    if images.ndim != 4:
        raise DataError(f"expected (N, H, W), (N, H, W, C) or (N, C, H, W), got {tuple(images.shape)}")
    if not layout:
        first, last = images.shape[1] in _CHANNELS, images.shape[3] in _CHANNELS
        if first == last:
            raise DataError(
                f"shape {tuple(images.shape)} does not say which axis holds the channels "
                f"(expected size 1 or 3 on the second or the last, not on both); "
                f'add layout="NCHW" or layout="NHWC" to the archive'
            )
        layout = "NCHW" if first else "NHWC"
    return images if layout == "NCHW" else images.permute(0, 3, 1, 2).contiguous()


def _layout(arrays: dict[str, NDArray[Any]], path: Path) -> str:
    """ "NCHW", "NHWC", or "" where the file does not say."""
    if "layout" not in arrays:
        return ""
    layout = str(arrays["layout"])
    if layout not in ("NCHW", "NHWC"):
        raise DataError(f"{path}: layout: expected 'NCHW' or 'NHWC', got {layout!r}")
    return layout


def _class_names(arrays: dict[str, NDArray[Any]], path: Path) -> tuple[str, ...] | None:
    names = arrays.get("class_names")
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(f"{path}: class_names: expected a list of strings, got {names.dtype} {names.shape}")
    return tuple(str(name) for name in names)
