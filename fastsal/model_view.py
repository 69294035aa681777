"""The model as the attack sees it (frozen, eval mode, unwrapped), and how everything is put back.

Nothing of the user's model may differ after an attack, however the attack ends: training flags per module,
``requires_grad`` and ``.grad`` per parameter, buffers, and the global random state.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

_warned_of_probabilities: weakref.WeakSet[Any] = weakref.WeakSet()


class RandomState:
    """The global random state (CPU, and CUDA when x lives there), restored on leaving.

    After :meth:`keep` a normal exit restores the state of that moment; an exception always restores the state of the
    beginning, so that a failed attack has drawn nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None

    def _read(self) -> tuple[Tensor, Tensor | None]:
        on_device = None if self._device is None else torch.cuda.get_rng_state(self._device)
        return torch.get_rng_state(), on_device

    def __enter__(self) -> RandomState:
        self._begin = self._kept = self._read()
        return self

    def keep(self) -> None:
        self._kept = self._read()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cpu, on_device = self._kept if kind is None else self._begin
        torch.set_rng_state(cpu)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, self._device)  # type: ignore[arg-type]


def unwrapped(model: Any) -> Any:
    """The inner module of DataParallel or DistributedDataParallel: ranks may take different numbers of steps."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return model.module
    return model


@contextmanager
def attacked(model: Any, x: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function from inputs like x to logits, for as long as the context lasts.

    Flags are set attribute by attribute: an overridden ``train()`` is the user's code and has no business here.
    """
    inner = unwrapped(model)
    modules = list(inner.modules()) if isinstance(inner, nn.Module) else []
    parameters = [p for m in modules for p in m._parameters.values() if p is not None]
    cast = _check_model(inner, parameters, x)
    training = [m for m in modules if m.training]
    trainable = {id(p): p for p in parameters if p.requires_grad}.values()
    grads = [(p, p.grad) for p in parameters]
    buffers = _Buffers(modules)
    try:
        for module in training:
            module.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield lambda z: _logits(inner(z if cast is None else z.to(cast)), z.shape[0])
    finally:
        for module in modules:
            module.training = False
        for module in training:
            module.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)
        for parameter, grad in grads:
            parameter.grad = grad
        buffers.restore()


class _Buffers:
    """Copies of all buffers; put back where the forward wrote to one or replaced it."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._kept = [
            (module, name, buffer, None if buffer.is_inference() else buffer._version, buffer.clone())
            for module in modules
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def restore(self) -> None:
        for module, name, buffer, version, copy in self._kept:
            if version is None or buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(copy)
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer


def _check_model(model: Any, parameters: list[nn.Parameter], x: Tensor) -> torch.dtype | None:
    """Refuses a model on another device or precision than x; names the dtype that a 16-bit model wants x cast to."""
    if not callable(model):
        raise TypeError(f"model: expected a callable that returns logits, got {type(model).__name__}")
    devices = {p.device for p in parameters}
    if devices and x.device not in devices:
        found = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"x: expected device {found}, that of the model's parameters, got {x.device}")
    dtypes = {p.dtype for p in parameters if p.is_floating_point()}
    if len(dtypes) != 1:
        return None
    dtype = dtypes.pop()
    if dtype in (torch.bfloat16, torch.float16):
        return dtype
    if dtype in (torch.float32, torch.float64) and dtype != x.dtype:
        raise TypeError(f"x: expected {dtype}, the dtype of the model's parameters, got {x.dtype}")
    return None


def _logits(output: Any, rows: int) -> Tensor:
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"model: expected a tensor of logits (N, C), or an object with .logits, got {type(output).__name__}"
        )
    if logits.dim() != 2 or logits.shape[0] != rows or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ValueError(
            f"model: expected floating-point logits of shape ({rows}, C) with C >= 2, "
            f"got {logits.dtype} {tuple(logits.shape)}"
        )
    return logits


def warn_of_probabilities(model: Any, logits: Tensor) -> None:
    """Warns, once per model, when every row looks like a distribution: softmax twice blunts every attack."""
    inner = unwrapped(model)
    try:
        if inner in _warned_of_probabilities:
            return
    except TypeError:  # not hashable or not weakly referable: then there is nothing to remember it by
        inner = None
    scores = logits.detach().float()
    if scores.shape[0] == 0 or bool((scores < 0).any()):
        return
    if bool(((scores.sum(dim=1) - 1).abs() < 1e-3).all()):
        warnings.warn(
            "model: expected logits, got rows that are >= 0 and sum to 1, like probabilities. An attack on "
            "probabilities is weaker than it looks: return the layer before the softmax",
            stacklevel=5,
        )
        if inner is not None:
            _warned_of_probabilities.add(inner)
