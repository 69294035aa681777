"""The emulator by itself: it runs right kernels right, and sees what is wrong with wrong ones."""

from __future__ import annotations

import ctypes
import functools
import subprocess
from pathlib import Path

import pytest
import torch
from emulated import Watched, build, run_emulated
from torch import Tensor

SOURCE = Path(__file__).parent / "emulator" / "wrong_kernels.cpp"


@functools.cache
def library() -> ctypes.CDLL:
    opened = ctypes.CDLL(str(build(SOURCE.read_text())))
    opened.run_wrong.restype = ctypes.c_char_p
    numbers, pointer = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint64], ctypes.c_void_p
    opened.run_wrong.argtypes = [ctypes.c_char_p, *numbers, pointer, pointer, pointer, ctypes.c_size_t]
    return opened


def run(kernel: str, kind: int = 0, blocks: int = 1, threads: int = 64, seed: int = 0) -> tuple[str, Tensor]:
    """What the emulator said, and the output, which was full of -1."""
    out, counter = torch.full((4 * blocks * threads,), -1.0), torch.zeros(1)
    watched = (Watched * 2)((out.data_ptr(), 4 * out.numel(), 0, 0, 0), (counter.data_ptr(), 4, 0, 0, 0))
    pointers = out.data_ptr(), counter.data_ptr()
    said = library().run_wrong(kernel.encode(), kind, blocks, threads, seed, *pointers, watched, 2)
    return said.decode(), out[: blocks * threads]


@pytest.mark.parametrize("kernel", ["intrinsics", "block_functions"])
@pytest.mark.parametrize("threads", [32, 64, 256, 1024])
def test_intrinsics_and_block_functions_give_what_they_must(kernel: str, threads: int) -> None:
    for seed in range(3):
        said, wrong = run(kernel, blocks=2, threads=threads, seed=seed)
        assert said == "" and not wrong.any()


def test_half_warps_may_shuffle_apart() -> None:
    said, sums = run("half_warps", threads=64)
    assert said == "" and sums.tolist() == [120.0] * 16 + [376.0] * 16 + [120.0] * 16 + [376.0] * 16


def test_a_missing_barrier_shows() -> None:
    """Shared memory holds NaN where a thread reads before its neighbour wrote, in one order of threads or another."""
    right = torch.arange(256.0).flip(0).repeat(2)
    said, out = run("reverse", blocks=2, threads=256)
    assert said == "" and torch.equal(out, right)
    said, out = run("reverse", kind=1, blocks=2, threads=256)
    early = out.isnan()
    assert said == "" and 150 < int(early.sum()) < 362  # about half of 512 read too early
    assert torch.equal(out[~early], right[~early])
    assert early[:256].any() and early[256:].any()  # the second block does not find what the first one left
    assert not torch.equal(run("reverse", kind=1, blocks=2, threads=256, seed=1)[1].isnan(), early)


@pytest.mark.parametrize("kind", [0, 1], ids=["static", "dynamic"])
def test_shared_memory_is_nan_in_every_block(kind: int) -> None:
    """Also where another operator's library was loaded first, which has shared memory of its own."""
    flag, row = torch.zeros(1, dtype=torch.bool), torch.zeros(1, 4)
    run_emulated("retire", row, row, flag, flag, None, None, row.clone(), torch.zeros(1, dtype=torch.int64), 1, False)
    said, found = run("unwritten", kind, blocks=3, threads=32)
    assert said == "" and found.isnan().all()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(1, "divergent barrier: it waits at __syncthreads ("), (2, "while thread (32, 0, 0) waits at __syncthreads (")],
)
def test_a_divergent_barrier_is_reported(kind: int, expected: str) -> None:
    assert run("barriers", 0, blocks=2)[0] == ""
    said, _ = run("barriers", kind, blocks=2)
    assert expected in said and said.startswith("kernel barriers, block (") and "<stdin>" in said
    assert ("has finished" in said) == (kind == 1)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (1, "incomplete mask: __shfl_sync (<stdin>:"),
        (2, "does not name its caller"),
        (3, "reads from lane 20, which it does not name"),
        (4, "which names another mask"),
        (5, "names lane 7, which waits at __syncthreads"),
    ],
    ids=["lane has finished", "without the caller", "from outside", "two masks", "lane at a barrier"],
)
def test_a_wrong_shuffle_mask_is_reported(kind: int, expected: str) -> None:
    said, out = run("shuffles", 0)
    assert said == "" and out.tolist() == [20.0] * 64
    for seed in range(3):
        said, _ = run("shuffles", kind, seed=seed)
        assert expected in said and "thread (" in said
    if kind == 1:
        assert "names lane 7, which has finished" in said


def test_a_warp_that_is_not_whole_is_reported() -> None:
    assert "names lane 16, which does not exist" in run("shuffles", 0, threads=48)[0]


def test_the_order_of_threads_follows_from_the_seed() -> None:
    def order(seed: int) -> Tensor:
        out, counter = torch.zeros(2 * 3 * 64), torch.zeros(1)
        pointers = out.data_ptr(), counter.data_ptr()
        assert library().run_wrong(b"arrivals", 0, 3, 64, seed, *pointers, None, 0) == b""
        return out

    first = order(5)
    assert torch.equal(order(5), first) and not torch.equal(order(6), first)
    blocks = (first // 64).view(3, 128)
    assert (blocks == blocks[:, :1]).all() and sorted(blocks[:, 0].tolist()) == [0, 1, 2]  # one block after another
    before, after = first[:64], first[64:128]
    assert not torch.equal(before, after)  # shuffled anew at the barrier
    assert torch.equal(before.sort().values, after.sort().values)
    assert len({int(order(seed)[0] // 64) for seed in range(20)}) == 3  # blocks come in any order too


def test_an_error_leaves_the_emulator_as_it_was() -> None:
    for kernel, kind in (("barriers", 1), ("shuffles", 1), ("barriers", 2)):
        assert run(kernel, kind, threads=128)[0] != ""
        said, wrong = run("intrinsics", threads=128)
        assert said == "" and not wrong.any()


def test_accesses_beside_the_operands_or_off_their_alignment_are_errors() -> None:
    assert run("reads", 0, threads=32)[0] == ""  # the one element of `counter`
    assert "reads 4 bytes outside of every operand" in run("reads", 2**20, threads=32)[0]
    assert "reads 4 bytes off their alignment" in run("reads", 2, threads=32)[0]


@pytest.mark.parametrize("threads", [0, 1025])
def test_launches_that_no_device_accepts_are_errors(threads: int) -> None:
    assert "no device accepts grid (1, 1, 1)" in run("barriers", threads=threads)[0]


def test_sanitizers_see_an_index_past_the_end_of_shared_memory() -> None:
    """Static arrays by their bounds, dynamic memory by the address sanitizer."""
    flags = ["-fsanitize=address,bounds", "-fno-sanitize-recover=bounds", "-O0"]
    program = build(SOURCE.read_text(), *flags, suffix=".program")

    def said(kind: int) -> str:
        outcome = subprocess.run([program, "beyond", str(kind), "32"], capture_output=True, text=True, check=False)
        return outcome.stdout + outcome.stderr

    assert said(0).startswith("ran\n")
    assert "index 32 out of bounds for type 'float [32]'" in said(1)
    assert "heap-buffer-overflow" in said(2)
