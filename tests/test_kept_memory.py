"""Memory kept during an attack: the system sees fewer pages come and go, and malloc is left as glibc would have it."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

import fastsal
from fastsal import heap

WITHIN = [(heap.M_MMAP_THRESHOLD, heap.WHOLE_BLOCKS), (heap.M_TRIM_THRESHOLD, heap.NEVER)]
AFTER = [(heap.M_MMAP_THRESHOLD, 32 * 2**20), (heap.M_TRIM_THRESHOLD, 64 * 2**20)]

# Blocks as a forward makes them, freed as a backward does: how many pages the system hands out for each later step.
FAULTS = """
import json, resource, sys
from contextlib import nullcontext
import torch
import fastsal

how, floats, blocks, steps = sys.argv[1], *map(int, sys.argv[2:])

def step():
    made = [torch.ones(floats) for _ in range(blocks)]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

torch.set_num_threads(1)
at_first, taken = resident(), []
with fastsal.kept_memory() if how == "kept" else nullcontext():
    step()
    for _ in range(steps):
        before = faults()
        step()
        taken.append(faults() - before)
    inside = resident() - at_first
print(json.dumps([taken, inside, resident() - at_first]))
"""
SMALL, LARGE = (6_000_000, 8), (12_000_000, 3)  # floats, blocks; glibc would take no block of the second from its heap


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What mallopt is told, in place of telling it."""
    told: list[tuple[int, int]] = []

    def mallopt(parameter: int, value: int) -> int:
        told.append((parameter, value))
        return 1

    monkeypatch.setattr(heap, "_mallopt", lambda: mallopt)
    monkeypatch.setattr(heap, "_malloc_trim", lambda: lambda pad: 0)
    monkeypatch.setattr(heap, "_sbrk", lambda: lambda more: 0)
    monkeypatch.setattr(heap, "refusal", lambda device: None if device == "cpu" else "another device")
    return told


def process(how: str, floats: int, blocks: int, steps: int) -> tuple[list[int], int, int]:
    """Faults of each step but the first, and the bytes that are resident in the end of them and of all."""
    command = [sys.executable, "-c", FAULTS, how, *map(str, (floats, blocks, steps))]
    taken, inside, afterwards = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return taken, inside, afterwards


needs_glibc = pytest.mark.skipif(
    heap.refusal("cpu") is not None, reason=f"memory is not kept here: {heap.refusal('cpu')}"
)


@needs_glibc
@pytest.mark.parametrize("blocks", [SMALL, LARGE], ids=["small", "large"])
def test_a_step_takes_the_pages_of_the_step_before(blocks: tuple[int, int]) -> None:
    if blocks == LARGE and tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 35):
        pytest.skip("glibc before 2.35 takes no such block from its heap")
    usual = statistics.median(process("not kept", *blocks, steps=3)[0])
    if usual < 10_000:
        pytest.skip(f"only {usual} faults without it: pages are huge here")
    # A small block that lies between two large ones costs the heap another large one, at times in several steps: where
    # they come to lie is drawn anew with each process. So most steps are looked at, not their sum.
    taken = process("kept", *blocks, steps=15)[0]
    assert statistics.median(taken) * 5 < usual, taken


@needs_glibc
def test_what_was_kept_goes_back_in_the_end() -> None:
    _, inside, afterwards = process("kept", *SMALL, steps=4)
    assert inside > 180 * 2**20 > 4 * afterwards


# A heap of gaps that a larger block does not fit: small ones keep them apart.
GAPS = """
import ctypes, resource, sys
import torch
from fastsal import heap

inside_a_loop, looks = sys.argv[1] == "loop", sys.argv[2] == "look"
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype = ctypes.c_void_p

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

torch.set_num_threads(1)
at_first = resident()
with heap.kept_memory() if inside_a_loop else heap.kept("cpu"):
    gaps = []
    for _ in range(12):
        gaps.append(torch.ones(8_000_000))
        while libc.malloc(3_000) < gaps[-1].data_ptr():  # until no place before it is left
            pass
    gaps.clear()
    block = torch.ones(16_000_000)
    if looks:
        heap.look()
    print(resident() - at_first)
"""


def resident(place: str, looks: str) -> int:
    """Bytes that are resident with 12 gaps of 32 MB and a block of 64 MB, more than before."""
    command = [sys.executable, "-c", GAPS, place, looks]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(
    heap.refusal("cpu") is not None or heap._mallinfo() is None,
    reason="memory is not kept here, or glibc does not say how much is in use",
)
def test_a_heap_full_of_gaps_gives_them_back() -> None:
    gaps = 12 * 32 * 10**6
    unseen, seen, in_a_loop = resident("alone", "no"), resident("alone", "look"), resident("loop", "look")
    assert unseen > gaps > 3 * seen
    assert in_a_loop > gaps  # an attack inside a loop does not know what the loop needs


def test_the_heap_is_looked_at_once_it_has_grown(monkeypatch: pytest.MonkeyPatch, settings: object) -> None:
    end, use, given_back = [0], heap._Use(), []
    for name in ("_end", "_given_back", "_most_in_use"):
        monkeypatch.setattr(heap, name, 0)
    monkeypatch.setattr(heap, "_sbrk", lambda: lambda more: end[0])
    monkeypatch.setattr(heap, "_mallinfo", lambda: lambda: use)
    monkeypatch.setattr(heap, "_malloc_trim", lambda: lambda pad: given_back.append(end[0] // 2**20))

    def grown(to: int, in_use: int, loop: bool = False) -> list[int]:
        """Looks at a heap of so many MiB; when anything was given back up to now."""
        end[0], use.arena, use.uordblks = to * 2**20, to * 2**20, in_use * 2**20
        heap.look(loop)
        return given_back

    assert grown(1000, 1) == []  # nobody holds anything
    with heap.kept("cpu"):
        assert grown(1100, 550) == []
        assert grown(1131, 500) == []  # grown by less than is looked at
        assert grown(1132, 500) == [1132]
        assert grown(1407, 500) == [1132]  # by less than half of what was in use, since then
        assert grown(1439, 500) == [1132, 1439]
        assert grown(1900, 960) == [1132, 1439]
        given_back.clear()
        assert grown(1920, 100) == []  # the most counts, not what is in use now
    with heap.kept("cpu"):
        assert grown(2000, 500) == [2000]  # half of the most of the attack before is less
        given_back.clear()
    with heap.kept_memory():
        assert grown(3000, 100) == []  # an attack in it does not know
        assert grown(3100, 100, loop=True) == [3100]
        with heap.kept_memory():
            assert grown(4000, 100, loop=True) == [3100]  # nor does fastsal.train in the user's
    assert given_back == [3100, 4000]  # as its end does
    with heap.kept("cpu"):
        assert grown(5000, 100)[2:] == [5000]


def test_attacks_look_with_all_activations_there_and_training_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr(heap, "look", lambda loop=False: looks.append(loop))
    x, y = torch.rand(4, 3), torch.tensor([0, 1, 0, 1])
    model = nn.Linear(3, 2)
    fastsal.PGD(model, eps=0.1, steps=3)(x, y)
    assert looks == 3 * [False]
    looks.clear()
    fastsal.train(model, [(x, y)] * 2, method="pgd", epochs=1, steps=3, seed=0, progress=False)
    assert looks == 2 * [False, False, False, True]


def test_an_attack_keeps_memory_and_puts_the_thresholds_back(settings: list[tuple[int, int]]) -> None:
    during: list[list[tuple[int, int]]] = []

    class Looking(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            during.append(list(settings))
            return super().forward(x)

    x, y = torch.rand(4, 3), torch.tensor([0, 1, 0, 1])
    _, info = fastsal.PGD(Looking(3, 2), eps=0.1, steps=2)(x, y, return_info=True)
    assert info.levers["kept_memory"] == "on"
    assert during and all(told == WITHIN for told in during)
    assert settings == WITHIN + AFTER


@pytest.mark.parametrize("fast", [False, fastsal.Levers(kept_memory=False)], ids=str)
def test_off_leaves_malloc_alone(settings: list[tuple[int, int]], fast: object) -> None:
    x, y = torch.rand(4, 3), torch.tensor([0, 1, 0, 1])
    _, info = fastsal.PGD(nn.Linear(3, 2), eps=0.1, steps=2, fast=fast)(x, y, return_info=True)
    assert info.levers["kept_memory"] == "off" and settings == []


def test_an_attack_that_fails_puts_them_back(settings: list[tuple[int, int]]) -> None:
    class Broken(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fastsal.PGD(Broken(3, 2), eps=0.1, steps=2)(torch.rand(4, 3), torch.tensor([0, 1, 0, 1]))
    assert settings == WITHIN + AFTER


def test_the_last_thread_to_leave_puts_them_back(settings: list[tuple[int, int]]) -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with heap.kept("cpu"):
            inside.set()
            leave.wait(60)

    other = threading.Thread(target=hold, daemon=True)
    with heap.kept("cpu"):
        other.start()
        assert inside.wait(60)
    assert settings == WITHIN
    leave.set()
    other.join(60)
    assert settings == WITHIN + AFTER


def test_an_older_glibc_takes_smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def mallopt(parameter: int, value: int) -> int:
        told.append((parameter, value))
        return int(parameter == heap.M_TRIM_THRESHOLD or value <= 32 * 2**20)

    monkeypatch.setattr(heap, "_mallopt", lambda: mallopt)
    monkeypatch.setattr(heap, "_sbrk", lambda: lambda more: 0)
    monkeypatch.setattr(heap, "refusal", lambda device: None)
    with heap.kept("cpu"):
        assert told == [WITHIN[0], AFTER[0], WITHIN[1]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_that_is_forked_inside_has_the_thresholds_of_afterwards(settings: list[tuple[int, int]]) -> None:
    with heap.kept("cpu"):
        child = os.fork()
        if child == 0:  # no assertion may leave here: the child would run the other tests
            right = settings == WITHIN + AFTER
            with heap.kept("cpu"):
                right = right and settings == WITHIN + AFTER + WITHIN
            os._exit(0 if right and settings == 2 * (WITHIN + AFTER) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert settings == WITHIN + AFTER


def test_a_thread_of_its_own_is_told_that_little_is_kept(settings: list[tuple[int, int]]) -> None:
    notes = []

    def attacked() -> None:
        x, y = torch.rand(4, 3), torch.tensor([0, 1, 0, 1])
        notes.append(fastsal.PGD(nn.Linear(3, 2), eps=0.1, steps=2)(x, y, return_info=True)[1].levers["kept_memory"])

    thread = threading.Thread(target=attacked)
    thread.start()
    thread.join()
    assert notes == ["on, but glibc keeps little for a thread other than the main one"]


def test_training_keeps_it_for_the_run_and_evaluation_for_a_batch(settings: list[tuple[int, int]]) -> None:
    model = nn.Linear(3, 2)
    batches = [(torch.rand(4, 3), torch.tensor([0, 1, 0, 1])) for _ in range(3)]
    fastsal.train(model, batches, epochs=2, steps=2, seed=0, progress=False)
    assert settings == WITHIN + AFTER
    settings.clear()
    fastsal.evaluate(model, batches[:2], eps=0.1, steps=2, margin_steps=2, progress=False)
    assert settings == 2 * (WITHIN + AFTER)


def test_on_another_device_nothing_is_set(settings: list[tuple[int, int]]) -> None:
    with heap.kept("cuda"):
        pass
    assert settings == []


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "100000", "MALLOC_TRIM_THRESHOLD_ is set"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=65536", "GLIBC_TUNABLES sets glibc.malloc.mmap_threshold"),
    ],
)
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str) -> None:
    if (why := heap.refusal("cpu")) is not None:
        pytest.skip(f"memory is not kept here: {why}")
    monkeypatch.setenv(name, value)
    heap.refusal.cache_clear()
    try:
        _, info = fastsal.PGD(nn.Linear(3, 2), eps=0.1, steps=1)(
            torch.rand(2, 3), torch.tensor([0, 1]), return_info=True
        )
    finally:
        heap.refusal.cache_clear()
    assert info.levers["kept_memory"] == f"off: {reason}"


def test_other_devices_need_nothing() -> None:
    assert heap.refusal("cuda") == "torch itself keeps the memory of a device"
