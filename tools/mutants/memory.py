"""Operands whose memory ends, or begins, at a page that nobody may touch: a read beyond is a crash, and so noticed."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import replace

import torch
from kernel_cases import Case
from torch import Tensor

_LIBC = ctypes.CDLL(None, use_errno=True)


def fenced(value: Tensor, in_front: bool = False) -> Tensor:
    """A copy with the same strides, between two pages that nobody may touch: it ends at the second, or begins at the
    first. Floating-point operands keep their alignment, which kernels choose their path by; what then lies between
    them and the pages is NaN."""
    size = value.numel() * value.element_size()
    if not size:
        return value.clone()
    pages = -(-(size + 16) // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    end = (pages + 1) * mmap.PAGESIZE
    ctypes.memset(begin, 0xFF, end)
    for page in (begin, begin + end):
        if _LIBC.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    step = 16 if value.is_floating_point() else value.element_size()
    if in_front:
        place = mmap.PAGESIZE + (value.data_ptr() - begin) % step
    else:
        place = end - size
        place -= (begin + place - value.data_ptr()) % step
    flat = torch.frombuffer(memory, dtype=value.dtype, count=value.numel(), offset=place)
    return flat.as_strided(value.shape, value.stride()).copy_(value)


def fenced_case(case: Case, in_front: bool = False) -> Case:
    """The same case; its operands are dense, so that all of their memory is theirs."""
    dense = [isinstance(a, Tensor) and a.numel() == 1 + _reach(a) for a in case.args]
    return replace(case, args=tuple(fenced(a, in_front) if d else a for a, d in zip(case.args, dense, strict=True)))


def _reach(value: Tensor) -> int:
    return sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True)) if value.numel() else -1
