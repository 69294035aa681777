"""The attack's own view of a model: frozen, in eval mode, unwrapped, in the precision and layout of the attack, with
batch norm folded. Built for one call of an attack, and taken back when it ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from fastsal import fold, heap, refused
from fastsal.compiled import CompiledForward, compiled_forward
from fastsal.graphs import RECORDERS, UNASKED, Graphs, Recorded, graphs_of, unrecordable
from fastsal.lean import lean_norms
from fastsal.levers import Levers
from fastsal.model_view import Frozen, checked_logits, frozen, pulled_back, with_graph
from fastsal.normalize import Normalize
from fastsal.precision import bf16_pays, inside_autocast, without_autocast
from fastsal.refused import Refused
from fastsal.weights import CONVOLUTIONS_2D, Weights

VIEWED = "view size is not compatible"  # in what torch says of a .view that a layout forbids


class View:
    """What an attack asks of a model: ``leaf``, ``logits`` and ``gradient``, in this order.

    ``notes``: per lever, what is on, or why it is not. ``seconds``: time spent in forwards and backwards.
    """

    def __init__(
        self,
        model: Frozen,
        x: Tensor,
        levers: Levers,
        precision: str,
        swaps: ExitStack,
        normalize: Normalize | None,
        backend: str | None,
        without: dict[str, str],
    ) -> None:
        self._inner, self._module, self._swaps = model.inner, model.module, swaps
        self._modules = [] if model.module is None else list(model.module.modules())
        self._x, self._without = x, without
        self._precision = precision
        self.notes: dict[str, str] = {}
        self.seconds = 0.0
        self._flow: fold.Flow | None = None
        self._pairs: list[fold.Pair] | None = None  # to be folded before the next forward
        opaque = _opaque(model.module)
        self.dtype = model.cast
        self._autocast = self._chosen_precision(precision, opaque)
        self.format = self._chosen_format(levers, opaque)
        self._graphs = self._chosen_graphs(levers, opaque, backend)
        self._recorded: Recorded | None = None  # that of the last forward
        self._addresses: Any = None  # what a recording depends on, once it is known
        self._prepare_recurrent()
        self._prepare_norms(levers, opaque, backend)
        self._prepare_folding(levers, opaque)
        channels_last = self.notes["channels_last"] == "on"
        self._weights = Weights(self._modules, swaps, self._autocast, channels_last, self._graphs)
        # Where norms will be folded, and only the layout is another, this waits for the second forward: the first keeps
        # most for its backward, and convolutions lay out a weight by themselves.
        if self._flow is None or self._autocast:
            self._weights.lay_out()
        self._constants = normalize
        self._normalize = None if normalize is None else normalize.on(x, self.dtype or x.dtype)
        self._compiled = self._chosen_compilation(backend, opaque)
        self._clones = self._refusal("clones") is not None
        self._backwards = 0

    # ----------------------------------------------------------------------------------------- choices

    @property
    def goes_by_batch(self) -> bool:
        """Whether what the model says of a row depends on the others."""
        return any(isinstance(part, fold.BATCH_NORMS) and fold.without_statistics(part) for part in self._modules)

    def _refusal(self, lever: str) -> str | None:
        """Why the model is known not to take a lever, by this call or an earlier one, or None."""
        return self._without.get(lever, refused.known(self._module).get(lever))

    def _chosen_precision(self, precision: str, opaque: str | None) -> bool:
        """Whether the model runs under autocast to bf16; ``dtype`` is then bf16 too."""
        device, why = self._x.device.type, ""
        if self.dtype is not None:
            why = f"{_short(self.dtype)}, that of the model"
        elif self._x.dtype == torch.float64:
            why = "fp64, that of x"
        elif precision == "fp32":
            why = "fp32, as asked for"
        elif precision == "auto" and inside_autocast(device):
            why = "that of the autocast around the call"
        elif precision == "auto" and opaque is not None:
            why = f"fp32: {opaque}"
        elif precision == "auto" and (reason := self._refusal("precision")) is not None:
            why = f"fp32: {reason}"
        if why:
            self.notes["precision"] = why
            return False
        pays, reason = bf16_pays(device) if precision == "auto" else (True, "as asked for")
        self.notes["precision"] = f"{'bf16' if pays else 'fp32'}: {reason}"
        self.dtype = torch.bfloat16 if pays else None
        return pays

    def _chosen_format(self, levers: Levers, opaque: str | None) -> torch.memory_format:
        """In which format the points of the attack lie."""
        plain, last = torch.contiguous_format, torch.channels_last
        own = last if self._x.dim() == 4 and not self._x.is_contiguous() else plain
        if not levers.channels_last:
            note = "off"
        elif self._x.dim() != 4:
            note = f"off: x has {self._x.dim()} dimensions"
        elif opaque is not None:
            note = f"off: {opaque}"
        elif not any(type(part) in CONVOLUTIONS_2D for part in self._modules):
            note = "off: no 2-D convolution"
        elif (reason := self._refusal("channels_last")) is not None:
            self.notes["channels_last"] = f"off: {reason}"
            return plain
        else:
            self.notes["channels_last"] = "on"
            return last
        self.notes["channels_last"] = note
        return own

    def _chosen_compilation(self, backend: str | None, opaque: str | None) -> CompiledForward | None:
        if backend is None:
            self.notes["compile"] = "off"
        elif opaque is not None or self._module is None:
            self.notes["compile"] = f"off: {opaque}"
        else:
            compiled = compiled_forward(self._module, backend)
            self.notes["compile"] = f"off: {compiled.failed}" if compiled.failed else f"on: {backend}"
            return compiled
        return None

    def _chosen_graphs(self, levers: Levers, opaque: str | None, backend: str | None) -> Graphs | None:
        why = None
        if not levers.cuda_graphs:
            why = "off"
        elif opaque is not None or self._module is None:
            why = f"off: {opaque}"
        elif self._x.device.type not in RECORDERS:
            why = f"off: x is on {self._x.device.type}"
        elif isinstance(self._x, FakeTensor):
            why = "off: on fake tensors nothing is launched"
        elif levers.live_rows == "exact":
            why = "off: live_rows='exact' makes batches of any size"
        elif backend is not None:
            why = "off: the model is compiled"
        elif (reason := self._refusal("clones") or unrecordable(self._modules)) is not None:
            why = f"off: {reason}"
        else:
            graphs = graphs_of(self._module, self._x.device)
            graphs.most_memory = UNASKED if levers.cuda_graphs == "auto" else math.inf
            if graphs.refusal is None and not graphs.in_use:
                graphs.in_use = True
                self._swaps.callback(setattr, graphs, "in_use", False)
                self.notes["cuda_graphs"] = "off: nothing was recorded"
                return graphs
            why = f"off: {graphs.refusal or 'an attack on this model is under way'}"
        self.notes["cuda_graphs"] = why
        return None

    def _prepare_recurrent(self) -> None:
        """cuDNN has no backward for recurrent layers in eval mode; torch's own kernels have one."""
        recurrent = [part for part in self._modules if isinstance(part, nn.RNNBase)]
        if not recurrent or not _runs_on_cudnn(self._x):
            return
        for part in recurrent:
            self._swaps.enter_context(fold.own_forward(part, partial(_without_cudnn, part.forward)))
        names = ", ".join(sorted({type(part).__name__ for part in recurrent}))
        self.notes["cudnn"] = f"off for {names}: it has no backward in eval mode"

    def _prepare_norms(self, levers: Levers, opaque: str | None, backend: str | None) -> None:
        if not levers.lean_batch_norm:
            note = "off"
        elif levers.lean_batch_norm == "auto" and self._x.device.type != "cpu":
            note = f"off: on {self._x.device.type} it costs launches"
        elif opaque is not None:
            note = f"off: {opaque}"
        elif backend is not None:
            note = "off: torch.compile decides what is kept"
        else:
            count = lean_norms(self._modules, self._swaps)
            note = f"on: {count} keep no input" if count else "off: no batch norm"
        self.notes["lean_batch_norm"] = note

    def _prepare_folding(self, levers: Levers, opaque: str | None) -> None:
        why = "off" if not levers.fold_batch_norm else None
        why = why or (None if opaque is None else f"off: {opaque}")
        if why is None and levers.fold_batch_norm == "auto" and self._graphs is not None:
            why = "off: CUDA graphs replay the passes, and folding would take longer than it saves"
        reason = None if why else self._refusal("fold_batch_norm") or fold.foldable(self._modules)
        why = why or (None if reason is None else f"off: {reason}")
        if why is not None or self._module is None:
            self.notes["fold_batch_norm"] = why or "off: not a module"
            return
        self._flow = fold.Flow(self._modules)
        self.notes["fold_batch_norm"] = "off: no second forward was made"

    # ------------------------------------------------------------------------------------------- calls

    def forward(self, x_k: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
        """The points as the model takes them, and their logits; a gradient is one with respect to the first."""
        begin = time.perf_counter()
        self._settle()
        recorded = self._replayed(x_k, gradient)
        if recorded is not None:
            self.seconds += time.perf_counter() - begin
            return recorded.leaf, recorded.z if gradient else recorded.z.clone()
        before = x_k._version
        leaf = x_k.detach() if self.dtype is None else x_k.detach().to(self.dtype)
        leaf = leaf.clone() if self._clones else leaf
        leaf.requires_grad_(gradient)
        watch = self._flow if gradient and self._flow is not None else nullcontext()
        compiled = self._compiled if self._flow is None else None
        with torch.set_grad_enabled(gradient), self.context(), watch, self._refusals(), self._weights.joined():
            points = self._normalized(leaf)
            output = self._inner(points) if compiled is None else compiled(self._inner, points)
        if x_k._version != before:
            raise Refused("clones", "the model edits its input in place")
        z = checked_logits(output, len(x_k))
        if gradient:
            with_graph(z)
            heap.look()  # now that all activations are there
        if self._compiled is not None and self._compiled.failed is not None:
            self.notes["compile"] = f"off: {self._compiled.failed}"
        if gradient and self._flow is not None:
            self._pairs, self._flow = self._flow.pairs(z), None
        self.seconds += time.perf_counter() - begin
        return leaf, z

    def _normalized(self, leaf: Tensor) -> Tensor:
        return leaf if self._normalize is None else self._normalize(leaf)

    def _replayed(self, x_k: Tensor, gradient: bool) -> Recorded | None:
        """The forward by a graph, or None where it has to run as it is; so has one that is watched."""
        self._recorded = None
        graphs = self._graphs
        if graphs is None or self._flow is not None:
            return None
        if self._addresses is None:
            self._addresses = self._looked_up()

        def logits(leaf: Tensor) -> Tensor:
            with self.context(), self._weights.joined():
                return with_graph(checked_logits(self._inner(self._normalized(leaf)), len(leaf)))

        with torch.enable_grad(), self._refusals():
            self._recorded = graphs.forward(self._addresses, x_k, self.dtype, logits, gradient)
        if graphs.refusal is not None:
            self._graphs, self.notes["cuda_graphs"] = None, f"off: {graphs.refusal}"
        elif self._recorded is not None:
            self.notes["cuda_graphs"] = "on"
        return self._recorded

    def _looked_up(self) -> Any:
        """What a recording depends on: where parameters and buffers are, what is folded, and the constants of ours."""
        tensors = [
            None if tensor is None else (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            for part in self._modules
            for tensor in (*part._parameters.values(), *part._buffers.values())
        ]
        folded = {joint.norm for joint in self._weights.joints}
        return tuple(tensors), tuple(part in folded for part in self._modules), self._constants, self._autocast

    def gradient(self, z: Tensor, leaf: Tensor, ascent: Tensor) -> Tensor:
        """The gradient of the points; until the next forward."""
        begin = time.perf_counter()
        if self._recorded is not None:
            self._recorded.ascent.copy_(ascent)
            self._recorded.backward()
            gradient = self._recorded.gradient
        else:
            with self.context(), self._refusals():
                gradient = pulled_back(z, leaf, ascent)
        self._backwards += 1
        self.seconds += time.perf_counter() - begin
        return gradient

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Until the first backward is over: an error that says that the model does not take a lever is a
        :class:`Refused`, and no error of the model."""
        try:
            yield
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            refusal = self._refused_by(error) if self._backwards == 0 else None
            if refusal is None:
                raise
            raise refusal from error

    def _refused_by(self, error: Exception) -> Refused | None:
        """An assertion does not say what it is about, so that each lever that it may be about is left out in turn;
        one about something else fails without them too."""
        text = str(error)
        asserted = isinstance(error, AssertionError)
        said_first = text.splitlines()[0] if text else "no message"
        if self.notes["channels_last"] == "on":
            if VIEWED in text:
                return Refused("channels_last", "the model views a tensor as another shape")
            if asserted or "contiguous" in text:
                return Refused("channels_last", f"the model does not take channels_last ({said_first})")
        if self._autocast and self._precision == "auto" and (asserted or "bfloat16" in text.lower()):
            return Refused("precision", f"the model does not take bf16: {said_first}")
        return None

    def context(self) -> AbstractContextManager[Any]:
        """What the model runs in: autocast, where the attack is in bf16."""
        device = self._x.device.type
        if self._autocast:
            return torch.autocast(device, torch.bfloat16, cache_enabled=False)
        return without_autocast(device) if self._precision == "fp32" else nullcontext()

    def _settle(self) -> None:
        """Folds what was found. Not before the backward of that forward is over: it may run parts of it again."""
        pairs, self._pairs = self._pairs, None
        if pairs is not None:
            self._weights.lay_out()
            count = self._weights.fold(pairs, traced=self._compiled is not None)
            self.notes["fold_batch_norm"] = f"on: {count} folded" if count else "off: none follows a convolution"


@contextmanager
def viewed(
    model: Any,
    x: Tensor,
    levers: Levers,
    precision: str,
    normalize: Normalize | None = None,
    backend: str | None = None,
    without: dict[str, str] | None = None,
) -> Iterator[View]:
    """The view of a model for one attack on inputs like x; leaving puts everything back, whatever happened."""
    with frozen(model, x) as inner, ExitStack() as swaps:
        yield View(inner, x, levers, precision, swaps, normalize, backend, without or {})


def _runs_on_cudnn(x: Tensor) -> bool:
    return x.device.type == "cuda" and torch.backends.cudnn.enabled


def _without_cudnn(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with torch.backends.cudnn.flags(enabled=False):
        return forward(*args, **kwargs)


def _short(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, str(dtype))


def _opaque(module: nn.Module | None) -> str | None:
    """Why nothing inside a model may be exchanged, or None."""
    if module is None:
        return "the model is not a module"
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            return "the model is compiled by TorchScript"
        if type(part).__name__ == "OptimizedModule":  # importing its class would import the compiler
            return "the model is compiled already; compile=True does that to the model of the attack"
    return None
