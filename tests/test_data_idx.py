"""The IDX parser: files written by hand, and every way in which they can be damaged."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch

from fastsal.data import DataError, DataNotFoundError
from fastsal.data.idx import STEMS, _BoundedGzip, read_idx, read_idx_directory


def idx(shape: tuple[int, ...], values: bytes, *, begin: bytes = b"\0\0\x08") -> bytes:
    return begin + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values


PIXELS = bytes(range(24))
GOOD = idx((2, 3, 4), PIXELS)


def written(directory: Path, content: bytes, name: str = "file-idx3-ubyte") -> Path:
    path = directory / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("level", [None, 0, 9])
def test_plain_and_gzip_files_give_the_values_in_order(tmp_path, level):
    content = GOOD if level is None else gzip.compress(GOOD, level)
    path = written(tmp_path, content, "f" if level is None else "f.gz")
    got = read_idx(path, 3)
    assert got.dtype == torch.uint8
    assert got.tolist() == [[[12 * i + 4 * j + k for k in range(4)] for j in range(3)] for i in range(2)]


def test_a_file_of_many_chunks_survives_gzip(tmp_path):
    generator = torch.Generator().manual_seed(0)
    # Noise does not compress, so the reader needs several chunks; zeros compress into few bytes.
    noise = torch.randint(256, (300_000,), generator=generator, dtype=torch.uint8)
    values = torch.cat([noise, torch.zeros(700_000, dtype=torch.uint8), noise])
    content = gzip.compress(idx((1_300_000,), bytes(values.tolist())))
    assert torch.equal(read_idx(written(tmp_path, content, "f.gz"), 1), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated: expected a header of 16 bytes, got 0"),
        (GOOD[:15], "truncated: expected a header of 16 bytes, got 15"),
        (idx((2, 3, 4), PIXELS, begin=b"\0\1\x08"), "magic number: .*got 00 01"),
        (b"\x89PNG" + GOOD[4:], "magic number: .*got 89 50"),
        (idx((2, 3, 4), PIXELS, begin=b"\0\0\x0d"), "type: expected 0x08 .*got 0x0d"),
        (idx((24,), PIXELS), "dimensions: expected 3, got 1"),
        (idx((0, 3, 4), b""), r"values: expected 1\.\..*got 0"),
        (idx((2**16, 2**16, 2**16), PIXELS), r"values: expected 1\.\."),
        (GOOD + b"\0", "trailing data"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_each_fault_is_named(tmp_path, content, message, compress):
    path = written(tmp_path, gzip.compress(content) if compress else content, "f.gz" if compress else "f")
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("compress", [False, True])
def test_every_truncation_is_found(tmp_path, compress):
    content = gzip.compress(GOOD) if compress else GOOD
    for length in range(len(content)):
        path = written(tmp_path, content[:length], "f.gz" if compress else "f")
        with pytest.raises(DataError, match="truncated"):
            read_idx(path, 3)


def test_no_flipped_bit_of_compressed_values_changes_them(tmp_path):
    # The first ten bytes are gzip's own header, in which time and system do not matter; nor do
    # the bits that fill the last byte of the compressed data.
    found = 0
    content = gzip.compress(GOOD)
    for position in range(10, len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            try:
                got = read_idx(written(tmp_path, bytes(damaged), "f.gz"), 3)
            except DataError:
                found += 1
            else:
                assert bytes(got.flatten().tolist()) == PIXELS
    assert found >= 8 * (len(content) - 10) - 7


@pytest.mark.parametrize("chunk", [1, 5, 1 << 16])
def test_something_after_the_gzip_data_is_refused(tmp_path, monkeypatch, chunk):
    # What follows may come with the last chunk that is read, or only after it.
    monkeypatch.setattr(_BoundedGzip, "_CHUNK", chunk)
    assert read_idx(written(tmp_path, gzip.compress(GOOD), "f.gz"), 3).shape == (2, 3, 4)
    for more in (b"\0", gzip.compress(b"more")):
        with pytest.raises(DataError, match="trailing data"):
            read_idx(written(tmp_path, gzip.compress(GOOD) + more, "f.gz"), 3)


def test_what_is_not_gzip_is_refused(tmp_path):
    with pytest.raises(DataError, match="damaged gzip"):
        read_idx(written(tmp_path, GOOD, "f.gz"), 3)


def peak_memory_of_refusal(path: Path, message: str) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message):
            read_idx(path, 3)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_gzip_bomb_is_not_decompressed(tmp_path):
    bomb = written(tmp_path, gzip.compress(GOOD + bytes(50_000_000)), "f.gz")
    assert peak_memory_of_refusal(bomb, "trailing data") < 1_000_000


@pytest.mark.parametrize("compress", [False, True])
def test_a_header_that_promises_too_much_allocates_nothing(tmp_path, compress):
    content = idx((2**28, 1, 1), PIXELS)
    path = written(tmp_path, gzip.compress(content) if compress else content, "f.gz" if compress else "f")
    assert peak_memory_of_refusal(path, "truncated") < 1_000_000


def write_set(directory: Path) -> None:
    for stem in STEMS:
        shape, values = ((2, 3, 4), PIXELS) if "idx3" in stem else ((2,), b"\1\3")
        (directory / f"{stem}.gz").write_bytes(gzip.compress(idx(shape, values)))


def test_a_directory_gives_both_parts_with_a_channel_axis(tmp_path):
    write_set(tmp_path)
    got = read_idx_directory(tmp_path, "fashion-mnist")
    assert got.train.images.shape == got.test.images.shape == (2, 1, 3, 4)
    assert got.test.labels.tolist() == [1, 3]
    assert got.class_names[got.test.labels[0]] == "Trouser"


@pytest.mark.parametrize("stem", STEMS)
def test_a_missing_file_is_named_with_its_place_and_how_to_get_it(tmp_path, stem):
    write_set(tmp_path)
    (tmp_path / f"{stem}.gz").unlink()
    with pytest.raises(DataNotFoundError, match="apt install dataset-fashion-mnist") as caught:
        read_idx_directory(tmp_path, "fashion-mnist")
    assert stem in str(caught.value) and str(tmp_path) in str(caught.value)


def test_as_many_labels_as_images(tmp_path):
    write_set(tmp_path)
    (tmp_path / f"{STEMS[3]}.gz").write_bytes(gzip.compress(idx((3,), b"\1\2\3")))
    with pytest.raises(DataError, match=r"t10k-labels.*expected 2 labels.*got 3"):
        read_idx_directory(tmp_path, "mnist")


def test_a_label_beyond_the_classes_is_found(tmp_path):
    write_set(tmp_path)
    (tmp_path / f"{STEMS[1]}.gz").write_bytes(gzip.compress(idx((2,), b"\1\x0a")))
    with pytest.raises(DataError, match=r"train labels: expected 0\.\.9, got 1\.\.10"):
        read_idx_directory(tmp_path, "mnist")
