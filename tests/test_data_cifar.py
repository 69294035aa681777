"""CIFAR readers: records written by hand, both versions of both sets."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from fastsal.data import DataError, DataNotFoundError
from fastsal.data.cifar import CIFAR100_CLASSES, LAYOUTS, CifarLayout, read_cifar_directory

SMALL = [dataclasses.replace(layout, train_records=3, test_records=2) for layout in LAYOUTS]
BINARY10, PYTHON10, BINARY100, PYTHON100 = SMALL


def label(file: int, record: int) -> int:
    return (3 * file + record) % 10


def pixels(file: int, record: int) -> bytes:
    """3,072 bytes: red is the record's number, green counts columns, blue counts rows."""
    red = bytes([10 * file + record]) * 1024
    green = bytes(column for _ in range(32) for column in range(32))
    blue = bytes(row for row in range(32) for _ in range(32))
    return red + green + blue


def write(directory: Path, layout: CifarLayout) -> None:
    for file, name in enumerate((*layout.train_files, layout.test_file)):
        records = range(layout.test_records if name == layout.test_file else layout.train_records)
        if layout.pickled:
            table = np.frombuffer(b"".join(pixels(file, r) for r in records), np.uint8)
            content = {
                b"data": table.reshape(len(records), 3072),
                layout.label_key.encode(): [label(file, r) for r in records],
                b"coarse_labels": [99 for _ in records],
                b"filenames": [b"x.png" for _ in records],
            }
            (directory / name).write_bytes(pickle.dumps(content, protocol=2))
        else:
            coarse = b"\x63" * (layout.label_bytes - 1)
            (directory / name).write_bytes(
                b"".join(coarse + bytes([label(file, r)]) + pixels(file, r) for r in records)
            )


@pytest.mark.parametrize("layout", SMALL, ids=lambda layout: layout.folder)
def test_images_and_labels_are_where_they_belong(tmp_path, layout):
    write(tmp_path, layout)
    got = read_cifar_directory(tmp_path, layout)
    files = len(layout.train_files)
    order = [(file, record) for file in range(files) for record in range(3)]
    assert got.image_shape == (3, 32, 32)
    assert got.train.labels.tolist() == [label(*place) for place in order]
    assert got.train.images[:, 0, 5, 9].tolist() == [10 * file + r for file, r in order]
    assert (got.train.images[:, 1, 5, 9] == 9).all() and (got.train.images[:, 2, 5, 9] == 5).all()
    assert got.test.labels.tolist() == [label(files, 0), label(files, 1)]
    assert got.test.images.dtype == torch.uint8


@pytest.mark.parametrize("layout", SMALL, ids=lambda layout: layout.folder)
def test_a_missing_file_is_named_with_its_archive(tmp_path, layout):
    write(tmp_path, layout)
    (tmp_path / layout.test_file).unlink()
    with pytest.raises(DataNotFoundError, match=layout.archive) as caught:
        read_cifar_directory(tmp_path, layout)
    assert f"expected the file {layout.test_file} in {tmp_path}" in str(caught.value)


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"\0", lambda c: c[:-3073]])
def test_a_binary_file_of_another_length_is_refused(tmp_path, change):
    write(tmp_path, BINARY10)
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=r"data_batch_2.bin: expected 9219 bytes"):
        read_cifar_directory(tmp_path, BINARY10)


def test_a_label_beyond_the_classes_is_found_with_its_file(tmp_path):
    write(tmp_path, BINARY10)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(DataError, match=r"data_batch_3.bin: labels: expected 0..9, got \d..10"):
        read_cifar_directory(tmp_path, BINARY10)


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_batch_is_refused_and_does_not_run(tmp_path):
    write(tmp_path, PYTHON10)
    (tmp_path / "data_batch_1").write_bytes(
        pickle.dumps({b"data": Touch(tmp_path / "ran"), b"labels": [0]}, protocol=2)
    )
    with pytest.raises(DataError, match=r"data_batch_1: refused global \w+.mkdir"):
        read_cifar_directory(tmp_path, PYTHON10)
    assert not (tmp_path / "ran").exists()


GOOD = {"data": np.zeros((3, 3072), np.uint8), "fine_labels": [0, 1, 99]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": np.zeros((3, 3071), np.uint8)}, r"data: expected uint8 \(3, 3072\)"),
        ({"data": np.zeros((3, 3072), np.int16)}, "data: expected uint8"),
        ({"data": [1, 2]}, "data: expected uint8"),
        ({"fine_labels": [0, 1]}, "fine_labels: expected 3 labels, got 2"),
        ({"fine_labels": [0, 1, True]}, "fine_labels: expected a list of integers"),
        ({"fine_labels": [0, 1, 100]}, r"labels: expected 0..99, got 0..100"),
        ({"fine_labels": [0, 1, 2**80]}, r"labels: expected 0..99"),
        ({"fine_labels": [0, -1, 1]}, r"labels: expected 0..99, got -1..1"),
        ({"labels": [0, 1, 2]}, None),
    ],
)
def test_a_batch_with_other_contents_is_refused(tmp_path, change, message):
    write(tmp_path, PYTHON100)
    (tmp_path / "train").write_bytes(pickle.dumps(GOOD | change, protocol=2))
    if message is None:
        assert read_cifar_directory(tmp_path, PYTHON100).train.labels.tolist() == [0, 1, 99]
    else:
        with pytest.raises(DataError, match=message):
            read_cifar_directory(tmp_path, PYTHON100)


def test_a_batch_without_labels_is_refused(tmp_path):
    write(tmp_path, PYTHON100)
    (tmp_path / "train").write_bytes(pickle.dumps({"data": GOOD["data"]}, protocol=2))
    with pytest.raises(DataError, match=r"expected the key 'fine_labels', got \['data'\]"):
        read_cifar_directory(tmp_path, PYTHON100)


def test_a_batch_of_unreasonable_length_is_not_even_read(tmp_path):
    write(tmp_path, PYTHON10)
    with (tmp_path / "data_batch_1").open("r+b") as file:
        file.truncate(10**12)
    with pytest.raises(DataError, match="expected at most"):
        read_cifar_directory(tmp_path, PYTHON10)


def test_the_layouts_are_those_of_the_published_archives():
    for layout in LAYOUTS:
        assert layout.train_records * len(layout.train_files) == 50_000
        assert layout.test_records == 10_000
        assert len(set(layout.class_names)) == (10 if layout.name == "cifar10" else 100)
    assert list(CIFAR100_CLASSES) == sorted(CIFAR100_CLASSES)
