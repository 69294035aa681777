"""Folders of images: classes, sizes, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from fastsal.data import DataError, load

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")


def save(path: Path, value: int, *, mode: str = "L", size: tuple[int, int] = (4, 3)) -> None:
    """An image of one value, `size` as (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "P") else (value, 0, 255)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Classes ant (values 1, 2) and bee (3); a test set in val."""
    save(tmp_path / "set" / "train" / "bee" / "z.png", 3)
    save(tmp_path / "set" / "train" / "ant" / "b.png", 2)
    save(tmp_path / "set" / "train" / "ant" / "a.PNG", 1)
    save(tmp_path / "set" / "val" / "bee" / "a.png", 9)
    return tmp_path / "set"


def test_classes_are_sorted_and_images_follow_in_order(root):
    got = load(root)
    assert (got.name, got.class_names, got.image_shape) == ("set", ("ant", "bee"), (1, 3, 4))
    assert got.train.labels.tolist() == [0, 0, 1]
    assert got.train.images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert (got.test.labels.tolist(), got.test.images[0, 0, 0, 0].item()) == ([1], 9)


def test_test_goes_before_val(root):
    save(root / "test" / "ant" / "a.png", 7)
    assert load(root).test.images.max() == 7


def test_classes_may_lie_in_the_root_without_a_test_set(root):
    got = load(root / "train")
    assert (got.class_names, len(got.train), got.test) == (("ant", "bee"), 3, None)


def test_a_class_may_be_called_train(tmp_path):
    save(tmp_path / "train" / "a.png", 1)
    save(tmp_path / "ship" / "a.png", 2)
    assert load(tmp_path).class_names == ("ship", "train")


def test_colour_images_have_their_channels_first(tmp_path):
    pixels = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    (tmp_path / "c").mkdir()
    Image.fromarray(pixels).save(tmp_path / "c" / "a.png")
    got = load(tmp_path)
    assert np.array_equal(got.train.images[0].numpy(), pixels.transpose(2, 0, 1))


def test_a_palette_is_looked_up(tmp_path):
    (tmp_path / "c").mkdir()
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "c" / "a.png")
    assert load(tmp_path).train.images[0, :, 1, 1].tolist() == [10, 20, 30]


@pytest.mark.parametrize("odd", [{"size": (3, 4)}, {"mode": "RGB"}], ids=["another size", "another kind"])
def test_the_first_odd_image_is_named(root, odd):
    save(root / "train" / "bee" / "odd1.png", 1, **odd)
    save(root / "train" / "bee" / "odd2.png", 1, **odd)
    with pytest.raises(DataError, match=r"odd1.png: expected .*\(1, 3, 4\).*got") as caught:
        load(root)
    assert "odd2" not in str(caught.value)


def test_an_odd_test_image_is_named(root):
    save(root / "val" / "ant" / "wide.png", 1, size=(5, 3))
    with pytest.raises(DataError, match=r"wide.png.*\(1, 3, 4\).*got \(1, 3, 5\)"):
        load(root)


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_transparency_and_depth_are_not_thrown_away(root, mode):
    (root / "train" / "ant" / "0.png").parent.mkdir(exist_ok=True)
    Image.new(mode, (4, 3)).save(root / "train" / "ant" / "0.png")
    with pytest.raises(DataError, match=f"0.png: expected 8-bit.*got mode {mode}"):
        load(root)


def test_a_damaged_image_is_named(root):
    path = root / "train" / "bee" / "z.png"
    content = path.read_bytes()
    for damaged in (b"", b"no image", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"z.png: expected an image, cannot read it"):
            load(root)


def test_a_class_that_only_the_test_set_has_is_refused(root):
    save(root / "val" / "wasp" / "a.png", 1)
    with pytest.raises(DataError, match=r"expected a class of the train set.*got 'wasp'"):
        load(root)


def test_an_empty_class_is_refused_and_hidden_files_are_not_images(root):
    (root / "train" / "cow").mkdir()
    (root / "train" / "cow" / ".hidden.png").write_bytes(b"")
    (root / "train" / "cow" / "notes.txt").write_bytes(b"")
    with pytest.raises(DataError, match=r"cow: expected images .*found none"):
        load(root)


def test_an_empty_test_set_is_refused(root):
    (root / "test").mkdir()
    with pytest.raises(DataError, match="test: expected a folder of images for each class"):
        load(root)


def test_without_pillow_the_error_says_how_to_get_it(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match="pip install pillow"):
        load(root)
