"""Batch norm that follows a convolution directly, folded into its weights while an attack lasts.

Which pairs these are is seen in a forward that the attack makes anyway, by watching the functions it calls: nothing of
the user's code runs once more, or on stand-ins, as it would for a traced graph, and any control flow is allowed.
"""

from __future__ import annotations

import collections
import inspect
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CONVOLUTIONS: dict[type[nn.Module], Any] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
LOOKS = {"shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda", "is_leaf", "grad_fn"}  # attributes
QUESTIONS = {Tensor.dim, Tensor.size, Tensor.numel, Tensor.is_contiguous, Tensor.is_floating_point, Tensor.stride}

Pair = tuple[nn.Module, nn.Module]  # a convolution, the batch norm after it


@dataclass(eq=False)
class Flow(TorchFunctionMode):
    """Watches one forward of the modules, with gradients. ``pairs(logits)`` afterwards: convolutions whose output one
    batch norm takes, and nothing else does."""

    modules: list[nn.Module]
    _weights: dict[int, nn.Module] = field(default_factory=dict)  # by the identity of a weight
    _norms: dict[int, nn.Module] = field(default_factory=dict)  # by that of a running mean
    _uses: dict[int, list[object]] = field(default_factory=dict)  # of weights and outputs, by identity
    _calls: list[nn.Module] = field(default_factory=list)  # of batch norms
    _made: dict[int, tuple[nn.Module, Tensor]] = field(default_factory=dict)  # an output is kept: its identity is taken

    def __post_init__(self) -> None:
        super().__init__()
        for module in self.modules:
            weight = module._parameters.get("weight")
            if type(module) in CONVOLUTIONS and weight is not None:
                self._weights[id(weight)] = module
            own_forward = "forward" in module.__dict__
            if type(module) in BATCH_NORMS and module.running_mean is not None and not own_forward:
                self._norms[id(module.running_mean)] = module

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _only_looks(func):
            return result
        norm = self._norm(func, args, kwargs)
        if norm is not None:
            self._calls.append(norm)
        for operand in _tensors((*args, *kwargs.values())):
            if id(operand) in self._weights or id(operand) in self._made:
                self._uses.setdefault(id(operand), []).append(norm if norm is not None else func)
        module = self._weights.get(id(args[1])) if len(args) > 1 else None
        if module is not None and func is CONVOLUTIONS[type(module)] and isinstance(result, Tensor):
            self._made[id(result)] = (module, result)
        return result

    def _norm(self, func: Any, args: Any, kwargs: dict[str, Any]) -> nn.Module | None:
        """The batch norm module that this call is of, as its forward makes it in eval mode."""
        if func is not F.batch_norm:
            return None
        given = inspect.signature(F.batch_norm).bind(*args, **kwargs)
        given.apply_defaults()
        module = self._norms.get(id(given.arguments["running_mean"]))
        if module is None or given.arguments["training"] is not False:
            return None
        names = ("running_mean", "running_var", "weight", "bias", "eps")
        return module if all(given.arguments[name] is getattr(module, name) for name in names) else None

    def pairs(self, logits: Tensor) -> list[Pair]:
        found: list[Pair] = []
        consumers = _consumers(logits)
        for output, (convolution, made) in self._made.items():
            uses = self._uses.get(output, [])
            weight = self._uses[id(convolution._parameters["weight"])]
            norm = uses[0] if len(uses) == 1 else None
            if not isinstance(norm, BATCH_NORMS) or len(weight) != 1 or self._calls.count(norm) != 1:
                continue
            if consumers[made.grad_fn] == 1:  # also of functions that are called past the watch
                found.append((convolution, norm))
        return found


def _consumers(logits: Tensor) -> collections.Counter[Any]:
    """How often each node of the graph of the logits is an input of another."""
    found: collections.Counter[Any] = collections.Counter()
    open_nodes = [logits.grad_fn]
    seen = {logits.grad_fn}
    while open_nodes:
        node = open_nodes.pop()
        for following, _ in () if node is None else node.next_functions:
            found[following] += 1
            if following is not None and following not in seen:
                seen.add(following)
                open_nodes.append(following)
    return found


def _only_looks(func: Any) -> bool:
    if func in QUESTIONS:
        return True
    return getattr(func, "__name__", "") == "__get__" and getattr(func.__self__, "__name__", "") in LOOKS


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (part for part in value if isinstance(part, Tensor))


def foldable(modules: list[nn.Module]) -> str | None:
    """Why nothing can be folded, or None where it is worth a look."""
    if not any(type(module) in BATCH_NORMS for module in modules):
        return "no batch norm"
    if not any(type(module) in CONVOLUTIONS for module in modules):
        return "no convolution"
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return f"a {type(module).__name__} has hooks"
    return None


def folded(weight: Tensor, bias: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does the work of both in eval mode; scales in float64."""
    assert isinstance(norm, BATCH_NORMS) and norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.double()
        shift = -norm.running_mean.double() * scale
        shift = shift if bias is None else shift + bias.double() * scale
        shift = shift if norm.bias is None else shift + norm.bias.double()
        scaled = weight.detach() * scale.to(weight.dtype).view(-1, *[1] * (weight.dim() - 1))
        return scaled, shift.to(weight.dtype)


_seen: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], list[Pair]]] = weakref.WeakKeyDictionary()


def known_pairs(root: nn.Module, modules: list[nn.Module]) -> list[Pair] | None:
    """What a forward of the same modules has shown before, or None."""
    signature, pairs = _seen.get(root, ((), []))
    return pairs if signature == tuple(map(id, modules)) else None


def remember_pairs(root: nn.Module, modules: list[nn.Module], pairs: list[Pair]) -> None:
    if root not in modules[1:]:
        _seen[root] = (tuple(map(id, modules)), [pair for pair in pairs if root not in pair])
