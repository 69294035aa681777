"""Runs emulated CUDA operators under the address sanitizer, in a process of their own.

There every operand has memory of exactly its size; an access beside it ends the process.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import subprocess
import tempfile
from typing import IO, Any

import torch
from emulated import HERE, MEMORIES, EmulatorError, build, call_name, compiler, fill, memory_sizes, source
from torch import Tensor

from fastsal.operators import OPERATORS

FLAGS = ["-fsanitize=address,bounds", "-fno-sanitize-recover=bounds", "-O0"]  # -O0 compiles quickly


class Sanitized:
    """The process that runs one operator, from `text` in place of its sources where there is any."""

    def __init__(self, name: str, text: str = "") -> None:
        replay = (HERE / "emulator" / "replay.cpp").read_text().replace("fastsal::Call", f"fastsal::{call_name(name)}")
        program = build((text or source(name)) + replay, *FLAGS, suffix=".program")
        self.complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([program], stdin=pipe, stdout=pipe, stderr=self.complaints)

    def answer(self, message: bytes) -> None:
        """Sends a call; the answer is taken by `take`."""
        assert self.process.stdin is not None
        self.process.stdin.write(message)
        self.process.stdin.flush()

    def take(self, size: int) -> bytes:
        assert self.process.stdout is not None
        taken = self.process.stdout.read(size)
        if len(taken) < size:
            self.process.wait()
            _process.cache_clear()  # the next call starts another one
            self.complaints.seek(0)
            raise EmulatorError(self.complaints.read().decode())
        return taken


@functools.cache
def _process(name: str, text: str) -> Sanitized:
    compiler()  # skips before the sources are looked at
    return Sanitized(name, text)


def sanitized(name: str, *operands: Any, seed: int = 0, threads: int = 0, text: str = "") -> int:
    """A body, like emulated.emulated. `text`: in place of what source() gives."""
    operator = OPERATORS[name]
    values = dict(zip((*operator.argument_names, *operator.out_names), operands, strict=True))
    call = fill(name, values)
    for memory, size in memory_sizes(name, call, threads).items():
        values[memory] = torch.full((size,), MEMORIES[memory], dtype=torch.uint8)
    tensors = [(label, values[label]) for label, _ in call._fields_ if isinstance(values.get(label), Tensor)]
    message = struct.pack("qq", seed, threads) + bytes(call) + struct.pack("q", len(tensors))
    sizes = [value.numel() * value.element_size() for _, value in tensors]
    for (label, value), size in zip(tensors, sizes, strict=True):
        message += struct.pack("qqq", getattr(type(call), label).offset, value.data_ptr() % 16, size)
        message += ctypes.string_at(value.data_ptr(), size) if size else b""
    process = _process(name, text)
    process.answer(message)
    (length,) = struct.unpack("q", process.take(8))
    if length:
        raise EmulatorError(process.take(length).decode())
    for (_, value), size in zip(tensors, sizes, strict=True):
        if size:
            ctypes.memmove(value.data_ptr(), process.take(size), size)
    return 0
