"""One noise on every backend, bit for bit: the words of Philox themselves, and the Linf start however a batch is cut.

The reference is held to the published answers in test_reference.py; here each backend is held to the reference. Triton
runs in a process of its own: its words and cuts are checked by triton_interpreted.py.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from compiled import build as build_program
from emulated import build, compiler, emulated
from operands import BODIES, clean, laid_out
from torch import Tensor

from fastsal import reference
from fastsal.backends import body_of

EXTREMES = (0, 1, 5, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**40 + 3, 0x123456789ABCDEF, 2**63 - 1, -(2**63), -2, -1)
LAST_BLOCK = -1  # the one that draws what a row shares


def keys() -> Iterator[tuple[int, int, int]]:
    """(seed, sample id, counter block), as int64."""
    yield from itertools.product(EXTREMES, EXTREMES, (0, 1, 2**29 + 1, 2**32 - 1, 2**32 + 7, 2**61 + 2, LAST_BLOCK))


def words_by_reference(length: int) -> Tensor:
    """(keys, 4 * length) words of `length` blocks from each on."""
    found = []
    for seed, sample, block in keys():
        blocks = torch.arange(length) + block if length > 1 else torch.tensor([block])
        found.append(reference.philox(torch.tensor(seed), blocks, torch.tensor([sample])).flatten())
    return torch.stack(found)


@pytest.mark.parametrize("tier", ["baseline", "avx2", "avx512"])
def test_cpp_words_are_those_of_the_reference(tier: str, tmp_path: Path) -> None:
    program = build_program("noise_words.cpp", tmp_path)
    numbers = [str(number % 2**64) for key in keys() for number in key]
    outcome = subprocess.run([program, tier, *numbers], capture_output=True, text=True, check=False)
    if outcome.returncode == 3:
        pytest.skip(f"this processor has no {tier}")
    found = torch.tensor([[int(word) for word in line.split()] for line in outcome.stdout.splitlines()])
    assert torch.equal(found[:, :4], words_by_reference(1))
    last = torch.tensor([key[2] == LAST_BLOCK for key in keys()])  # nobody asks for what would follow it
    several = (found.shape[1] - 4) // 4
    assert several > 1 and torch.equal(found[~last, 4:], words_by_reference(several)[~last])
    assert torch.equal(found[last, 4:8], found[last, :4])


WORDS_KERNEL = """
#include "cuda/launch.h"
#include "rows/noise.h"

__global__ void words_kernel(const int64_t* keys, uint32_t* words, int64_t count) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x)
    fastsal::philox_block(uint64_t(keys[3 * i]), uint64_t(keys[3 * i + 1]), uint64_t(keys[3 * i + 2]), words + 4 * i);
}

extern "C" const char* run(const int64_t* keys, uint32_t* words, int64_t count, unsigned threads, uint64_t seed) {
  return emulator::guarded(seed, threads, nullptr, 0, [&] {
    fastsal::launch("words", words_kernel, dim3(3), threads, 0, nullptr, keys, words, count);
  });
}
"""


@pytest.mark.parametrize("threads", [32, 96, 256])
def test_cuda_words_are_those_of_the_reference(threads: int) -> None:
    compiler()
    library = ctypes.CDLL(str(build(WORDS_KERNEL)))
    library.run.restype = ctypes.c_char_p
    wanted = torch.tensor(list(keys()))
    words = torch.full((len(wanted), 4), -1, dtype=torch.int32)
    pointers = (ctypes.c_void_p(wanted.data_ptr()), ctypes.c_void_p(words.data_ptr()))
    said = library.run(*pointers, ctypes.c_int64(len(wanted)), ctypes.c_uint(threads), ctypes.c_uint64(threads))
    assert not said, said.decode()
    assert torch.equal(words.to(torch.int64) % 2**32, words_by_reference(1))


# ---------------------------------------------------------------------------------------------- the start

BACKENDS = {body: functools.partial(body_of, name=body) for body in BODIES}
BACKENDS |= {
    f"cuda, blocks of {threads or 'the usual'}": functools.partial(
        lambda operator, threads: functools.partial(emulated, operator, threads=threads, seed=threads), threads=threads
    )
    for threads in (0, 32, 160)
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("dtype", "shape"), [(torch.float32, (3, 33, 31)), (torch.float64, (3, 4, 5))])
def test_a_linf_start_is_the_same_however_a_batch_is_cut(
    backend: str, layout: str, dtype: torch.dtype, shape: tuple[int, ...], one_thread: None
) -> None:
    """A sample's noise follows its id, not its place in a batch; seeds and ids beyond 2**32 too."""
    body = BACKENDS[backend]("random_start")
    samples = torch.tensor([0, 5, 2**32 + 5, -1, 2**63 - 1, 2**32, 7])
    x = laid_out(clean(7, shape, dtype), layout)
    eps, box = torch.linspace(0, 0.3, 7, dtype=dtype), (torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype))
    starts = []
    for seed in (torch.tensor(3), torch.tensor(2**32 + 3), torch.tensor(-(2**63))):
        (whole,) = reference.random_start(x, eps, seed, samples, *box, None, math.inf)
        for ids in ([0, 1, 2, 3, 4, 5, 6], [6], [2, 1], [4, 0, 3], [5, 5]):
            start = laid_out(torch.full((len(ids), *shape), math.nan, dtype=dtype), layout)
            body(x, eps, seed, samples, *box, torch.tensor(ids), math.inf, start)
            assert torch.equal(start, whole[ids])
        # and from operands that hold no other sample
        for piece in torch.arange(7).split(3):
            start = laid_out(torch.full((len(piece), *shape), math.nan, dtype=dtype), layout)
            body(x[piece], eps[piece], seed, samples[piece], *box, None, math.inf, start)
            assert torch.equal(start, whole[piece])
        starts.append(whole)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(starts, 2))  # every half of a seed counts
    assert not torch.equal(starts[0][1] - x[1], starts[0][2] - x[2])  # and of an id
