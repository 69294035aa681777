"""The contract of every operator: schema, checks and shape function. No maths, no device.

An operator is called as ``torch.ops.fastsal.NAME``, or as ``torch.ops.fastsal.NAME.out`` with the memory of every
result (for an eager loop that owns its buffers: fresh memory out of cache costs more than the arithmetic). It has

- a schema, written once, here;
- ``plan(*args)``: checks shape, dtype and device, and says what each output is. The same function serves real
  tensors, fake tensors and the meta device, so a shape function that lies cannot exist;
- ``values(*args)``: checks what only the data can tell (indices and labels in range, x in the box, eps finite);
- bodies, bound per device in :mod:`fastsal.backends`: a body takes the arguments and then the outputs.

Two index vectors let compaction ride along. ``rows[j]`` is the slot of row j in the batch that the last forward ran
on; ``ids[j]`` is its sample. Padding slots carry id -1 and are never written. ``None`` means ``0, 1, 2, ...``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastsal import checks as check


@dataclass(frozen=True)
class Out:
    """One output, before there is memory for it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    format: torch.memory_format = torch.contiguous_format

    def allocate(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=self.device, memory_format=self.format)


@dataclass(frozen=True)
class Operator:
    """One operator of the contract; ``arguments`` and ``returns`` are the two halves of its schema."""

    name: str
    arguments: str
    returns: tuple[str, ...]
    plan: Callable[..., tuple[Out, ...]]
    values: Callable[..., None]
    dense: tuple[str, ...]  # operands that must share one memory format
    gathered: tuple[str, ...] = ()  # outputs in which a padding row is never written
    argument_names: tuple[str, ...] = field(init=False)
    defaults: tuple[Any, ...] = field(init=False)  # of the last arguments

    def __post_init__(self) -> None:
        words = [argument.split()[-1].split("=") for argument in self.arguments.split(", ")]
        object.__setattr__(self, "argument_names", tuple(word[0] for word in words))
        values = {"True": True, "False": False}
        defaults = [values.get(word[1]) if word[1] in values else int(word[1]) for word in words if len(word) > 1]
        object.__setattr__(self, "defaults", tuple(defaults))

    @property
    def schema(self) -> str:
        # Results are positional: a schema may not use one name for an argument and for a result.
        return f"({self.arguments}) -> ({', '.join(['Tensor'] * len(self.returns))})"

    @property
    def out_names(self) -> list[str]:
        return [f"{name}_out" for name in self.returns]

    @property
    def _outs(self) -> str:
        taken = self.arguments.count("!)")
        return ", ".join(f"Tensor({chr(ord('a') + taken + i)}!) {name}" for i, name in enumerate(self.out_names))

    @property
    def out_schema(self) -> str:
        return f"({self.arguments}, *, {self._outs}) -> ()"

    @property
    def body_schema(self) -> str:
        """Arguments, then one mutable tensor per output; returns 0, or 1 when `values` must raise."""
        required = ", ".join(argument.split("=")[0] for argument in self.arguments.split(", "))
        return f"({required}, {self._outs}) -> int"

    def complete(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """All arguments: the dispatcher leaves out those at the end that have their default."""
        missing = len(self.argument_names) - len(args)
        return (*args, *self.defaults[len(self.defaults) - missing :]) if missing else tuple(args)

    def planned(self, args: Sequence[Any]) -> tuple[Out, ...]:
        """What `plan` says of all arguments, once it is known that each tensor is one: torch lets None through."""
        for name, argument, value in zip(self.argument_names, self.arguments.split(", "), args, strict=True):
            if value is None and argument.startswith(("Tensor ", "Tensor(")):
                check.fail(TypeError, self.name, name, "a tensor", None)
        return self.plan(*args)

    def outputs(self, *args: Any) -> tuple[Tensor, ...]:
        """Checks the arguments and allocates the outputs, in the order of ``returns``."""
        return tuple(out.allocate() for out in self.planned(self.complete(args)))

    def accept(self, plan: Sequence[Out], outs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Checks the memory that a caller gave for the outputs, and puts it into order."""
        given = tuple(outs[name] for name in self.out_names)
        for name, out, memory in zip(self.out_names, plan, given, strict=True):
            check.shape(self.name, name, memory, out.shape)
            check.dtype(self.name, name, memory, (out.dtype,))
            check.device(self.name, out.device, **{name: memory})
            if not memory.is_contiguous(memory_format=out.format):
                check.fail(ValueError, self.name, name, f"{out.format} memory", f"strides {memory.stride()}")
        return given


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


def _rows(like: Tensor, count: int) -> Out:
    """`count` rows of the shape and memory format of `like`."""
    return Out((count, *like.shape[1:]), like.dtype, like.device, memory_format(like))


def empty_rows(like: Tensor, count: int) -> Tensor:
    """`count` uninitialised rows of the shape, dtype and memory format of `like`."""
    return _rows(like, count).allocate()


# -------------------------------------------------------------------------------------- random_start


def _random_start_plan(
    x: Tensor,
    eps: Tensor,
    seed: Tensor,
    sample_ids: Tensor | None,
    clip_min: Tensor | None,
    clip_max: Tensor | None,
    ids: Tensor | None,
    p: float,
) -> tuple[Out, ...]:
    name = "random_start"
    check.batch(name, "x", x)
    check.dtype(name, "x", x, check.FLOATS)
    check.per_sample(name, "eps", eps, x)
    check.dtype(name, "seed", seed, (torch.int64,))
    if seed.numel() != 1:
        check.fail(ValueError, name, "seed", "one int64", tuple(seed.shape))
    check.index(name, "sample_ids", sample_ids, x.shape[0])
    check.bound(name, "clip_min", clip_min, x)
    check.bound(name, "clip_max", clip_max, x)
    check.index(name, "ids", ids)
    check.norm(name, p)
    check.device(
        name, x.device, eps=eps, sample_ids=sample_ids, clip_min=clip_min, clip_max=clip_max, ids=ids, seed=seed
    )
    return (_rows(x, x.shape[0] if ids is None else ids.shape[0]),)


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
    check.finite("random_start", "eps", eps, nonnegative=True)
    check.in_range("random_start", "ids", ids, -1, x.shape[0])
    check.in_box("random_start", x, ids, clip_min, clip_max)


# ------------------------------------------------------------------------------------------ pgd_step


def _pgd_step_plan(
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
    topk: int,
) -> tuple[Out, ...]:
    name = "pgd_step"
    check.batch(name, "x", x)
    check.dtype(name, "x", x, check.FLOATS)
    check.batch(name, "x_adv", x_adv)
    check.shape(name, "x_adv", x_adv, (x_adv.shape[0], *x.shape[1:]))
    check.dtype(name, "x_adv", x_adv, (x.dtype,))
    check.shape(name, "grad", grad, x_adv.shape)
    check.dtype(name, "grad", grad, check.GRADIENTS)
    check.per_sample(name, "eps", eps, x)
    check.per_sample(name, "alpha", alpha, x)
    check.bound(name, "clip_min", clip_min, x)
    check.bound(name, "clip_max", clip_max, x)
    check.index(name, "rows", rows)
    count = x_adv.shape[0] if rows is None else rows.shape[0]
    if ids is None and count != x.shape[0]:
        check.fail(ValueError, name, "ids", f"one id per row when x has {x.shape[0]} samples", "None")
    check.index(name, "ids", ids, count)
    check.norm(name, p)
    size = math.prod(x.shape[1:])
    if p == 1.0 and not 1 <= topk <= max(size, 1):
        check.fail(ValueError, name, "topk", f"1 to {max(size, 1)}, the elements of a row", topk)
    check.device(
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
    return _rows(x, count), Out((count,), torch.bool, x.device)


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
    topk: int,
) -> None:
    check.finite("pgd_step", "eps", eps, nonnegative=True)
    check.finite("pgd_step", "alpha", alpha, nonnegative=False)
    check.in_range("pgd_step", "rows", rows, 0, x_adv.shape[0])
    check.in_range("pgd_step", "ids", ids, -1, x.shape[0])
    check.in_box("pgd_step", x, ids, clip_min, clip_max)


# --------------------------------------------------------------------------- losses, one value per row


def _labels(operator: str, logits: Tensor, ids: Tensor | None, **labels: Tensor | None) -> None:
    check.index(operator, "ids", ids, logits.shape[0])
    for name, label in labels.items():
        check.index(operator, name, label, logits.shape[0] if ids is None else None)
    check.device(operator, logits.device, ids=ids, **labels)


def _loss(logits: Tensor) -> Out:
    return Out((logits.shape[0],), loss_dtype(logits.dtype), logits.device)


def _slope(logits: Tensor) -> Out:
    """d loss / d logits: row-major, whatever the layout of the logits."""
    return Out(tuple(logits.shape), logits.dtype, logits.device)


def _truncated_cross_entropy_plan(logits: Tensor, target: Tensor, ids: Tensor | None, cut: float) -> tuple[Out, ...]:
    name = "truncated_cross_entropy"
    check.logits(name, "logits", logits)
    _labels(name, logits, ids, target=target)
    flag = Out((logits.shape[0],), torch.bool, logits.device)
    return _loss(logits), _slope(logits), flag, flag


def _truncated_cross_entropy_values(logits: Tensor, target: Tensor, ids: Tensor | None, cut: float) -> None:
    check.in_range("truncated_cross_entropy", "target", target, 0, logits.shape[1])
    check.in_range("truncated_cross_entropy", "ids", ids, -1, target.shape[0])


def _margin_loss_plan(
    logits: Tensor, target: Tensor, other: Tensor | None, ids: Tensor | None, dlr: bool
) -> tuple[Out, ...]:
    name = "margin_loss"
    fewest = check.MIN_CLASSES if not dlr else 3 if other is None else 4
    check.logits(name, "logits", logits, fewest, " for DLR" if dlr else "")
    _labels(name, logits, ids, target=target, other=other)
    if other is not None:
        check.shape(name, "other", other, target.shape)
    return _loss(logits), _slope(logits)


def _margin_loss_values(logits: Tensor, target: Tensor, other: Tensor | None, ids: Tensor | None, dlr: bool) -> None:
    name = "margin_loss"
    check.in_range(name, "target", target, 0, logits.shape[1])
    check.in_range(name, "other", other, 0, logits.shape[1])
    check.in_range(name, "ids", ids, -1, target.shape[0])
    if other is not None and bool((other == target).any()):
        at = int((other == target).to(torch.int8).argmax())
        check.fail(ValueError, name, "other", "a class other than target", f"{int(other[at])} at position {at}")


def _kl_divergence_plan(clean: Tensor, adv: Tensor, ids: Tensor | None, both: bool) -> tuple[Out, ...]:
    name = "kl_divergence"
    check.logits(name, "adv", adv)
    check.logits(name, "clean", clean)
    check.dtype(name, "clean", clean, (adv.dtype,))
    if clean.shape[1] != adv.shape[1]:
        check.fail(ValueError, name, "clean", f"{adv.shape[1]} classes, as adv has", tuple(clean.shape))
    check.index(name, "ids", ids, adv.shape[0])
    if ids is None and clean.shape[0] != adv.shape[0]:
        check.fail(ValueError, name, "ids", f"one id per row when clean has {clean.shape[0]} samples", "None")
    check.device(name, adv.device, clean=clean, ids=ids)
    slope = _slope(adv)
    return _loss(adv), slope, slope if both else replace(slope, shape=(0, adv.shape[1]))


def _kl_divergence_values(clean: Tensor, adv: Tensor, ids: Tensor | None, both: bool) -> None:
    check.in_range("kl_divergence", "ids", ids, -1, clean.shape[0])


# -------------------------------------------------------------------------------------------- retire


def _retire_plan(
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
) -> tuple[Out, ...]:
    name = "retire"
    check.batch(name, "current", current)
    check.dtype(name, "current", current, check.FLOATS)
    count = current.shape[0]
    check.batch(name, "previous", previous)
    check.shape(name, "previous", previous, (previous.shape[0], *current.shape[1:]))
    check.dtype(name, "previous", previous, (current.dtype,))
    if rows is None and previous.shape[0] != count:
        check.fail(ValueError, name, "rows", f"one slot of previous per row of current ({count})", "None")
    for flag, value in (("right", right), ("over", over)):
        if value is not None:
            check.dtype(name, flag, value, (torch.bool,))
            check.shape(name, flag, value, (count,))
    check.index(name, "rows", rows, count)
    check.index(name, "ids", ids, count)
    check.batch(name, "result", result)
    check.shape(name, "result", result, (result.shape[0], *current.shape[1:]))
    check.dtype(name, "result", result, (current.dtype,))
    if ids is None and result.shape[0] != count:
        check.fail(ValueError, name, "ids", f"one id per row when result has {result.shape[0]} samples", "None")
    if not result.is_contiguous(memory_format=memory_format(result)):
        check.fail(ValueError, name, "result", "contiguous or channels_last memory", f"strides {result.stride()}")
    check.dtype(name, "stop", stop, (torch.int64,))
    check.shape(name, "stop", stop, (result.shape[0],))
    if not stop.is_contiguous():
        check.fail(ValueError, name, "stop", "contiguous memory", f"strides {stop.stride()}")
    check.device(
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
    survivors = Out((count,), torch.int64, current.device)
    return survivors, survivors, Out((1,), torch.int64, current.device)


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
    check.in_range("retire", "rows", rows, 0, previous.shape[0])
    check.in_range("retire", "ids", ids, -1, result.shape[0])


# --------------------------------------------------------------------------------------- registration

OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        Operator(
            "random_start",
            "Tensor x, Tensor eps, Tensor seed, Tensor? sample_ids, Tensor? clip_min, Tensor? clip_max, "
            "Tensor? ids, float p",
            ("start",),
            _random_start_plan,
            _random_start_values,
            ("x",),
            ("start",),
        ),
        Operator(
            "pgd_step",
            "Tensor x, Tensor x_adv, Tensor grad, Tensor eps, Tensor alpha, Tensor? clip_min, Tensor? clip_max, "
            "Tensor? rows, Tensor? ids, float p, int topk=1",
            ("next", "nonfinite"),
            _pgd_step_plan,
            _pgd_step_values,
            ("x", "x_adv", "grad"),
            ("next",),
        ),
        Operator(
            "truncated_cross_entropy",
            "Tensor logits, Tensor target, Tensor? ids, float cut",
            ("loss", "grad", "right", "over"),
            _truncated_cross_entropy_plan,
            _truncated_cross_entropy_values,
            ("logits",),
        ),
        Operator(
            "margin_loss",
            "Tensor logits, Tensor target, Tensor? other, Tensor? ids, bool dlr=False",
            ("loss", "grad"),
            _margin_loss_plan,
            _margin_loss_values,
            ("logits",),
        ),
        Operator(
            "kl_divergence",
            "Tensor clean, Tensor adv, Tensor? ids, bool both=True",
            ("loss", "adv_grad", "clean_grad"),
            _kl_divergence_plan,
            _kl_divergence_values,
            ("adv", "clean"),
        ),
        Operator(
            "retire",
            "Tensor previous, Tensor current, Tensor? right, Tensor? over, Tensor? rows, Tensor? ids, "
            "Tensor(a!) result, Tensor(b!) stop, int step, bool last",
            ("rows", "ids", "live"),
            _retire_plan,
            _retire_values,
            ("result", "previous", "current"),
        ),
    )
}

LIBRARY = torch.library.Library("fastsal", "DEF")


def _define(operator: Operator) -> None:
    LIBRARY.define(operator.name + operator.schema)
    LIBRARY.define(f"{operator.name}.out{operator.out_schema}")

    def shape_function(*args: Any) -> Any:
        outputs = operator.outputs(*args)
        return outputs if len(outputs) > 1 else outputs[0]

    def out_shape_function(*args: Any, **outs: Tensor) -> None:
        operator.accept(operator.planned(operator.complete(args)), outs)

    torch.library.register_fake(f"fastsal::{operator.name}", shape_function, lib=LIBRARY)
    torch.library.register_fake(f"fastsal::{operator.name}.out", out_shape_function, lib=LIBRARY)
    # Not differentiable by contract: fastsal.functional wraps the losses. Falling through, rather than a missing
    # kernel, is what keeps inputs that require grad silent.
    LIBRARY.impl(operator.name, torch.library.fallthrough_kernel, "Autograd")
    LIBRARY.impl(f"{operator.name}.out", torch.library.fallthrough_kernel, "Autograd")


for _operator in OPERATORS.values():
    _define(_operator)
