"""Batch norm that follows a convolution directly, folded into its weights while an attack lasts.

Which pairs these are is seen in the first forward with gradients of each call, by watching the functions it calls:
nothing of the user's code runs once more, or on stand-ins, as it would for a traced graph. What the watch sees it sees
anew at every call. At later forwards each norm looks whether its convolution's output is what it gets. What is not
looked for again: the output, or a weight, used at one more place than in the first forward of a call.
"""

from __future__ import annotations

import collections
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastsal.model_view import hooked

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
LOOKS = {"shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda", "is_leaf", "grad_fn"}  # attributes
QUESTIONS = {Tensor.dim, Tensor.size, Tensor.numel, Tensor.is_contiguous, Tensor.is_floating_point, Tensor.stride}

Pair = tuple[nn.Module, nn.Module]  # a convolution, the batch norm after it


class Lean:
    """A forward that an attack gave to a module, and that computes the same as its own."""


@dataclass
class Made:
    """An output of a convolution: its node in the graph, and the functions and modules that took it."""

    convolution: nn.Module
    node: Any
    uses: list[object] = field(default_factory=list)


@dataclass(eq=False)
class Flow(TorchFunctionMode):
    """Watches one forward of the modules, with gradients. ``pairs(logits)`` afterwards: convolutions whose output one
    batch norm takes, and nothing else does; whose weights, and the norm's, nobody else uses; each called once."""

    modules: list[nn.Module]
    _owners: dict[int, nn.Module] = field(default_factory=dict)  # by the identity of a parameter or buffer
    _shared: set[nn.Module] = field(default_factory=set)  # whose parameters or buffers somebody else has used
    _calls: list[nn.Module] = field(default_factory=list)
    _running: list[nn.Module] = field(default_factory=list)  # whose forwards are under way
    _made: list[Made] = field(default_factory=list)
    _known: dict[int, Made] = field(default_factory=dict)  # by the identity of an output, for as long as it lives
    _forwards: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        super().__init__()

    def __enter__(self) -> Flow:
        for module in self.modules:
            if type(module) not in (*CONVOLUTIONS, *BATCH_NORMS) or "_conv_forward" in module.__dict__:
                continue
            own = module.__dict__.get("forward")
            if own is not None and not isinstance(own, Lean):
                continue
            if type(module) in BATCH_NORMS and without_statistics(module):
                continue
            if not {"weight", "bias"} <= module._parameters.keys():
                continue  # a tensor in place of a parameter: there is none to exchange
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    self._shared |= {module, self._owners[id(tensor)]} if id(tensor) in self._owners else set()
                    self._owners[id(tensor)] = module
            self._forwards.enter_context(own_forward(module, self._watched(module)))
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._forwards.close()
        super().__exit__(kind, error, trace)

    def _watched(self, module: nn.Module) -> Callable[..., Any]:
        usual = module.__dict__.get("forward", partial(type(module).forward, module))

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._calls.append(module)
            if module.training:  # by its batch, then
                self._shared.add(module)
            self._running.append(module)
            try:
                result = usual(*args, **kwargs)
            finally:
                self._running.pop()
            if type(module) in CONVOLUTIONS and isinstance(result, Tensor):
                self._remember(module, result)
            return result

        return forward

    def _remember(self, convolution: nn.Module, output: Tensor) -> None:
        """An output is not kept alive for this: a forward would hold twice the memory."""
        made = Made(convolution, output.grad_fn)
        self._made.append(made)
        self._known[id(output)] = made
        weakref.finalize(output, self._known.pop, id(output), None).atexit = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _only_looks(func):
            return result
        module = self._running[-1] if self._running else None
        for operand in _tensors((*args, *kwargs.values())):
            owner = self._owners.get(id(operand))
            if owner is not None and owner is not module:
                self._shared.add(owner)
            if id(operand) in self._known:
                self._known[id(operand)].uses.append(func if module is None else module)
        return result

    def pairs(self, logits: Tensor) -> list[Pair]:
        found: list[Pair] = []
        consumers = _consumers(logits)
        for made in self._made:
            norm = made.uses[0] if len(made.uses) == 1 else None
            if not isinstance(norm, nn.Module) or type(norm) not in BATCH_NORMS or without_statistics(norm):
                continue
            if self._shared & {made.convolution, norm}:
                continue
            once = self._calls.count(made.convolution) == 1 and self._calls.count(norm) == 1
            if once and consumers[made.node] == 1:  # also by functions that are called past the watch
                found.append((made.convolution, norm))
        return found


class own_forward:
    """A forward for one module alone, as long as the context lasts; one that was there before comes back."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self._attributes, self._forward = module.__dict__, forward

    def __enter__(self) -> None:
        self._before = self._attributes.get("forward")
        self._attributes["forward"] = self._forward

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            self._attributes.pop("forward", None)
        else:
            self._attributes["forward"] = self._before


def without_statistics(norm: nn.Module) -> bool:
    """Whether a batch norm goes by its batch in eval mode too."""
    return norm.running_mean is None or norm.running_var is None


class AnotherWay(Exception):
    """A forward is not the one that was folded."""


class Joint:
    """The forwards of a convolution and the batch norm folded into it: nothing may come between, or go past it.

    ``made``: what the convolution has made in this forward, until the norm takes it.
    """

    def __init__(self, convolution: nn.Module, norm: nn.Module) -> None:
        self.convolution, self.norm = convolution, norm
        self.made: Tensor | None = None
        self._version = 0

    def of_convolution(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.made is not None:
            raise AnotherWay
        result: Tensor = type(self.convolution).forward(self.convolution, *args, **kwargs)
        self.made, self._version = result, result._version
        return result

    def of_norm(self, input: Tensor) -> Tensor:
        by_batch = self.norm.training or without_statistics(self.norm)
        if input is not self.made or input._version != self._version or by_batch:
            raise AnotherWay
        self.made = None
        return input

    def close(self) -> None:
        if self.made is not None:
            raise AnotherWay


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
    part = hooked(modules)
    return None if part is None else f"a {type(part).__name__} has hooks"


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
