"""The model of an attack in CUDA graphs: a forward and its backward to the points, recorded once per size of batch.

A graph holds launches and the addresses they work on, and no Python. So the points, the gradient of the logits and
every weight that a view exchanges lie in memory that stays from one attack to the next, and what is replayed is looked
up by the addresses of all parameters and buffers: where one has moved, a new graph is recorded. What the model's own
code does beside launching (counting, choosing by a value on the host) is done while it is recorded, and then no more: a
model whose forward is not the same twice is not recorded.

The loss is left outside, since it may be the user's function; so are `retire` and the step, which write into batches of
a size that is known only then. A step of an attack is five launches: two graphs and these three.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from fastsal import said
from fastsal.model_view import hooked, pulled_back

MOST = 24  # recordings kept of one model: six buckets, of a smaller last batch too, in two precisions
RECORDINGS = 4 * MOST  # after so many its weights must be moving all the time
UNASKED = 1 / 8  # share of the device's memory that recordings may hold which nobody has asked for

Replay = Callable[[], None]
Place = tuple[int, str, torch.dtype, tuple[int, ...], tuple[int, ...]]


class Recorder(Protocol):
    def warm_up(self, work: Callable[[], Any]) -> None:
        """Runs the work as it is, so that what happens at a first call only is not recorded."""

    def record(self, work: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Takes down what the work launches; its result, which has no values before the first replay."""

    def share_of_memory(self) -> float:
        """The share of the device's memory that all recordings hold."""


class CudaRecorder:
    """Records into torch.cuda.CUDAGraph. All graphs share one pool of memory: of one model only one pass is under way,
    and what a replay leaves there is used before the next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # that of torch.cuda.graph is on the first device
        self._held = 0  # bytes

    def warm_up(self, work: Callable[[], Any]) -> None:
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):
                    work()
            torch.cuda.current_stream().wait_stream(aside)

    def record(self, work: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: loaders pin memory in threads of their own, which a recording must not forbid, nor suffer from
        mode = "thread_local"
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=mode),
        ):
            before = torch.cuda.memory_reserved()
            result = work()
            self._held += max(0, torch.cuda.memory_reserved() - before)

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return replay, result

    def share_of_memory(self) -> float:
        return self._held / float(torch.cuda.get_device_properties(self._device).total_memory)


@dataclass(frozen=True)
class Recorded:
    """The passes of one size of batch. All tensors are written anew by the next replay.

    ``leaf``: the points as the model takes them; ``z``: their logits; ``ascent``: the gradient of these; ``gradient``:
    that of the points.
    """

    leaf: Tensor
    z: Tensor
    ascent: Tensor
    gradient: Tensor
    forward: Replay
    backward: Replay


class Graphs:
    """The recordings of one model on one device, and the memory of the weights that they read."""

    def __init__(self, module: nn.Module, recorder: Recorder) -> None:
        self._name, self._recorder = type(module).__name__, recorder
        self._places: dict[Place, Tensor] = {}
        self._kept: dict[Any, Recorded] = {}
        self._recordings = 0
        self.failed: str | None = None
        self.in_use = False
        self.most_memory = math.inf  # share of the device's
        self._large: float | None = None  # the share, once it was more than that

    def place(self, module: int, name: str, value: Tensor) -> Tensor:
        """The value of a weight, at the address that it had in the attack before."""
        key = (module, name, value.dtype, tuple(value.shape), value.stride())
        if key not in self._places:
            self._places[key] = value.clone()
        else:
            self._places[key].copy_(value)
        return self._places[key]

    def forward(
        self, key: Any, points: Tensor, dtype: torch.dtype | None, logits: Callable[[Tensor], Tensor], gradient: bool
    ) -> Recorded | None:
        """The passes of this batch, after its forward; None where it has to run as it is.

        Args:
            key: what the recording depends on, beside the batch's size, layout and precision.
            dtype: in which the model takes the points; None: as they are.
            logits: from points of that dtype to logits, with a graph.
            gradient: False: nothing is recorded for this batch alone.
        """
        key = (key, tuple(points.shape), points.stride(), dtype or points.dtype, _algorithms())
        found = self._kept.get(key)
        if found is None and gradient and self.refusal is None:
            found = self._record(key, points, dtype, logits)
        if found is not None:
            found.leaf.detach().copy_(points)
            found.forward()
        return found

    def _record(
        self, key: Any, points: Tensor, dtype: torch.dtype | None, logits: Callable[[Tensor], Tensor]
    ) -> Recorded | None:
        if self._recordings >= RECORDINGS:
            self._give_up(f"{RECORDINGS} graphs were recorded already; do its parameters move at every step?")
            return None
        leaf = points.detach().to(dtype or points.dtype, copy=True).requires_grad_()
        if _launches(logits, leaf) != _launches(logits, leaf):
            self._give_up("two forwards of one batch were not alike, and a graph would repeat one of them")
            return None
        graph: list[Tensor] = []  # the logits with their graph, between the two recordings

        def forward() -> Tensor:
            graph[:] = [logits(leaf)]
            return graph[0].detach()

        def backward(ascent: Tensor) -> Tensor:
            return pulled_back(graph.pop(), leaf, ascent)

        self._recorder.warm_up(lambda: backward(torch.zeros_like(forward())))  # an error here is one of the model
        try:
            replay_forward, z = self._recorder.record(forward)
            ascent = torch.zeros_like(z)
            replay_backward, gradient = self._recorder.record(lambda: backward(ascent))
        except RuntimeError as error:
            self._give_up(str(error).strip().splitlines()[0])
            return None
        self._recordings += 1
        if (share := self._recorder.share_of_memory()) > self.most_memory:
            self._kept.clear()
            self._large = share
            return None
        if len(self._kept) >= MOST:
            self._kept.pop(next(iter(self._kept)))
        self._kept[key] = Recorded(leaf, z, ascent, gradient, replay_forward, replay_backward)
        return self._kept[key]

    @property
    def refusal(self) -> str | None:
        """Why nothing is recorded any more, or None."""
        if self.failed is None and self._large is not None and self._large > self.most_memory:
            return f"they would hold {self._large:.0%} of the device's memory; cuda_graphs=True allows it"
        return self.failed

    def _give_up(self, why: str) -> None:
        self.failed = why
        said.warn(f"cuda_graphs: {self._name} runs without CUDA graphs from here on: {why}", said.FallbackWarning)

    def __len__(self) -> int:
        return len(self._kept)


class _Launches(TorchDispatchMode):
    """Takes down what a forward calls, with everything that is no value of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.taken.append(f"{func}{tree_map(_without_values, (args, kwargs or {}))}")
        return func(*args, **(kwargs or {}))


def _without_values(thing: Any) -> Any:
    return (thing.dtype, tuple(thing.shape), thing.stride()) if isinstance(thing, Tensor) else thing


def _launches(logits: Callable[[Tensor], Tensor], leaf: Tensor) -> list[str]:
    launches = _Launches()
    with launches:
        logits(leaf)
    return launches.taken


def _algorithms() -> tuple[object, ...]:
    """The settings of torch by which a library chooses what it launches. Precisions by operator: torch raises where
    the older, common flags are read after these have been set."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    precisions = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, products.fp32_precision  # type: ignore[attr-defined]
    return *precisions, cudnn.enabled, cudnn.benchmark, torch.are_deterministic_algorithms_enabled()


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaRecorder}
_graphs: weakref.WeakKeyDictionary[nn.Module, dict[torch.device, Graphs]] = weakref.WeakKeyDictionary()


def graphs_of(module: nn.Module, device: torch.device) -> Graphs:
    """The one of this module and device, made at its first attack."""
    found = _graphs.setdefault(module, {})
    if device not in found:
        found[device] = Graphs(module, RECORDERS[device.type](device))
    return found[device]


def unrecordable(modules: list[nn.Module]) -> str | None:
    """Why the passes of these modules cannot be replayed, or None."""
    part = hooked(modules)
    return None if part is None else f"{type(part).__name__} has hooks, which a graph would not call"
