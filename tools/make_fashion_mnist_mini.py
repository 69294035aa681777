"""Makes fastsal/data/fashion_mnist_mini.npz out of the full Fashion-MNIST.

To rebuild it, on Debian or Ubuntu, in a checkout:

    apt install dataset-fashion-mnist
    python -m tools.make_fashion_mnist_mini

or with --source DIR for the four *-ubyte(.gz) files elsewhere. It prints the SHA-256 of each
array, to be compared with SHA256 in fastsal/data/fashion_mnist_mini.py, and that of the file. The
arrays depend on nothing but the source; the bytes of the file also on the versions of zlib and
NumPy, and with the same versions they are the same in every run.

How images are chosen: of each class, those 800 (training) and 200 (test) whose pixels, as 784
bytes, have the smallest SHA-256. That is as good as random, and needs no random generator whose
next version might choose otherwise. No two of the 70,000 images have the same pixels, so there are
no ties, and no image is in both parts. They are kept in the order of the source, so classes are
mixed.

Source: Fashion-MNIST, Zalando Research, https://github.com/zalandoresearch/fashion-mnist, MIT
licence, Copyright 2017 Zalando SE; the licence goes with the file as
fastsal/data/FASHION_MNIST_LICENSE.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsal.data.dataset import Split
from fastsal.data.fashion_mnist_mini import PATH
from fastsal.data.idx import FASHION_MNIST_CLASSES, read_idx_directory
from fastsal.data.sources import DEBIAN

TRAIN_PER_CLASS = 800
TEST_PER_CLASS = 200


def select(split: Split, per_class: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(10 * per_class, 28, 28) images and (10 * per_class,) labels, both uint8."""
    images = split.images[:, 0].numpy()
    labels = split.labels.numpy()
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
    chosen: list[int] = []
    for label in range(len(FASHION_MNIST_CLASSES)):
        members = [int(index) for index in np.flatnonzero(labels == label)]
        chosen += sorted(members, key=lambda index: digests[index])[:per_class]
    order = np.sort(chosen)
    return images[order], labels[order].astype(np.uint8)


def make_arrays(source: Path) -> dict[str, NDArray[np.uint8]]:
    """The four arrays of the embedded set, out of the directory with the full one."""
    full = read_idx_directory(source, "fashion-mnist")
    if full.test is None:
        raise ValueError(f"{source}: expected a test set")
    x_train, y_train = select(full.train, TRAIN_PER_CLASS)
    x_test, y_test = select(full.test, TEST_PER_CLASS)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def npz_bytes(arrays: dict[str, NDArray[Any]]) -> bytes:
    """A compressed .npz; unlike numpy.savez, without the time of day in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            # The default date, 1980, and one system (3: Unix) wherever this runs.
            info = zipfile.ZipInfo(f"{name}.npy")
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="make the embedded part of Fashion-MNIST")
    parser.add_argument("--source", type=Path, default=DEBIAN / "fashion-mnist")
    parser.add_argument("--output", type=Path, default=PATH)
    arguments = parser.parse_args()
    arrays = make_arrays(arguments.source)
    content = npz_bytes(arrays)
    arguments.output.write_bytes(content)
    for name, array in arrays.items():
        print(f'    "{name}": "{hashlib.sha256(array.tobytes()).hexdigest()}",')
    digest = hashlib.sha256(content).hexdigest()
    print(f"{arguments.output}: {len(content)} bytes, SHA-256 {digest}")


if __name__ == "__main__":
    main()
