"""Operands whose memory ends at a page that nobody may touch: a read past the end is a crash, and so is noticed."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import replace

import torch
from kernel_cases import Case
from torch import Tensor

_LIBC = ctypes.CDLL(None, use_errno=True)


def fenced(value: Tensor) -> Tensor:
    """A copy with the same strides. Floating-point operands keep their alignment, which kernels choose their path by;
    what then lies between their end and the page, and in front of them, is NaN."""
    size = value.numel() * value.element_size()
    pages = -(-(size + 16) // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    end = pages * mmap.PAGESIZE
    ctypes.memset(begin, 0xFF, end)
    if _LIBC.mprotect(ctypes.c_void_p(begin + end), ctypes.c_size_t(mmap.PAGESIZE), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    step = 16 if value.is_floating_point() else value.element_size()
    place = end - size
    place -= (place - value.data_ptr()) % step if size else 0
    if not size:
        return value.clone()
    flat = torch.frombuffer(memory, dtype=value.dtype, count=value.numel(), offset=place)
    return flat.as_strided(value.shape, value.stride()).copy_(value)


def fenced_case(case: Case) -> Case:
    """The same case; its operands are dense, so that all of their memory is theirs."""
    dense = [isinstance(a, Tensor) and a.numel() == 1 + _reach(a) for a in case.args]
    return replace(case, args=tuple(fenced(a) if d else a for a, d in zip(case.args, dense, strict=True)))


def _reach(value: Tensor) -> int:
    return sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True)) if value.numel() else -1
