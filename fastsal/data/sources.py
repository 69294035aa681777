"""Which names there are, where their files may lie, and what a directory holds."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastsal.data import fashion_mnist_mini
from fastsal.data.cifar import LAYOUTS, has_cifar_files, read_cifar_directory
from fastsal.data.dataset import Dataset
from fastsal.data.errors import DataError, DataNotFoundError
from fastsal.data.fashion_mnist_mini import read_fashion_mnist_mini
from fastsal.data.folder import is_image_folder, read_image_folder
from fastsal.data.idx import HOW_TO_GET, has_idx_files, read_idx_directory
from fastsal.data.npz import read_npz

ENVIRONMENT = "FASTSAL_DATA"
"""Names a directory in which `load` looks first."""

DEBIAN = Path("/usr/share/datasets")
"""Where Debian's dataset-* packages put their files."""

_IDX_FOLDERS = {
    "mnist": ("MNIST/raw", "MNIST", "mnist/raw", "mnist"),
    "fashion-mnist": ("FashionMNIST/raw", "FashionMNIST", "fashion-mnist/raw", "fashion-mnist"),
}
_CIFAR_FOLDERS = {
    name: tuple(layout.folder for layout in LAYOUTS if layout.name == name) for name in ("cifar10", "cifar100")
}
_FOLDERS: dict[str, tuple[str, ...]] = {**_IDX_FOLDERS, **_CIFAR_FOLDERS}
_HOW_TO_GET = HOW_TO_GET | {layout.name: layout.how_to_get for layout in reversed(LAYOUTS)}
_PATH_FORMS = (
    "a .npz file; a directory with MNIST-style IDX files (ROOT/MNIST/raw, ROOT/FashionMNIST/raw "
    "or the files themselves), with cifar-10-batches-bin, cifar-10-batches-py, cifar-100-binary "
    "or cifar-100-python, or with images as train/CLASS/*.png and test/CLASS/*.png"
)


def names() -> tuple[str, ...]:
    """The names that `load` knows; the first is embedded, the others are read from files."""
    return (fashion_mnist_mini.NAME, *_FOLDERS)


def load(name_or_path: str | os.PathLike[str]) -> Dataset:
    """A data set by name, or out of a file or directory. Nothing is downloaded.

    Args:
        name_or_path: one of `names()`; the files of all but the embedded one are looked for in
            the directory that the environment variable FASTSAL_DATA names, in data/ of the
            working directory and of the home directory, and in /usr/share/datasets. Or a path:
            a .npz file, or a directory that holds IDX files, CIFAR (binary or Python version)
            or images in a folder per class. A name goes before a path of that spelling;
            "./mnist" is always a path.

    Raises:
        DataNotFoundError: (a FileNotFoundError and a ValueError) if nothing is there; says what
            was looked for, where, and how to get it.
        DataError: (a ValueError) if what is there is damaged or could be several things.
    """
    if not os.fspath(name_or_path):  # Path would take it for the working directory
        raise DataError(f"name_or_path: expected one of {', '.join(names())}, or a path, got {name_or_path!r}")
    if isinstance(name_or_path, str):
        name = _known_name(name_or_path)
        if name == fashion_mnist_mini.NAME:
            return read_fashion_mnist_mini()
        if name is not None:
            return _load_named(name)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return _load_directory(path)
    if path.is_file():
        if path.suffix == ".npz":
            return read_npz(path)
        raise DataError(f"{path}: expected {_PATH_FORMS}; got another file")
    close = difflib.get_close_matches(str(name_or_path), names(), n=1)
    raise DataNotFoundError(
        f"unknown data set {str(name_or_path)!r}: expected one of {', '.join(names())}"
        f"{f' (did you mean {close[0]!r}?)' if close else ''}, or an existing path: {_PATH_FORMS}"
    )


def lasting(name_or_path: str) -> str:
    """What `load` finds from any working directory: a name as it is, a path made absolute."""
    if not name_or_path or _known_name(name_or_path) is not None:
        return name_or_path
    return os.path.abspath(os.path.expanduser(name_or_path))


def _known_name(text: str) -> str | None:
    """The registered name that a text spells, letter case, hyphens and underscores aside."""
    return {_bare(name): name for name in names()}.get(_bare(text))


def _bare(text: str) -> str:
    return text.lower().replace("-", "").replace("_", "")


@dataclass(frozen=True)
class _Found:
    """A data set seen, not yet read."""

    name: str
    path: Path
    read: Callable[[], Dataset]


def _load_named(name: str) -> Dataset:
    roots = _roots()
    for root in roots:
        for found in _detect(root):
            if found.name == name:
                return found.read()
    folders = " or ".join(_FOLDERS[name])
    raise DataNotFoundError(
        f"{name}: expected its files in a folder {folders} of {', '.join(map(str, roots))}; "
        f"found none. Get them: {_HOW_TO_GET[name]}; or set {ENVIRONMENT} to the directory that "
        "has that folder"
    )


def _roots() -> list[Path]:
    chosen = os.environ.get(ENVIRONMENT)
    usual = [Path("data"), Path.home() / "data", DEBIAN]
    return [Path(chosen).expanduser(), *usual] if chosen else usual


def _load_directory(path: Path) -> Dataset:
    found = _detect(path)
    if len({entry.name for entry in found}) > 1:
        raise DataError(
            f"{path}: expected one data set, got several: pass one of " + ", ".join(str(entry.path) for entry in found)
        )
    if found:
        return found[0].read()
    if is_image_folder(path):
        return read_image_folder(path)
    raise DataNotFoundError(f"{path}: expected {_PATH_FORMS}; found none of these in it")


def _detect(root: Path) -> list[_Found]:
    """The IDX and CIFAR sets in a directory or in the folders these come in."""
    found = []
    for path in (root, root / "raw"):
        if has_idx_files(path):
            name = _name_of_idx(path)
            found.append(_Found(name, path, functools.partial(read_idx_directory, path, name)))
    for name, folders in _IDX_FOLDERS.items():
        # Of the spellings of one set the first will do.
        for path in [root / folder for folder in folders if has_idx_files(root / folder)][:1]:
            found.append(_Found(name, path, functools.partial(read_idx_directory, path, name)))
    for layout in LAYOUTS:
        for path in (root, root / layout.folder):
            if has_cifar_files(path, layout):
                read = functools.partial(read_cifar_directory, path, layout)
                found.append(_Found(layout.name, path, read))
    return found


def _name_of_idx(directory: Path) -> str:
    """What the directory, or for "raw" the one above it, is called."""
    resolved = directory.resolve()
    folder = resolved.parent.name if resolved.name == "raw" else resolved.name
    for name in _IDX_FOLDERS:
        if _bare(folder) == _bare(name):
            return name
    return folder
