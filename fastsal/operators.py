"""The contract of every operator: schema, checks and shape function. No maths, no device.

An operator is called as ``torch.ops.fastsal.NAME``. It has

- a schema, written once, here;
- ``outputs(*args)``: checks shape, dtype and device, then allocates the outputs. The same function serves real
  tensors, fake tensors and the meta device, so a shape function that lies cannot exist;
- ``values(*args)``: checks what only the data can tell (indices and labels in range, x in the box, eps finite);
- bodies, bound per device in :mod:`fastsal.backends`: a body takes the arguments and then the allocated outputs.

Two index vectors let compaction ride along. ``rows[j]`` is the slot of row j in the batch that the last forward ran
on; ``ids[j]`` is its sample. Padding slots carry id -1 and are never written. ``None`` means ``0, 1, 2, ...``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)
GRADIENTS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MIN_CLASSES, MAX_CLASSES = 2, 100_000
NORMS = (math.inf, 2.0)  # the values that an operator's argument `p` takes


@dataclass(frozen=True)
class Operator:
    """One operator of the contract; ``arguments`` and ``returns`` are the two halves of its schema."""

    name: str
    arguments: str
    returns: tuple[str, ...]
    outputs: Callable[..., tuple[Tensor, ...]]
    values: Callable[..., None]
    dense: tuple[str, ...]  # operands that must share one memory format

    @property
    def schema(self) -> str:
        # Results are positional: a schema may not use one name for an argument and for a result.
        return f"({self.arguments}) -> ({', '.join(['Tensor'] * len(self.returns))})"

    @property
    def body_schema(self) -> str:
        """Arguments, then one mutable tensor per output; returns 0, or 1 when `values` must raise."""
        taken = self.arguments.count("!)")
        outs = ", ".join(f"Tensor({chr(ord('a') + taken + i)}!) {name}_out" for i, name in enumerate(self.returns))
        return f"({self.arguments}, {outs}) -> int"

    @property
    def argument_names(self) -> list[str]:
        return [argument.split()[-1] for argument in self.arguments.split(", ")]


def loss_dtype(dtype: torch.dtype) -> torch.dtype:
    """Losses are computed and returned in fp32, or in fp64 for fp64 logits."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def memory_format(x: Tensor) -> torch.memory_format:
    """The one format in which an operator walks `x`. (N, 1, H, W) is both formats at once and counts as contiguous."""
    if x.is_contiguous():
        return torch.contiguous_format
    for dim, candidate in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.dim() == dim and x.is_contiguous(memory_format=candidate):
            return candidate
    return torch.contiguous_format


def empty_rows(like: Tensor, count: int, dtype: torch.dtype | None = None) -> Tensor:
    """`count` uninitialised rows of the shape and memory format of `like`."""
    return torch.empty(
        (count, *like.shape[1:]),
        dtype=dtype or like.dtype,
        device=like.device,
        memory_format=memory_format(like),
    )


# ---------------------------------------------------------------------------------------------- checks


def _fail(kind: type[Exception], operator: str, name: str, expected: str, got: object) -> None:
    raise kind(f"fastsal.{operator}: {name}: expected {expected}, got {got}")


def _shape(operator: str, name: str, tensor: Tensor, expected: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(expected):
        _fail(ValueError, operator, name, f"shape {tuple(expected)}", tuple(tensor.shape))


def _dtype(operator: str, name: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    if tensor.dtype not in allowed:
        _fail(TypeError, operator, name, " or ".join(str(dtype) for dtype in allowed), tensor.dtype)


def _device(operator: str, device: torch.device, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            _fail(ValueError, operator, name, f"device {device}", tensor.device)


def _batch(operator: str, name: str, x: Tensor) -> None:
    if x.dim() < 1:
        _fail(ValueError, operator, name, "a batch dimension, shape (N, ...)", tuple(x.shape))


def _index(operator: str, name: str, index: Tensor | None, length: int | None = None) -> None:
    if index is None:
        return
    _dtype(operator, name, index, (torch.int64,))
    if index.dim() != 1 or (length is not None and index.shape[0] != length):
        _fail(ValueError, operator, name, f"shape ({'M' if length is None else length},)", tuple(index.shape))


def _per_sample(operator: str, name: str, value: Tensor, x: Tensor) -> None:
    _dtype(operator, name, value, (x.dtype,))
    if value.dim() != 1 or (value.shape[0] != 1 and value.shape[0] != x.shape[0]):
        _fail(ValueError, operator, name, f"shape (1,) or ({x.shape[0]},)", tuple(value.shape))


def _bound(operator: str, name: str, value: Tensor | None, x: Tensor) -> None:
    if value is None:
        return
    _dtype(operator, name, value, (x.dtype,))
    channels = x.shape[1] if x.dim() > 1 else 1
    if value.dim() != 1 or (value.shape[0] != 1 and value.shape[0] != channels):
        _fail(ValueError, operator, name, f"shape (1,) or ({channels},), one per channel", tuple(value.shape))


def _norm(operator: str, p: float) -> None:
    if p not in NORMS:
        _fail(ValueError, operator, "p", "inf or 2.0 (L1 is not yet built)", p)


def _logits(operator: str, logits: Tensor) -> None:
    _dtype(operator, "logits", logits, GRADIENTS)
    if logits.dim() != 2 or not MIN_CLASSES <= logits.shape[1] <= MAX_CLASSES:
        _fail(ValueError, operator, "logits", "shape (M, C) with 2 <= C <= 100000", tuple(logits.shape))


# --------------------------------------------------------------------------------------- value checks


def _in_range(operator: str, name: str, index: Tensor | None, low: int, high: int) -> None:
    """Every element in [low, high); the first that is not is named."""
    if index is None or index.numel() == 0:
        return
    wrong = (index < low) | (index >= high)
    if bool(wrong.any()):
        at = int(wrong.to(torch.int8).argmax())
        _fail(ValueError, operator, name, f"values in [{low}, {high})", f"{int(index[at])} at position {at}")


def _finite(operator: str, name: str, value: Tensor, nonnegative: bool) -> None:
    wrong = ~torch.isfinite(value)
    if nonnegative:
        wrong |= value < 0
    if bool(wrong.any()):
        at = int(wrong.to(torch.int8).argmax())
        expected = "finite and >= 0" if nonnegative else "finite"
        _fail(ValueError, operator, name, expected, f"{value[at].item()} at position {at}")


def channel_view(bound: Tensor, x: Tensor) -> Tensor:
    """A (1,) or (C,) bound, shaped to broadcast against x of shape (N, C, ...)."""
    return bound if bound.shape[0] == 1 else bound.view(1, -1, *[1] * (x.dim() - 2))


def _in_box(operator: str, x: Tensor, ids: Tensor | None, clip_min: Tensor | None, clip_max: Tensor | None) -> None:
    """The samples `ids` of x, or all of them; padding (-1) asks for none."""
    samples = torch.arange(x.shape[0], device=x.device) if ids is None else ids[ids >= 0]
    rows = x if ids is None else x[samples]
    inside = torch.isfinite(rows)
    if clip_min is not None:
        inside &= rows >= channel_view(clip_min, x)
    if clip_max is not None:
        inside &= rows <= channel_view(clip_max, x)
    if not bool(inside.all()):
        at = int(inside.reshape(rows.shape[0], -1).all(dim=1).to(torch.int8).argmin())
        _fail(
            ValueError,
            operator,
            "x",
            "finite values in [clip_min, clip_max]",
            f"a value outside in row {int(samples[at])} (its range: {rows[at].min()} to {rows[at].max()})",
        )


# -------------------------------------------------------------------------------------- random_start


def _random_start_outputs(
    x: Tensor,
    eps: Tensor,
    seed: Tensor,
    sample_ids: Tensor | None,
    clip_min: Tensor | None,
    clip_max: Tensor | None,
    ids: Tensor | None,
    p: float,
) -> tuple[Tensor, ...]:
    name = "random_start"
    _batch(name, "x", x)
    _dtype(name, "x", x, FLOATS)
    _per_sample(name, "eps", eps, x)
    _dtype(name, "seed", seed, (torch.int64,))
    if seed.numel() != 1:
        _fail(ValueError, name, "seed", "one int64", tuple(seed.shape))
    _index(name, "sample_ids", sample_ids, x.shape[0])
    _bound(name, "clip_min", clip_min, x)
    _bound(name, "clip_max", clip_max, x)
    _index(name, "ids", ids)
    _norm(name, p)
    _device(name, x.device, eps=eps, sample_ids=sample_ids, clip_min=clip_min, clip_max=clip_max, ids=ids, seed=seed)
    return (empty_rows(x, x.shape[0] if ids is None else ids.shape[0]),)


def _random_start_values(
    x: Tensor,
    eps: Tensor,
    seed: Tensor,
    sample_ids: Tensor | None,
    clip_min: Tensor | None,
    clip_max: Tensor | None,
    ids: Tensor | None,
    p: float,
) -> None:
    _finite("random_start", "eps", eps, nonnegative=True)
    _in_range("random_start", "ids", ids, -1, x.shape[0])
    _in_box("random_start", x, ids, clip_min, clip_max)


# ------------------------------------------------------------------------------------------ pgd_step


def _pgd_step_outputs(
    x: Tensor,
    x_adv: Tensor,
    grad: Tensor,
    eps: Tensor,
    alpha: Tensor,
    clip_min: Tensor | None,
    clip_max: Tensor | None,
    rows: Tensor | None,
    ids: Tensor | None,
    p: float,
) -> tuple[Tensor, ...]:
    name = "pgd_step"
    _batch(name, "x", x)
    _dtype(name, "x", x, FLOATS)
    _batch(name, "x_adv", x_adv)
    _shape(name, "x_adv", x_adv, (x_adv.shape[0], *x.shape[1:]))
    _dtype(name, "x_adv", x_adv, (x.dtype,))
    _shape(name, "grad", grad, x_adv.shape)
    _dtype(name, "grad", grad, GRADIENTS)
    _per_sample(name, "eps", eps, x)
    _per_sample(name, "alpha", alpha, x)
    _bound(name, "clip_min", clip_min, x)
    _bound(name, "clip_max", clip_max, x)
    _index(name, "rows", rows)
    count = x_adv.shape[0] if rows is None else rows.shape[0]
    if ids is None and count != x.shape[0]:
        _fail(ValueError, name, "ids", f"one id per row when x has {x.shape[0]} samples", "None")
    _index(name, "ids", ids, count)
    _norm(name, p)
    _device(
        name,
        x.device,
        x_adv=x_adv,
        grad=grad,
        eps=eps,
        alpha=alpha,
        clip_min=clip_min,
        clip_max=clip_max,
        rows=rows,
        ids=ids,
    )
    return empty_rows(x, count), torch.empty(count, dtype=torch.bool, device=x.device)


def _pgd_step_values(
    x: Tensor,
    x_adv: Tensor,
    grad: Tensor,
    eps: Tensor,
    alpha: Tensor,
    clip_min: Tensor | None,
    clip_max: Tensor | None,
    rows: Tensor | None,
    ids: Tensor | None,
    p: float,
) -> None:
    _finite("pgd_step", "eps", eps, nonnegative=True)
    _finite("pgd_step", "alpha", alpha, nonnegative=False)
    _in_range("pgd_step", "rows", rows, 0, x_adv.shape[0])
    _in_range("pgd_step", "ids", ids, -1, x.shape[0])
    _in_box("pgd_step", x, ids, clip_min, clip_max)


# --------------------------------------------------------------------------- losses, one value per row


def _labels(operator: str, logits: Tensor, ids: Tensor | None, **labels: Tensor | None) -> None:
    _index(operator, "ids", ids, logits.shape[0])
    for name, label in labels.items():
        _index(operator, name, label, logits.shape[0] if ids is None else None)
    _device(operator, logits.device, ids=ids, **labels)


def _loss_and_grad(logits: Tensor) -> tuple[Tensor, Tensor]:
    rows = logits.shape[0]
    return (
        torch.empty(rows, dtype=loss_dtype(logits.dtype), device=logits.device),
        torch.empty(tuple(logits.shape), dtype=logits.dtype, device=logits.device),
    )


def _truncated_cross_entropy_outputs(
    logits: Tensor, target: Tensor, ids: Tensor | None, cut: float
) -> tuple[Tensor, ...]:
    name = "truncated_cross_entropy"
    _logits(name, logits)
    _labels(name, logits, ids, target=target)
    flags = [torch.empty(logits.shape[0], dtype=torch.bool, device=logits.device) for _ in range(2)]
    return (*_loss_and_grad(logits), *flags)


def _truncated_cross_entropy_values(logits: Tensor, target: Tensor, ids: Tensor | None, cut: float) -> None:
    _in_range("truncated_cross_entropy", "target", target, 0, logits.shape[1])
    _in_range("truncated_cross_entropy", "ids", ids, -1, target.shape[0])


def _margin_loss_outputs(
    logits: Tensor, target: Tensor, other: Tensor | None, ids: Tensor | None
) -> tuple[Tensor, ...]:
    name = "margin_loss"
    _logits(name, logits)
    _labels(name, logits, ids, target=target, other=other)
    if other is not None:
        _shape(name, "other", other, target.shape)
    return _loss_and_grad(logits)


def _margin_loss_values(logits: Tensor, target: Tensor, other: Tensor | None, ids: Tensor | None) -> None:
    _in_range("margin_loss", "target", target, 0, logits.shape[1])
    _in_range("margin_loss", "other", other, 0, logits.shape[1])
    _in_range("margin_loss", "ids", ids, -1, target.shape[0])
    if other is not None and bool((other == target).any()):
        at = int((other == target).to(torch.int8).argmax())
        _fail(ValueError, "margin_loss", "other", "a class other than target", f"{int(other[at])} at position {at}")


# -------------------------------------------------------------------------------------------- retire


def _retire_outputs(
    previous: Tensor,
    current: Tensor,
    right: Tensor | None,
    over: Tensor | None,
    rows: Tensor | None,
    ids: Tensor | None,
    result: Tensor,
    stop: Tensor,
    step: int,
    last: bool,
) -> tuple[Tensor, ...]:
    name = "retire"
    _batch(name, "current", current)
    _dtype(name, "current", current, FLOATS)
    count = current.shape[0]
    _batch(name, "previous", previous)
    _shape(name, "previous", previous, (previous.shape[0], *current.shape[1:]))
    _dtype(name, "previous", previous, (current.dtype,))
    if rows is None and previous.shape[0] != count:
        _fail(ValueError, name, "rows", f"one slot of previous per row of current ({count})", "None")
    for flag, value in (("right", right), ("over", over)):
        if value is not None:
            _dtype(name, flag, value, (torch.bool,))
            _shape(name, flag, value, (count,))
    _index(name, "rows", rows, count)
    _index(name, "ids", ids, count)
    _batch(name, "result", result)
    _shape(name, "result", result, (result.shape[0], *current.shape[1:]))
    _dtype(name, "result", result, (current.dtype,))
    if ids is None and result.shape[0] != count:
        _fail(ValueError, name, "ids", f"one id per row when result has {result.shape[0]} samples", "None")
    if not result.is_contiguous(memory_format=memory_format(result)):
        _fail(ValueError, name, "result", "contiguous or channels_last memory", f"strides {result.stride()}")
    _dtype(name, "stop", stop, (torch.int64,))
    _shape(name, "stop", stop, (result.shape[0],))
    if not stop.is_contiguous():
        _fail(ValueError, name, "stop", "contiguous memory", f"strides {stop.stride()}")
    _device(
        name,
        current.device,
        previous=previous,
        right=right,
        over=over,
        rows=rows,
        ids=ids,
        result=result,
        stop=stop,
    )
    return (
        torch.empty(count, dtype=torch.int64, device=current.device),
        torch.empty(count, dtype=torch.int64, device=current.device),
        torch.empty(1, dtype=torch.int64, device=current.device),
    )


def _retire_values(
    previous: Tensor,
    current: Tensor,
    right: Tensor | None,
    over: Tensor | None,
    rows: Tensor | None,
    ids: Tensor | None,
    result: Tensor,
    stop: Tensor,
    step: int,
    last: bool,
) -> None:
    _in_range("retire", "rows", rows, 0, previous.shape[0])
    _in_range("retire", "ids", ids, -1, result.shape[0])


# --------------------------------------------------------------------------------------- registration

OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        Operator(
            "random_start",
            "Tensor x, Tensor eps, Tensor seed, Tensor? sample_ids, Tensor? clip_min, Tensor? clip_max, "
            "Tensor? ids, float p",
            ("start",),
            _random_start_outputs,
            _random_start_values,
            ("x",),
        ),
        Operator(
            "pgd_step",
            "Tensor x, Tensor x_adv, Tensor grad, Tensor eps, Tensor alpha, Tensor? clip_min, Tensor? clip_max, "
            "Tensor? rows, Tensor? ids, float p",
            ("next", "nonfinite"),
            _pgd_step_outputs,
            _pgd_step_values,
            ("x", "x_adv", "grad"),
        ),
        Operator(
            "truncated_cross_entropy",
            "Tensor logits, Tensor target, Tensor? ids, float cut",
            ("loss", "grad", "right", "over"),
            _truncated_cross_entropy_outputs,
            _truncated_cross_entropy_values,
            ("logits",),
        ),
        Operator(
            "margin_loss",
            "Tensor logits, Tensor target, Tensor? other, Tensor? ids",
            ("loss", "grad"),
            _margin_loss_outputs,
            _margin_loss_values,
            ("logits",),
        ),
        Operator(
            "retire",
            "Tensor previous, Tensor current, Tensor? right, Tensor? over, Tensor? rows, Tensor? ids, "
            "Tensor(a!) result, Tensor(b!) stop, int step, bool last",
            ("rows", "ids", "live"),
            _retire_outputs,
            _retire_values,
            ("result", "previous", "current"),
        ),
    )
}

LIBRARY = torch.library.Library("fastsal", "DEF")


def _define(operator: Operator) -> None:
    LIBRARY.define(operator.name + operator.schema)

    def shape_function(*args: Any) -> Any:
        outputs = operator.outputs(*args)
        return outputs if len(outputs) > 1 else outputs[0]

    torch.library.register_fake(f"fastsal::{operator.name}", shape_function, lib=LIBRARY)
    # Not differentiable by contract: fastsal.functional wraps the losses. Falling through, rather than a missing
    # kernel, is what keeps inputs that require grad silent.
    LIBRARY.impl(operator.name, torch.library.fallthrough_kernel, "Autograd")


for _operator in OPERATORS.values():
    _define(_operator)
