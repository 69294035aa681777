"""The forward of an attack through torch.compile: a bounded number of kinds of batches, kept between calls."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastsal import said

MOST = (
    24  # kinds of batches compiled for one model: six buckets, of a smaller last batch too, with gradients and without
)

_forwards: weakref.WeakKeyDictionary[nn.Module, CompiledForward] = weakref.WeakKeyDictionary()


class CompiledForward:
    """Calls of a module with tensors of several kinds, by size, layout and dtype, each compiled when it is first seen.

    Where compiling fails, or one kind too many comes, the module runs as it is, and a warning says so once.
    """

    def __init__(self, module: nn.Module, backend: str) -> None:
        self._module, self.backend = weakref.ref(module), backend
        self._kinds: set[tuple[Any, ...]] = set()
        self.failed: str | None = None
        self._call: Callable[..., Any] = torch.compile(_called, backend=backend, dynamic=False)

    def __call__(self, inner: Callable[[Tensor], Any], leaf: Tensor) -> Any:
        """`inner(leaf)`; `inner` is the module of this object, or something that calls it."""
        kind = (tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.requires_grad)
        if self.failed is None and kind not in self._kinds and len(self._kinds) >= MOST:
            self._give_up(f"{MOST} kinds of batches are compiled already")
        if self.failed is not None:
            return inner(leaf)
        self._kinds.add(kind)
        from torch._dynamo import config
        from torch._dynamo.exc import TorchDynamoException

        try:
            with config.patch(recompile_limit=1024):
                return self._call(inner, leaf)
        except TorchDynamoException as error:
            self._give_up(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
            return inner(leaf)

    def _give_up(self, why: str) -> None:
        self.failed = why
        module = self._module()
        said.warn(
            f"compile: {type(module).__name__} runs without torch.compile from here on: {why}", said.FallbackWarning
        )


def _called(inner: Callable[[Tensor], Any], leaf: Tensor) -> Any:
    return inner(leaf)


def compiled_forward(module: nn.Module, backend: str) -> CompiledForward:
    """The one of this module, made at its first attack."""
    found = _forwards.get(module)
    if found is None or found.backend != backend:
        found = _forwards[module] = CompiledForward(module, backend)
    return found
