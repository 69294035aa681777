"""Memory kept during an attack: the system sees fewer pages come and go, and malloc is left as glibc would have it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import fastsal
from fastsal import heap

WITHIN = [(heap.M_MMAP_THRESHOLD, heap.WHOLE_BLOCKS), (heap.M_TRIM_THRESHOLD, heap.NEVER)]
AFTER = [(heap.M_MMAP_THRESHOLD, 32 * 2**20), (heap.M_TRIM_THRESHOLD, 64 * 2**20)]

# Blocks as a forward makes them, freed as a backward does: how many pages the system hands out in later rounds.
FAULTS = """
import resource, sys
from contextlib import nullcontext
import torch
from fastsal import heap

def step():
    made = [torch.ones(6_000_000) for _ in range(8)]
    made.append(torch.ones(12_000_000))  # larger than glibc would ever take from its heap

torch.set_num_threads(1)
with heap.kept_memory("cpu") if sys.argv[1] == "kept" else nullcontext():
    step()
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """What mallopt is told, in place of telling it."""
    told: list[tuple[int, int]] = []

    def mallopt(parameter: int, value: int) -> int:
        told.append((parameter, value))
        return 1

    monkeypatch.setattr(heap, "_mallopt", lambda: mallopt)
    monkeypatch.setattr(heap, "refusal", lambda device: None if device == "cpu" else "another device")
    yield told


def faults(how: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name not in heap.VARIABLES}
    command = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


@pytest.mark.skipif(heap.refusal("cpu") is not None, reason=f"memory is not kept here: {heap.refusal('cpu')}")
def test_a_step_takes_the_pages_of_the_step_before() -> None:
    assert faults("kept") * 10 < faults("not kept")  # none against some 50,000 pages a step, where a page has 4 KiB


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
        with heap.kept_memory("cpu"):
            inside.set()
            leave.wait()

    other = threading.Thread(target=hold)
    with heap.kept_memory("cpu"):
        other.start()
        assert inside.wait(60)
    assert settings == WITHIN
    leave.set()
    other.join()
    assert settings == WITHIN + AFTER


def test_an_older_glibc_takes_smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def mallopt(parameter: int, value: int) -> int:
        told.append((parameter, value))
        return int(parameter == heap.M_TRIM_THRESHOLD or value <= 32 * 2**20)

    monkeypatch.setattr(heap, "_mallopt", lambda: mallopt)
    monkeypatch.setattr(heap, "refusal", lambda device: None)
    with heap.kept_memory("cpu"):
        assert told == [WITHIN[0], AFTER[0], WITHIN[1]]


def test_training_and_evaluation_keep_it_from_batch_to_batch(settings: list[tuple[int, int]]) -> None:
    model = nn.Linear(3, 2)
    batches = [(torch.rand(4, 3), torch.tensor([0, 1, 0, 1])) for _ in range(3)]
    fastsal.train(model, batches, epochs=2, steps=2, seed=0, progress=False)
    assert settings == WITHIN + AFTER
    settings.clear()
    fastsal.evaluate(model, batches[:1], eps=0.1, steps=2, margin_steps=2, progress=False)
    assert settings == WITHIN + AFTER


def test_on_another_device_nothing_is_set(settings: list[tuple[int, int]]) -> None:
    with heap.kept_memory("cuda"):
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
