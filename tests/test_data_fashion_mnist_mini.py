"""The embedded data set: what it promises, that damage is found, and that it can be rebuilt."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from fastsal.data import DataError, DataNotFoundError, load
from fastsal.data.fashion_mnist_mini import PATH, SHA256, read_fashion_mnist_mini
from fastsal.data.sources import DEBIAN

TOOL = Path(__file__).parents[1] / "tools" / "make_fashion_mnist_mini.py"
SOURCE = DEBIAN / "fashion-mnist"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    if not TOOL.is_file():
        pytest.skip("tested without the repository around it: there is no tools/ beside tests/")
    specification = importlib.util.spec_from_file_location("make_fashion_mnist_mini", TOOL)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(PATH, allow_pickle=False) as archive:
        return dict(archive)


def test_it_has_the_promised_size_types_and_balance():
    mini = load("fashion-mnist-mini")
    assert (mini.num_classes, mini.image_shape) == (10, (1, 28, 28))
    assert mini.class_names[9] == "Ankle boot"
    for split, per_class in ((mini.train, 800), (mini.test, 200)):
        assert split.images.dtype == torch.uint8
        assert torch.bincount(split.labels).tolist() == [per_class] * 10
    assert mini.train.images.min() == 0 and mini.train.images.max() == 255


def test_no_image_is_there_twice():
    mini = load("fashion-mnist-mini")
    images = torch.cat([mini.train.images, mini.test.images]).numpy()
    assert len({image.tobytes() for image in images}) == 10_000


def test_classes_are_mixed_so_that_a_prefix_is_a_sample():
    assert torch.bincount(load("fashion-mnist-mini").train.labels[:500], minlength=10).min() > 20


def test_classes_can_be_told_apart_by_their_labels():
    # Nearest class mean reaches about 0.68 on the full set; wrong labels give 0.1.
    mini = load("fashion-mnist-mini")
    train, test = (split.images.flatten(1).float() for split in (mini.train, mini.test))
    means = torch.stack([train[mini.train.labels == label].mean(0) for label in range(10)])
    right = torch.cdist(test, means).argmin(1) == mini.test.labels
    assert 0.6 < right.float().mean() < 0.8


def test_each_load_gives_memory_of_its_own():
    first = load("fashion-mnist-mini")
    first.train.images.zero_()
    assert load("fashion-mnist-mini").train.images.max() == 255


@pytest.mark.parametrize("name", sorted(SHA256))
def test_one_changed_byte_of_any_array_is_found(tmp_path, arrays, name):
    changed = arrays[name].copy()
    changed.flat[-1] ^= 1
    np.savez(tmp_path / "mini.npz", **(arrays | {name: changed}))
    with pytest.raises(DataError, match=f"{name}: expected SHA-256 {SHA256[name]}"):
        read_fashion_mnist_mini(tmp_path / "mini.npz")


def test_one_flipped_byte_of_the_file_is_found(tmp_path):
    content = bytearray(PATH.read_bytes())
    content[len(content) // 2] ^= 0x40
    (tmp_path / "mini.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"mini.npz"):
        read_fashion_mnist_mini(tmp_path / "mini.npz")


def test_another_type_shape_or_a_missing_array_is_found(tmp_path, arrays):
    path = tmp_path / "mini.npz"
    np.savez(path, **(arrays | {"y_test": arrays["y_test"].astype(np.int64)}))
    with pytest.raises(DataError, match=r"y_test: expected uint8 \(2000,\), got int64"):
        read_fashion_mnist_mini(path)
    np.savez(path, **(arrays | {"x_test": arrays["x_test"].reshape(2000, 784)}))
    with pytest.raises(DataError, match=r"x_test: expected uint8 \(2000, 28, 28\)"):
        read_fashion_mnist_mini(path)
    np.savez(path, **{name: array for name, array in arrays.items() if name != "y_train"})
    with pytest.raises(DataError, match="expected the array y_train"):
        read_fashion_mnist_mini(path)


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(DataNotFoundError, match="reinstall fastsal"):
        read_fashion_mnist_mini(tmp_path / "mini.npz")


def test_the_file_is_small_and_its_licence_is_beside_it():
    assert PATH.stat().st_size < 5_000_000
    licence = PATH.with_name("FASHION_MNIST_LICENSE").read_text(encoding="utf-8")
    assert "MIT" in licence and "2017 Zalando SE" in licence


def test_the_file_bears_no_time_of_day(tool):
    with zipfile.ZipFile(PATH) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    small = {"a": np.arange(1000), "b": np.zeros(3, np.uint8)}
    content = tool.npz_bytes(small)
    assert content == tool.npz_bytes(small)


def test_what_the_tool_writes_numpy_reads(tool, tmp_path):
    (tmp_path / "a.npz").write_bytes(tool.npz_bytes({"a": np.arange(1000), "b": np.eye(2)}))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["a"], np.arange(1000))
        assert np.array_equal(archive["b"], np.eye(2))


@pytest.mark.skipif(not SOURCE.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_the_selection_is_rebuilt_from_the_full_set(tool, arrays):
    rebuilt = tool.make_arrays(SOURCE)
    assert rebuilt.keys() == arrays.keys() == SHA256.keys()
    for name, array in rebuilt.items():
        assert np.array_equal(array, arrays[name]), name
        assert hashlib.sha256(array.tobytes()).hexdigest() == SHA256[name]


@pytest.mark.skipif(not SOURCE.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_the_debian_package_is_read_whole():
    full = load("fashion-mnist")
    assert (len(full.train), len(full.test)) == (60_000, 10_000)
    assert torch.bincount(full.train.labels).tolist() == [6_000] * 10
    assert torch.bincount(full.test.labels).tolist() == [1_000] * 10
