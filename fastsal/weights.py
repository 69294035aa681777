"""The weights of a model as an attack takes them: in its precision and layout, with batch norm folded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from fastsal import fold
from fastsal.graphs import Graphs
from fastsal.refused import Refused

CONVOLUTIONS_2D = (nn.Conv2d, nn.ConvTranspose2d)
PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Weights:
    """Exchanges parameters; ``swaps`` puts the model's own back.

    ``joints``: what was folded. ``graphs``: where recordings want the exchanged ones, or None.
    """

    def __init__(
        self, modules: list[nn.Module], swaps: ExitStack, bf16: bool, channels_last: bool, graphs: Graphs | None
    ) -> None:
        self._modules, self._swaps, self._graphs = modules, swaps, graphs
        self._numbers = {part: number for number, part in enumerate(modules)}
        self._bf16, self._channels_last = bf16, channels_last
        self._originals: dict[tuple[nn.Module, str], Tensor | None] = {}
        self.joints: list[fold.Joint] = []

    def lay_out(self) -> None:
        """Weights and biases of products in precision and layout."""
        for part in self._modules:
            if type(part) not in PRODUCTS:
                continue
            for name in ("weight", "bias"):
                value = part._parameters.get(name)  # a parametrized weight is not there, and stays
                if value is None or not _is_plain(value):
                    continue
                laid_out = self._laid_out(part, value) if name == "weight" else self._in_precision(value)
                if laid_out is not value and (laid_out.dtype, laid_out.stride()) != (value.dtype, value.stride()):
                    self._swap(part, name, laid_out)

    def fold(self, pairs: list[fold.Pair], traced: bool) -> int:
        """Folds norms into the convolutions before them, and says how many. ``traced``: the forward is compiled, and
        what a trace has seen stays so."""
        pairs = [pair for pair in pairs if all(p is None or _is_plain(p) for p in pair[0]._parameters.values())]
        for convolution, norm in pairs:
            weight = self._original(convolution, "weight")
            assert weight is not None
            weight, bias = fold.folded(weight, self._original(convolution, "bias"), norm)
            self._swap(convolution, "weight", self._laid_out(convolution, weight))
            self._swap(convolution, "bias", self._in_precision(bias))
            joint = fold.Joint(convolution, norm)
            if traced:
                self._swaps.enter_context(fold.own_forward(joint.norm, _as_it_is))
                continue
            self._swaps.enter_context(fold.own_forward(joint.convolution, joint.of_convolution))
            self._swaps.enter_context(fold.own_forward(joint.norm, joint.of_norm))
            self.joints.append(joint)
        return len(pairs)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """A forward with folded norms: each takes what its convolution has made, now as when it was folded."""
        for joint in self.joints:
            joint.made = None
        try:
            yield
            for joint in self.joints:
                joint.close()
        except fold.AnotherWay as error:
            raise Refused("fold_batch_norm", "the model takes another way at a later forward") from error

    def _swap(self, part: nn.Module, name: str, value: Tensor) -> None:
        """Another tensor for a parameter, until the attack ends. Its place among the parameters stays."""
        if (part, name) not in self._originals:  # what an earlier swap put there may go
            self._originals[part, name] = part._parameters[name]
            self._swaps.callback(part._parameters.__setitem__, name, part._parameters[name])
        if self._graphs is not None:
            value = self._graphs.place(self._numbers[part], name, value)
        part._parameters[name] = nn.Parameter(value, requires_grad=False)

    def _original(self, part: nn.Module, name: str) -> Tensor | None:
        return self._originals.get((part, name), part._parameters[name])

    def _laid_out(self, part: nn.Module, weight: Tensor) -> Tensor:
        dtype = torch.bfloat16 if self._bf16 and weight.dtype == torch.float32 else weight.dtype
        last = self._channels_last and type(part) in CONVOLUTIONS_2D
        return weight.detach().to(dtype, memory_format=torch.channels_last if last else torch.preserve_format)

    def _in_precision(self, value: Tensor) -> Tensor:
        return value.detach().to(torch.bfloat16) if self._bf16 and value.dtype == torch.float32 else value


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _is_plain(parameter: Tensor) -> bool:
    """Whether it has no class and no attribute of the user's, which a parameter in its place would lack. torch.compile
    leaves marks of its own on the parameters of what it has compiled, and a fake one is of torch's class for those."""
    if isinstance(parameter, FakeTensor):
        return True
    return type(parameter) is nn.Parameter and all(name.startswith("_dynamo_") for name in vars(parameter))
