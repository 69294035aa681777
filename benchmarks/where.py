"""The device that is measured: a GPU where there is one, else the CPU; ``--device`` names another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastsal.precision import bf16_pays

CHOICES = ("cpu", "cuda")
_device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose(name: str) -> None:
    global _device
    if name == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: expected a CUDA device, got none (torch.cuda.is_available() is False)")
    _device = torch.device(name)


def device() -> torch.device:
    return _device


def add_option(add: Callable[..., Any]) -> None:
    """``--device``, to a parser of arguments or of pytest's options."""
    add("--device", choices=CHOICES, default=_device.type, help="what is measured (default here: %(default)s)")


def here(value: Any) -> Any:
    """A tensor or module on the device that is measured; anything else as it is."""
    return value.to(_device) if isinstance(value, Tensor | torch.nn.Module) else value


def wait() -> None:
    """Until the device has done what is queued: before a clock is read."""
    if _device.type == "cuda":
        torch.cuda.synchronize(_device)


def section(name: str) -> str:
    """Of docs/performance.md, where a GPU has its own."""
    return f"{name} on a GPU" if _device.type == "cuda" else name


@contextmanager
def strict_fp32() -> Iterator[None]:
    """Products in fp32 are made in fp32, where torch lets a GPU round their operands to TF32: to compare results.

    What is timed keeps torch's own setting, as a user has it.
    """
    cudnn = torch.backends.cudnn
    convolutions, products = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


def native_bf16() -> tuple[bool, str]:
    """Whether bf16 pays on this device, and how that is known."""
    return bf16_pays(_device.type)
