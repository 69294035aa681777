"""Memory that is freed during an attack stays with the process, for the next layer and the next step.

glibc's malloc hands large blocks back to the system as they are freed, and every step of an attack frees all of its
activations: the system gives the same memory out again, zeroed, with a fault for each page of 4 KiB. This asks glibc to
hand nothing back until the attack is over, unless the heap comes to be twice as large as what is in use. CUDA needs no
such thing: there torch keeps what is freed.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# mallopt(3): from which size a block is mapped by itself and unmapped when freed; how much free memory at the end of
# the heap is given back.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = -1
WHOLE_BLOCKS = 2**30
# What glibc itself goes up to as larger blocks are freed, and its only way back: a threshold that was set stays set.
LARGEST_MMAP_THRESHOLD, LARGEST_TRIM_THRESHOLD = 32 * 2**20, 64 * 2**20
# What sets these thresholds, or keeps glibc from moving them, in the environment.
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")
TUNABLES = tuple(f"glibc.malloc.{name}" for name in ("trim_threshold", "mmap_threshold", "mmap_max", "top_pad"))

# Free blocks that small ones keep apart fit no later block, and the heap grows by them. From where on what is free is
# given back, in terms of what was in use at once, and again after growing by so much of that; by how much the heap has
# to grow to be looked at.
GIVEN_BACK, AGAIN, LOOKED_AT = 2, 0.5, 32 * 2**20

_lock = threading.RLock()  # a signal, or the end of a generator, may come here while this thread is inside
_holders = 0  # attacks and loops under way, in any thread
_loops = 0  # those of them that are kept_memory()
_end = 0  # of the heap, as it was when it was looked at
_given_back = 0  # the size of the heap when this was done last; gaps keep their addresses
_most_in_use = 0  # bytes, of those seen in this attack or loop, or half of those in the one before, and so on


class _Use(ctypes.Structure):
    """What mallinfo2(3) returns; of its fields `arena` is the bytes of all heaps, `uordblks` those of blocks in use."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks")]
    _fields_ += [(name, ctypes.c_size_t) for name in ("fsmblks", "uordblks", "fordblks", "keepcost")]


@functools.cache
def refusal(device: str) -> str | None:
    """Why the memory of tensors on this kind of device cannot be kept in this process, or None."""
    if device != "cpu":
        return "torch itself keeps the memory of a device"
    for variable in VARIABLES:
        if variable in os.environ:
            return f"{variable} is set"
    for tunable in TUNABLES:
        if tunable in os.environ.get("GLIBC_TUNABLES", ""):
            return f"GLIBC_TUNABLES sets {tunable}"
    return None if _glibc_allocates() else "the process does not use glibc's malloc"


def _glibc_allocates() -> bool:
    if os.name != "posix":
        return False
    process = ctypes.CDLL(None)
    try:
        glibc = ctypes.CDLL("libc.so.6")
    except OSError:  # musl, or no Linux
        return False
    if not all(hasattr(glibc, name) for name in ("gnu_get_libc_version", "mallopt", "malloc_trim", "sbrk")):
        return False
    first, own = (ctypes.cast(library.malloc, ctypes.c_void_p).value for library in (process, glibc))
    return first == own  # a preloaded jemalloc or tcmalloc comes before it


def _glibc(function: str, *types: type, returns: type = ctypes.c_int) -> Callable[..., Any]:
    found = ctypes.CDLL("libc.so.6")[function]
    found.argtypes, found.restype = types, returns
    return found


@functools.cache
def _mallopt() -> Callable[[int, int], int]:
    return _glibc("mallopt", ctypes.c_int, ctypes.c_int)


@functools.cache
def _malloc_trim() -> Callable[[int], int]:
    return _glibc("malloc_trim", ctypes.c_size_t)


@functools.cache
def _sbrk() -> Callable[[int], int]:
    return _glibc("sbrk", ctypes.c_ssize_t, returns=ctypes.c_size_t)


@functools.cache
def _mallinfo() -> Callable[[], _Use] | None:
    """None: glibc before 2.33, whose numbers end at 2 GiB, and whose large blocks are no part of the heap."""
    return _glibc("mallinfo2", returns=_Use) if hasattr(ctypes.CDLL("libc.so.6"), "mallinfo2") else None


@contextmanager
def kept_memory() -> Iterator[None]:
    """On a CPU, memory that is freed inside stays with the process; for a training loop of your own::

        with fastsal.kept_memory():
            for x, y in loader:
                x_adv = attack(x, y)
                ...

    An attack does this for itself, for one call, and :func:`fastsal.train` for the whole run. Around a loop it spares
    the system's work between calls too: the pages of one attack, and of one training step, serve the next.

    It tells glibc's malloc to unmap no block below 1 GiB (32 MiB before glibc 2.35) and to trim nothing, while any
    thread is inside; that holds for the whole process, but glibc keeps little for a thread other than the main one.
    Memory that blocks of other sizes have split cannot always be used again: attacks took 0.9 to 1.6 times as much
    resident memory at their peak, the more the larger their blocks (docs/performance.md, 3). Where the heap has grown
    to twice what was in use at once, an attack by itself and :func:`fastsal.train` give back what is free (not before
    glibc 2.33); a loop of your own gives back nothing before its end. Then what is free goes back to the system, and
    the thresholds become 32 and 64 MiB, the largest that glibc takes by itself; others that the program had set by
    mallopt(3) are lost. Where the environment sets them (MALLOC_TRIM_THRESHOLD_ and its kin), or with another malloc,
    nothing happens.
    """
    global _loops
    entered = False
    try:
        with kept("cpu"):
            try:
                with _lock:
                    _loops += 1
                    entered = True
                yield
            finally:
                with _lock:
                    if entered and _loops:  # none in a process that was forked inside
                        _loops -= 1
    finally:
        with _lock:
            if _holders == 0 and refusal("cpu") is None:
                _malloc_trim()(0)


@contextmanager
def kept(device: str) -> Iterator[str]:
    """The same for one attack, and a word on what came of it: in the end only the thresholds change, and free memory
    goes back little by little, as glibc does it, so that what comes next may use it. Inside, :func:`look` may give back
    more."""
    global _holders, _loops, _end, _most_in_use
    if (reason := refusal(device)) is not None:
        yield f"off: {reason}"
        return
    main = threading.current_thread() is threading.main_thread()
    _mallopt(), _sbrk()  # so that nothing is left to fail below
    entered = False
    try:
        with _lock:
            _holders += 1
            entered = True
            if _holders == 1:
                _loops, _end, _most_in_use = 0, min(_end, _sbrk()(0)), _most_in_use // 2
                _set(WHOLE_BLOCKS, NEVER)
        yield "on" if main else "on, but glibc keeps little for a thread other than the main one"
    finally:
        with _lock:
            if entered and _holders:  # none in a process that was forked inside
                _holders -= 1
                if _holders == 0:
                    _set(LARGEST_MMAP_THRESHOLD, LARGEST_TRIM_THRESHOLD)


def look(loop: bool = False) -> None:
    """To be called where as much memory is in use as ever: gives back what is free, where the heap is twice as large.

    ``loop``: this is the most of a whole :func:`kept_memory`; within one an attack does not know it, and looks at
    nothing. Takes a microsecond; where the heap has grown, half a millisecond, or more with very many free blocks;
    where something is given back, tens of milliseconds for a GiB, whose pages are faults again.
    """
    global _end, _given_back, _most_in_use
    if not _holders or _loops > loop or _sbrk()(0) - _end < LOOKED_AT or (mallinfo := _mallinfo()) is None:
        return
    with _lock:
        found = mallinfo()
        _most_in_use = max(_most_in_use, found.uordblks)
        _given_back = min(_given_back, found.arena)
        if found.arena > max(GIVEN_BACK * _most_in_use, _given_back + AGAIN * _most_in_use):
            _given_back = found.arena
            _malloc_trim()(0)
        _end = _sbrk()(0)


def _set(mmap_threshold: int, trim_threshold: int) -> None:
    mallopt = _mallopt()
    if not mallopt(M_MMAP_THRESHOLD, mmap_threshold):  # glibc before 2.35 takes no more than 32 MiB
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    mallopt(M_TRIM_THRESHOLD, trim_threshold)


def _after_fork() -> None:
    """A process that is forked inside, a worker of a loader, say, attacks nothing yet."""
    global _lock, _holders, _loops
    _lock = threading.RLock()
    if _holders:
        _holders = _loops = 0
        _set(LARGEST_MMAP_THRESHOLD, LARGEST_TRIM_THRESHOLD)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
