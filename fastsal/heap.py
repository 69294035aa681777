"""Memory that is freed during an attack stays with the process, for the next layer and the next step.

glibc's malloc hands large blocks back to the system as soon as they are freed, and every step of an attack frees all of
its activations: the system takes the same pages back and gives them out again, zeroed, one fault for each 4 KiB. This
asks glibc to wait until the attack is over. CUDA needs no such thing: there torch keeps what is freed.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# mallopt(3): from which size a block is mapped by itself and unmapped when freed; how much free memory at the end of
# the heap is given back.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = 2**31 - 1  # the largest int
WHOLE_BLOCKS = 2**30
# What glibc itself goes up to as larger blocks are freed, and its only way back: a threshold that was set stays set.
LARGEST_MMAP_THRESHOLD, LARGEST_TRIM_THRESHOLD = 32 * 2**20, 64 * 2**20
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")
TUNABLES = ("glibc.malloc.trim_threshold", "glibc.malloc.mmap_threshold", "glibc.malloc.mmap_max")
OTHERS = {"mallctl": "jemalloc", "tc_version": "tcmalloc", "mi_version": "mimalloc"}  # a function of each

_holding = threading.Lock()
_holders = 0  # attacks under way, in any thread


@functools.cache
def refusal(device: str) -> str | None:
    """Why the memory of tensors on this kind of device cannot be kept in this process, or None."""
    if device != "cpu":
        return "torch itself keeps the memory of a device"
    if os.name != "posix":
        return "not glibc's malloc"
    process = ctypes.CDLL(None)
    if not hasattr(process, "gnu_get_libc_version"):
        return "not glibc's malloc"
    for function, name in OTHERS.items():
        if hasattr(process, function):
            return f"{name} is loaded"
    for variable in VARIABLES:
        if variable in os.environ:
            return f"{variable} is set"
    for tunable in TUNABLES:
        if tunable in os.environ.get("GLIBC_TUNABLES", ""):
            return f"GLIBC_TUNABLES sets {tunable}"
    return None


@functools.cache
def _mallopt() -> Callable[[int, int], int]:
    function = ctypes.CDLL(None).mallopt
    function.argtypes, function.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return function


@contextmanager
def kept_memory(device: str = "cpu") -> Iterator[None]:
    """Memory of the CPU that is freed inside stays with the process; for a training loop of your own::

        with fastsal.kept_memory():
            for x, y in loader:
                x_adv = attack(x, y)
                ...

    An attack does this for itself, once per call, and :func:`fastsal.train` for the whole run. Around a loop it spares
    the system's work between calls too: the pages of one attack, and of one training step, serve the next.

    It tells glibc's malloc, for all threads, to unmap no block below 1 GiB and to trim nothing, while any thread is
    inside. The process holds up to a third more memory meanwhile. Afterwards glibc's own largest thresholds hold, 32
    and 64 MiB, as after a block of 32 MiB was freed. With another malloc, where the environment sets these thresholds,
    or for another device than "cpu", nothing happens.
    """
    global _holders
    if refusal(device) is not None:
        yield
        return
    with _holding:
        _holders += 1
        if _holders == 1:
            _set(WHOLE_BLOCKS, NEVER)
    try:
        yield
    finally:
        with _holding:
            _holders -= 1
            if _holders == 0:
                _set(LARGEST_MMAP_THRESHOLD, LARGEST_TRIM_THRESHOLD)


def _set(mmap_threshold: int, trim_threshold: int) -> None:
    mallopt = _mallopt()
    if not mallopt(M_MMAP_THRESHOLD, mmap_threshold):  # glibc before 2.35 takes no more than 32 MiB
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    mallopt(M_TRIM_THRESHOLD, trim_threshold)
