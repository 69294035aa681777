"""fastsal.data: names, paths, what a directory is taken for, and the promises of Dataset."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from fastsal import data
from fastsal.data import cifar, sources


def write_idx_set(directory: Path, count: int = 6, first_label: int = 0) -> None:
    """Four IDX files; image i of 2x3 pixels is filled with i, and has label first_label + i % 3."""
    directory.mkdir(parents=True)
    for part in ("train", "t10k"):
        pixels = b"".join(bytes([i]) * 6 for i in range(count))
        labels = bytes(first_label + i % 3 for i in range(count))
        (directory / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">BBBBIII", 0, 0, 8, 3, count, 2, 3) + pixels)
        (directory / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, count) + labels)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no data in any of the usual places."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(sources.ENVIRONMENT, raising=False)
    monkeypatch.setattr(sources, "DEBIAN", tmp_path / "debian")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def test_names_are_known_to_load_and_the_embedded_one_comes_first():
    assert data.names() == ("fashion-mnist-mini", "mnist", "fashion-mnist", "cifar10", "cifar100")
    assert data.load(data.names()[0]).name == data.names()[0]


@pytest.mark.parametrize("spelling", ["Fashion-MNIST-Mini", "fashion_mnist_mini"])
def test_names_are_found_whatever_their_case_and_hyphens(spelling):
    assert data.load(spelling).name == "fashion-mnist-mini"


def test_an_empty_name_is_not_the_working_directory(nowhere):
    write_idx_set(nowhere / "work" / "mnist")
    assert data.load(".").name == "mnist"
    with pytest.raises(data.DataError, match=r"name_or_path: expected one of .*, got ''"):
        data.load("")


@pytest.mark.parametrize("name", [name for name in data.names() if not name.endswith("mini")])
def test_a_named_set_that_is_not_there_says_what_where_and_how(nowhere, monkeypatch, name):
    monkeypatch.setenv(sources.ENVIRONMENT, str(nowhere / "chosen"))
    with pytest.raises(data.DataNotFoundError) as caught:
        data.load(name)
    message = str(caught.value)
    for part in (name, str(nowhere / "chosen"), str(nowhere / "home" / "data"), "FASTSAL_DATA"):
        assert part in message
    assert "torchvision.datasets" in message or ".tar.gz" in message


def test_fashion_mnist_not_there_names_the_debian_package(nowhere):
    with pytest.raises(FileNotFoundError, match="apt install dataset-fashion-mnist"):
        data.load("fashion-mnist")


def test_an_unknown_name_lists_names_and_paths_and_guesses(nowhere):
    with pytest.raises(data.DataNotFoundError, match="did you mean 'fashion-mnist'") as caught:
        data.load("fashion-mnst")
    for part in (*data.names(), ".npz", "cifar-10-batches-py", "CLASS/*.png"):
        assert part in str(caught.value)


def test_not_found_is_one_error_for_all_who_might_catch_it():
    for kind in (data.DataError, FileNotFoundError, ValueError):
        assert issubclass(data.DataNotFoundError, kind)
    assert str(data.DataNotFoundError("told")) == "told"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("MNIST/raw", "mnist"),
        ("FashionMNIST/raw", "fashion-mnist"),
        ("fashion-mnist", "fashion-mnist"),
    ],
)
@pytest.mark.parametrize("place", ["environment", "working directory", "home", "debian"])
def test_a_named_set_is_found_in_every_usual_place(nowhere, monkeypatch, folder, name, place):
    root = {
        "environment": nowhere / "chosen",
        "working directory": nowhere / "work" / "data",
        "home": nowhere / "home" / "data",
        "debian": nowhere / "debian",
    }[place]
    if place == "environment":
        monkeypatch.setenv(sources.ENVIRONMENT, str(root))
    write_idx_set(root / folder)
    loaded = data.load(name)
    assert loaded.name == name
    assert (len(loaded.train), len(loaded.test), loaded.num_classes) == (6, 6, 10)


def test_the_environment_goes_before_the_usual_places(nowhere, monkeypatch):
    write_idx_set(nowhere / "chosen" / "mnist", count=4)
    write_idx_set(nowhere / "work" / "data" / "mnist", count=5)
    assert len(data.load("mnist").train) == 5
    monkeypatch.setenv(sources.ENVIRONMENT, str(nowhere / "chosen"))
    assert len(data.load("mnist").train) == 4


@pytest.mark.parametrize("given", ["MNIST/raw", "MNIST", "."])
def test_idx_directories_are_taken_for_what_their_folder_says(tmp_path, given):
    write_idx_set(tmp_path / "MNIST" / "raw")
    loaded = data.load(tmp_path / given)
    assert (loaded.name, loaded.image_shape) == ("mnist", (1, 2, 3))
    assert loaded.train.images[:, 0, 0, 0].tolist() == list(range(6))
    assert loaded.train.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_an_idx_directory_of_another_name_counts_its_classes(tmp_path):
    write_idx_set(tmp_path / "letters" / "raw", first_label=20)
    loaded = data.load(str(tmp_path / "letters" / "raw"))
    assert (loaded.name, loaded.num_classes, loaded.class_names[22]) == ("letters", 23, "22")


def test_a_directory_with_two_sets_is_refused_and_both_are_named(tmp_path):
    write_idx_set(tmp_path / "MNIST" / "raw")
    write_idx_set(tmp_path / "FashionMNIST" / "raw")
    with pytest.raises(data.DataError, match="several") as caught:
        data.load(tmp_path)
    assert str(tmp_path / "MNIST" / "raw") in str(caught.value)
    assert str(tmp_path / "FashionMNIST" / "raw") in str(caught.value)


def test_cifar_is_detected_by_its_folder_and_the_binary_version_goes_first(tmp_path, monkeypatch):
    small = [dataclasses.replace(layout, train_records=2, test_records=2) for layout in cifar.LAYOUTS]
    monkeypatch.setattr(sources, "LAYOUTS", small)
    binary = tmp_path / "cifar-10-batches-bin"
    binary.mkdir()
    for name in (*small[0].train_files, small[0].test_file):
        (binary / name).write_bytes(bytes([7, *[1] * 3072]) * 2)
    python = tmp_path / "cifar-10-batches-py"
    python.mkdir()
    (python / "data_batch_1").write_bytes(b"would be refused")
    for path in (tmp_path, binary):
        loaded = data.load(path)
        assert (loaded.name, len(loaded.train), len(loaded.test)) == ("cifar10", 10, 2)
    monkeypatch.setenv(sources.ENVIRONMENT, str(tmp_path))
    assert data.load("CIFAR-10").train.labels.tolist() == [7] * 10


def test_an_empty_directory_and_a_strange_file_are_refused(tmp_path):
    with pytest.raises(data.DataNotFoundError, match="found none of these"):
        data.load(tmp_path)
    (tmp_path / "notes.txt").write_text("?")
    with pytest.raises(data.DataError, match="got another file"):
        data.load(tmp_path / "notes.txt")


def test_a_home_directory_sign_is_understood(nowhere):
    np.savez(
        nowhere / "home" / "mine.npz",
        images=np.zeros((2, 3, 3), np.uint8),
        labels=np.array([0, 1]),
    )
    assert data.load("~/mine.npz").name == "mine"


IMAGES = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[0], LABELS, r"images: expected shape \(N, C, H, W\), got \(1, 2, 2\)"),
        (IMAGES.double(), LABELS, "images: expected uint8 or float32, got torch.float64"),
        (IMAGES, LABELS.int(), "labels: expected int64, got torch.int32"),
        (IMAGES, LABELS[:3], r"labels: expected one per image, shape \(4,\), got \(3,\)"),
        (IMAGES[:0], LABELS[:0], "images: expected at least one pixel"),
        (IMAGES.float() + 1.5, LABELS, r"expected float values in \[0, 1\], got \[1.5, 1.5\]"),
        (IMAGES.float() - 0.5, LABELS, r"expected float values in \[0, 1\], got \[-0.5, -0.5\]"),
        (IMAGES.float() / 0, LABELS, "got .*nan"),
    ],
)
def test_a_split_says_what_is_wrong_with_its_tensors(images, labels, message):
    with pytest.raises(data.DataError, match=message):
        data.Split(images, labels)


def test_a_dataset_says_what_contradicts_what():
    train = data.Split(IMAGES, LABELS)
    with pytest.raises(data.DataError, match="class_names: expected 2, got 1"):
        data.Dataset("d", train, None, 2, ("a",))
    with pytest.raises(data.DataError, match=r"train labels: expected 0..0, got 0..1"):
        data.Dataset("d", train, None, 1, ("a",))
    with pytest.raises(data.DataError, match=r"test labels: expected 0..1, got -1..-1"):
        data.Dataset("d", train, data.Split(IMAGES[:1], LABELS[:1] - 1), 2, ("a", "b"))
    with pytest.raises(data.DataError, match=r"test images: expected \(1, 2, 2\)"):
        data.Dataset("d", train, data.Split(IMAGES[..., :1], LABELS), 2, ("a", "b"))
    with pytest.raises(data.DataError, match=r"test images: expected torch.uint8 as in train"):
        data.Dataset("d", train, data.Split(IMAGES.float(), LABELS), 2, ("a", "b"))


def test_dataset_and_split_are_frozen_and_print_without_pixels():
    loaded = data.Dataset("d", data.Split(IMAGES, LABELS), None, 2, ("a", "b"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.name = "e"
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.train.images = IMAGES
    assert "Split(4 images (1, 2, 2), torch.uint8)" in repr(loaded)
