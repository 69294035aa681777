"""The model as the attack sees it (frozen, eval mode, unwrapped), and how everything is put back.

Nothing of the user's model may differ after an attack, however the attack ends: training flags per module,
``requires_grad`` and ``.grad`` per parameter, buffers, and the global random state. What a forward writes into a
parameter is not undone: a copy of all weights at each call would cost more memory than anything else here.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import MethodType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils import parametrize

from fastsal import said

_outputs_known: weakref.WeakSet[Any] = weakref.WeakSet()
_turns: weakref.WeakKeyDictionary[nn.Module, AbstractContextManager[Any]] = weakref.WeakKeyDictionary()
_giving_turns = threading.Lock()


class RandomState:
    """The global random state (CPU, and CUDA when x lives there), restored on leaving.

    After :meth:`keep` a normal exit restores the state of that moment. An exception always restores the state of the
    beginning, and that of `generator`, so that a failed attack has drawn nothing.
    """

    def __init__(self, device: torch.device, generator: torch.Generator | None = None) -> None:
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator: expected a torch.Generator, got {type(generator).__name__}")
        self._device = device if device.type == "cuda" else None
        self._generator = generator

    def _read(self) -> tuple[Tensor, Tensor | None]:
        on_device = None if self._device is None else torch.cuda.get_rng_state(self._device)
        return torch.get_rng_state(), on_device

    def __enter__(self) -> RandomState:
        self._begin = self._kept = self._read()
        self._own = None if self._generator is None else self._generator.get_state()
        return self

    def keep(self) -> None:
        self._kept = self._read()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cpu, on_device = self._kept if kind is None else self._begin
        torch.set_rng_state(cpu)
        if on_device is not None and self._device is not None:
            torch.cuda.set_rng_state(on_device, self._device)
        if kind is not None and self._generator is not None and self._own is not None:
            self._generator.set_state(self._own)


def unwrapped(model: Any) -> Any:
    """The inner module of DataParallel or DistributedDataParallel: ranks may take different numbers of steps."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return model.module
    return model


def module_of(model: Any) -> nn.Module | None:
    """The module behind a callable: itself, the owner of a bound method, or what a functools.partial calls."""
    while isinstance(model, functools.partial):
        model = model.func
    if isinstance(model, MethodType):
        model = model.__self__
    return model if isinstance(model, nn.Module) else None


def hooked(modules: Iterable[nn.Module]) -> nn.Module | None:
    """A module that calls hooks, its own or those of all modules, or None."""
    for part in modules:
        own = part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
        if own or _has_any_global_hook():
            return part
    return None


@dataclass(frozen=True)
class Frozen:
    """A model in eval mode with frozen parameters, for as long as a context lasts.

    ``inner`` is what is called, ``module`` the module behind it, if there is one. ``cast``: the dtype that a 16-bit
    model wants its input in.
    """

    inner: Any
    module: nn.Module | None
    cast: torch.dtype | None


def _turn(module: nn.Module | None) -> AbstractContextManager[Any]:
    """Threads that attack one model do so one after the other: each puts back what it has found."""
    if module is None:
        return nullcontext()
    with _giving_turns:
        return _turns.setdefault(module, threading.RLock())


@contextmanager
def frozen(model: Any, x: Tensor) -> Iterator[Frozen]:
    """Flags are set attribute by attribute: an overridden ``train()`` is the user's code and has no business here."""
    inner = unwrapped(model)
    module = module_of(inner)
    with _turn(module):
        yield from _frozen(inner, module, x)


@contextmanager
def _uncached() -> Iterator[None]:
    """Weights that torch.nn.utils.parametrize.cached() keeps have a graph; those of a frozen model must not join."""
    kept = dict(parametrize._cache)
    parametrize._cache.clear()
    try:
        yield
    finally:
        parametrize._cache.clear()
        parametrize._cache.update(kept)


def _frozen(inner: Any, module: nn.Module | None, x: Tensor) -> Iterator[Frozen]:
    modules = [] if module is None else list(module.modules())
    parameters = [] if module is None else list(module.parameters())
    cast = _check_model(inner, parameters, x)
    _check_initialised(modules)
    with _uncached(), ExitStack() as put_back:  # in reverse order, each whatever happens to the others
        put_back.callback(KeptBuffers(modules).put_back)
        for part in modules:
            if part._forward_pre_hooks:
                put_back.callback(_put_back_tensors, part, _plain_tensors(part))
        for parameter in parameters:
            put_back.callback(_put_back_parameter, parameter, parameter.requires_grad, parameter.grad)
            if parameter.requires_grad and parameter.is_leaf:
                parameter.requires_grad_(False)
        for part in modules:
            put_back.callback(setattr, part, "training", part.training)
            if part.training:
                part.training = False
        yield Frozen(inner, module, cast)


@contextmanager
def attacked(model: Any, x: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function from inputs like x to logits, for as long as the context lasts."""
    with frozen(model, x) as found:
        yield lambda z: checked_logits(found.inner(z if found.cast is None else z.to(found.cast)), z.shape[0])


def _plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Attributes of a module that are neither parameters nor buffers: nn.utils.weight_norm, spectral_norm and prune
    have a hook that writes the weight there before each forward."""
    return {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}


def _put_back_tensors(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    for name in _plain_tensors(module).keys() - tensors.keys():
        del vars(module)[name]
    vars(module).update(tensors)


def _put_back_parameter(parameter: nn.Parameter, requires_grad: bool, grad: Tensor | None) -> None:
    if parameter.requires_grad != requires_grad:
        parameter.requires_grad_(requires_grad)
    if parameter.grad is not grad:
        parameter.grad = grad


class KeptBuffers:
    """What the buffers of modules hold. Plain tensors are kept as the bytes of one tensor per device: two launches to
    keep them, three and one wait to see that nothing has changed, however many there are."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._modules = [(module, dict(module._buffers.items())) for module in modules]
        found = {id(b): b for _, buffers in self._modules for b in buffers.values() if b is not None}.values()
        self._others = [(buffer, buffer.clone()) for buffer in found if not _is_plain(buffer)]
        self._pieces: list[tuple[list[Tensor], list[tuple[torch.dtype, torch.Size]], Tensor]] = []
        plain = sorted(filter(_is_plain, found), key=Tensor.element_size, reverse=True)  # each on its own alignment
        for device in dict.fromkeys(buffer.device for buffer in plain):
            here = [buffer for buffer in plain if buffer.device == device]
            self._pieces.append((here, _kinds(here), _bytes_of(here)))

    def put_back(self) -> None:
        """Undoes what the forward wrote to a buffer, and every buffer that it replaced, resized or added.

        A buffer is written only where its contents differ: writing would spoil a graph that has saved it.
        """
        pairs = list(self._others)
        for plain, kinds, kept in self._pieces:
            if _kinds(plain) != kinds or not torch.equal(_bytes_of(plain), kept):
                parts = kept.split([dtype.itemsize * shape.numel() for dtype, shape in kinds])
                values = [part.view(dtype).view(shape) for part, (dtype, shape) in zip(parts, kinds, strict=True)]
                pairs += zip(plain, values, strict=True)
        for buffer, copy in pairs:
            if (buffer.dtype, buffer.shape) != (copy.dtype, copy.shape):
                buffer.data = copy.clone()
        if pairs:
            differs = torch.stack([_differs(*pair).to(pairs[0][0].device) for pair in pairs]).tolist()
            for (buffer, copy), changed in zip(pairs, differs, strict=True):
                if changed:
                    buffer.copy_(copy)
        for module, buffers in self._modules:
            now = dict(module._buffers.items())
            for name in now.keys() - buffers.keys():
                del module._buffers[name]
            for name, kept_buffer in buffers.items():
                if name not in now or now[name] is not kept_buffer:
                    module._buffers[name] = kept_buffer


def _is_plain(buffer: Tensor) -> bool:
    """Whether its bytes can be had: not of a subclass, a transform of torch.func, meta, sparse or quantised."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(buffer)
    if type(buffer) not in (Tensor, nn.Buffer) or wrapped or buffer.is_meta or buffer.layout != torch.strided:
        return False
    return not (buffer.is_quantized or buffer.is_conj() or buffer.is_neg())


def _kinds(buffers: list[Tensor]) -> list[tuple[torch.dtype, torch.Size]]:
    return [(buffer.dtype, buffer.shape) for buffer in buffers]


def _bytes_of(buffers: list[Tensor]) -> Tensor:
    return torch.cat([buffer.detach().reshape(-1).view(torch.uint8) for buffer in buffers])


def _differs(buffer: Tensor, copy: Tensor) -> Tensor:
    """Whether any element differs, where NaN equals NaN."""
    if buffer.layout not in (torch.strided, torch.sparse_coo):
        buffer, copy = buffer.to_sparse_coo(), copy.to_sparse_coo()
    if buffer.layout == torch.sparse_coo:
        if buffer._nnz() != copy._nnz():
            return torch.ones((), dtype=torch.bool, device=buffer.device)
        return _differs(buffer._indices(), copy._indices()) | _differs(buffer._values(), copy._values())
    return ((buffer != copy) & ~((buffer != buffer) & (copy != copy))).any()


def _check_initialised(modules: list[nn.Module]) -> None:
    for part in modules:
        if any(isinstance(buffer, nn.parameter.UninitializedBuffer) for buffer in part._buffers.values()):
            raise ValueError("model: expected initialised buffers, got lazy ones: run it once on a batch like x first")


def _check_model(model: Any, parameters: list[nn.Parameter], x: Tensor) -> torch.dtype | None:
    """Refuses a model on another device or precision than x; names the dtype that a 16-bit model wants x cast to."""
    if not callable(model):
        raise TypeError(f"model: expected a callable that returns logits, got {type(model).__name__}")
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        raise ValueError("model: expected initialised parameters, got lazy ones: run it once on a batch like x first")
    if any(p.is_inference() for p in parameters):
        raise ValueError(
            "model: expected parameters made outside torch.inference_mode(), got inference tensors, which autograd "
            "cannot use"
        )
    devices = {p.device for p in parameters}
    found = ", ".join(sorted(map(str, devices)))
    if devices and x.device not in devices:
        raise ValueError(f"x: expected device {found}, that of the model's parameters, got {x.device}")
    if any(device.type == "meta" for device in devices) and x.device.type != "meta":
        raise ValueError("model: expected parameters with values, got some on device meta")
    if len(devices) > 1:
        raise ValueError(f"model: expected parameters on one device, that of x ({x.device}), got {found}")
    dtypes = {p.dtype for p in parameters if p.is_floating_point()}
    if len(dtypes) != 1:
        return None
    dtype = dtypes.pop()
    if dtype in (torch.bfloat16, torch.float16):
        return dtype
    if dtype in (torch.float32, torch.float64) and dtype != x.dtype:
        raise TypeError(f"x: expected {dtype}, the dtype of the model's parameters, got {x.dtype}")
    return None


def logits_of(output: Any) -> Any:
    """What of a model's output are its logits: its attribute of that name, or the first of several."""
    if hasattr(output, "logits"):
        return output.logits
    return output[0] if isinstance(output, (tuple, list)) and output else output


def checked_logits(output: Any, rows: int) -> Tensor:
    logits = logits_of(output)
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


def with_graph(logits: Tensor) -> Tensor:
    if not logits.requires_grad:
        raise ValueError("model: expected logits that depend on x, got logits without a graph (torch.no_grad inside?)")
    return logits


def pulled_back(logits: Tensor, points: Tensor, ascent: Tensor) -> Tensor:
    """The gradient of points from that of their logits."""
    (gradient,) = torch.autograd.grad(logits, points, ascent, allow_unused=True)
    if gradient is None:
        raise ValueError("model: expected logits that depend on x, got logits that depend on something else")
    return gradient


def warn_of_probabilities(model: Any, logits: Tensor) -> None:
    """Warns, once per model, when every row looks like a distribution: softmax twice blunts every attack.

    A model that has shown a negative logit is not looked at again, and then nothing waits for the device.
    """
    inner = unwrapped(model)
    module = module_of(inner)
    inner = inner if module is None else module
    try:
        if inner in _outputs_known:
            return
    except TypeError:  # not hashable or not weakly referable: then there is nothing to remember it by
        inner = None
    scores = logits.detach().float()
    if scores.shape[0] == 0:
        return
    apart = (scores.sum(dim=1) - 1).abs()
    least, farthest = torch.stack((scores.amin(), apart.amax())).tolist()
    likely = least >= 0 and farthest < 1e-3
    if likely:
        said.warn(
            "model: expected logits, got rows that are >= 0 and sum to 1, like probabilities. An attack on "
            "probabilities is weaker than it looks: return the layer before the softmax"
        )
    if inner is not None and (likely or least < 0):
        _outputs_known.add(inner)
