"""Data sets in .npz files: layouts, ranges, and refusals."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastsal.data import DataError, DataNotFoundError, load

RNG = np.random.default_rng(0)
NHWC = RNG.integers(0, 256, (4, 8, 6, 3), dtype=np.uint8)
NCHW = NHWC.transpose(0, 3, 1, 2)
LABELS = np.array([0, 2, 1, 2])


def saved(directory: Path, **arrays: object) -> Path:
    path = directory / "mine.npz"
    np.savez_compressed(path, **arrays)
    return path


@pytest.mark.parametrize(("images", "channels"), [(NHWC, 3), (NCHW, 3), (NHWC[..., 0], 1)])
def test_every_layout_becomes_nchw(tmp_path, images, channels):
    got = load(saved(tmp_path, x_train=images, y_train=LABELS))
    assert (got.name, got.image_shape, got.test) == ("mine", (channels, 8, 6), None)
    assert (got.num_classes, got.class_names) == (3, ("0", "1", "2"))
    assert got.train.images.dtype == torch.uint8 and got.train.images.is_contiguous()
    assert torch.equal(got.train.images, torch.from_numpy(NCHW[:, :channels].copy()))
    assert got.train.labels.tolist() == LABELS.tolist()


def test_a_test_set_and_class_names_are_read(tmp_path):
    got = load(
        saved(
            tmp_path,
            x_train=NHWC, y_train=LABELS.reshape(4, 1).astype(np.uint8),
            x_test=NCHW[:2], y_test=np.array([3, 0], np.int32),
            class_names=np.array(["a", "b", "c", "d"]),
        )
    )  # fmt: skip
    assert got.class_names == ("a", "b", "c", "d")
    assert got.train.labels.tolist() == LABELS.tolist()
    assert got.test.labels.tolist() == [3, 0]
    assert torch.equal(got.test.images, got.train.images[:2])


def test_images_and_labels_are_a_train_set(tmp_path):
    got = load(saved(tmp_path, images=NHWC, labels=LABELS, unrelated=np.zeros(3)))
    assert len(got.train) == 4 and got.test is None


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_stay_floats_in_unit_range(tmp_path, kind):
    values = (NHWC / 255).astype(kind)
    got = load(saved(tmp_path, images=values, labels=LABELS)).train
    assert got.images.dtype == torch.float32
    assert np.array_equal(got.images.numpy(), values.transpose(0, 3, 1, 2).astype(np.float32))
    x, _ = next(iter(got.loader(4)))
    assert torch.equal(x, got.images)


@pytest.mark.parametrize("shape", [(4, 3, 6, 3), (4, 1, 9, 3), (4, 5, 6, 7), (4, 3, 3, 1)])
def test_a_layout_that_could_be_either_is_refused_until_it_is_told(tmp_path, shape):
    images = np.zeros(shape, np.uint8)
    with pytest.raises(DataError, match=r"does not say which axis.*layout=.NCHW") as caught:
        load(saved(tmp_path, images=images, labels=LABELS))
    assert str(shape) in str(caught.value)
    told = saved(tmp_path, images=images, labels=LABELS, layout="NHWC")
    assert load(told).image_shape == (shape[3], shape[1], shape[2])
    told = saved(tmp_path, images=images, labels=LABELS, layout="NCHW")
    assert load(told).image_shape == shape[1:]
    with pytest.raises(DataError, match="layout: expected 'NCHW' or 'NHWC', got 'HWC'"):
        load(saved(tmp_path, images=images, labels=LABELS, layout="HWC"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": NHWC}, "expected the array labels"),
        ({"x_train": NHWC, "y_train": LABELS, "y_test": LABELS}, "expected the array x_test"),
        ({"x_test": NHWC, "y_test": LABELS}, "expected the array x_train"),
        ({"images": NHWC, "labels": LABELS, "x_train": NHWC}, "images, labels or x_train"),
        ({"a": NHWC}, r"expected arrays out of .*got \['a'\]"),
        ({"images": NHWC.astype(np.int32), "labels": LABELS}, "expected uint8 or floats"),
        ({"images": NHWC.astype(np.float32), "labels": LABELS}, r"images: .*in \[0, 1\], got"),
        ({"images": NHWC, "labels": LABELS + 0.5}, "labels: expected integers, got float64"),
        ({"images": NHWC, "labels": np.eye(4, dtype=int)}, "labels: expected one label per"),
        ({"images": NHWC, "labels": LABELS[:3]}, r"expected one label per.*\(4,\), got \(3,\)"),
        ({"images": NHWC, "labels": LABELS - 1}, r"labels: expected class indices in 0\.\.99999, got -1\.\.1"),
        ({"x_train": NHWC, "y_train": np.full(4, 2**40)}, r"y_train: expected class indices in 0\.\.99999, got 109"),
        ({"images": np.uint8(1), "labels": LABELS}, "images: expected .* got a single value"),
        ({"images": NHWC, "labels": np.int64(1)}, "labels: expected one label per"),
        ({"images": NHWC.reshape(4, -1), "labels": LABELS}, r"expected \(N, H, W\)"),
        ({"images": NHWC, "labels": LABELS, "class_names": np.arange(3)}, "list of strings"),
        ({"images": NHWC, "labels": LABELS, "class_names": np.array(["a"])}, "0..0, got 0..2"),
    ],
)
def test_each_fault_is_named_with_the_file(tmp_path, arrays, message):
    path = saved(tmp_path, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert "mine" in str(caught.value)


def test_nan_is_out_of_range(tmp_path):
    images = np.full((4, 8, 6), np.nan, np.float32)
    with pytest.raises(DataError, match=r"in .0, 1.*nan"):
        load(saved(tmp_path, images=images, labels=LABELS))


def test_pickled_objects_are_refused(tmp_path):
    path = saved(tmp_path, images=np.array([{}, []], dtype=object), labels=LABELS[:2])
    with pytest.raises(DataError, match="plain arrays"):
        load(path)


def test_damage_anywhere_is_found(tmp_path):
    path = saved(tmp_path, images=NHWC, labels=LABELS)
    content = path.read_bytes()
    for length in (0, 3, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"mine.npz"):
            load(path)
    damaged = bytearray(content)
    damaged[200] ^= 0x10
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"mine.npz"):
        load(path)


def test_whatever_byte_is_flipped_nothing_but_a_data_error_is_raised(tmp_path):
    path = saved(tmp_path, images=NHWC[:1, :2, :2], labels=LABELS[:1])
    content = path.read_bytes()
    refused = 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        try:
            load(path)
        except DataError:
            refused += 1
    assert refused > len(content) // 2


def test_a_header_that_promises_more_than_the_file_holds_is_refused_unread(tmp_path):
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("images.npy", "w") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (2**20, 2**12, 2**12)}
        )
    with pytest.raises(DataError, match=rf"mine\.npz: images: expected {2**44} bytes for uint8 .*, got 0"):
        load(path)


def test_a_single_array_under_this_name_and_no_file_are_refused(tmp_path):
    with (tmp_path / "mine.npz").open("wb") as file:
        np.save(file, NHWC)
    with pytest.raises(DataError, match="got another or a truncated file"):
        load(tmp_path / "mine.npz")
    with pytest.raises(DataNotFoundError, match=r"other.npz"):
        load(tmp_path / "other.npz")
