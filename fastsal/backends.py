"""The only place that binds operator bodies to devices.

A *body* takes the arguments of its operator and then the outputs that the contract allocated. It returns 0, or 1 when
it met a value it must refuse; then the contract's value check says which. Bodies:

- ``reference``: plain torch, any device (:mod:`fastsal.reference`);
- ``cpp``: the C++ extension, CPU (``csrc/cpu``);
- ``cuda``: the CUDA part of the extension, NVIDIA devices, where it was built (``csrc/cuda``);
- ``triton``: NVIDIA and AMD devices (``kernels/``, installed as ``fastsal.kernels``).

A CPU runs ``cpp``, else ``reference``; a GPU runs ``cuda``, else ``triton``, else ``reference``.
``FASTSAL_BACKEND`` names the one to take instead, on the devices that it is for; ``fastsal doctor`` shows what runs
where.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastsal import reference
from fastsal.operators import LIBRARY, OPERATORS, Operator, memory_format

Body = Callable[..., int]

# The extension is bound under private operators, so that Python checks stand in front of it once for every caller.
_COMPILED = torch.library.Library("fastsal_body", "DEF")
for _operator in OPERATORS.values():
    _COMPILED.define(_operator.name + _operator.body_schema)

EXTENSION: Any = None
EXTENSION_MISSING = ""
try:
    EXTENSION = importlib.import_module("fastsal._C")
except ImportError as error:
    EXTENSION_MISSING = str(error)

CHOICES = ("auto", "cpp", "cuda", "triton", "reference")


def missing(body: str) -> str:
    """Why a body cannot run in this installation; empty where it can, given a device."""
    if body in ("cpp", "cuda") and EXTENSION is None:
        return f"the C++ extension is not there: {EXTENSION_MISSING}"
    if body == "cuda" and not EXTENSION.cuda_targets():
        return "the extension was built without CUDA sources"
    if body == "triton" and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return ""


def _requested() -> str:
    backend = os.environ.get("FASTSAL_BACKEND", "auto")
    if backend not in CHOICES:
        raise ValueError(f"FASTSAL_BACKEND: expected {', '.join(map(repr, CHOICES))}, got {backend!r}")
    if backend != "auto" and missing(backend):
        raise ImportError(f"FASTSAL_BACKEND={backend}, but {missing(backend)}")
    return backend


def candidates(device_type: str) -> tuple[str, ...]:
    """The bodies that a device can run, the quickest first."""
    return {"cpu": ("cpp", "reference"), "cuda": ("cuda", "triton", "reference")}.get(device_type, ("reference",))


def bodies(device_type: str) -> dict[str, str]:
    """Name of the body that each operator runs on `device_type`."""
    able = [body for body in candidates(device_type) if not missing(body)]
    requested = _requested()
    name = requested if requested in able else able[0]
    return {operator: name for operator in OPERATORS}


def _reference_body(operator: Operator) -> Body:
    compute = getattr(reference, operator.name)
    taken = len(operator.argument_names)

    def body(*operands: Any) -> int:
        with torch.no_grad():  # operators are not differentiable: plain torch must not leave a graph behind
            ids = operands[operator.argument_names.index("ids")]
            values = compute(*operands[:taken])
            for name, out, value in zip(operator.returns, operands[taken:], values, strict=True):
                if name in operator.gathered and ids is not None:
                    value = torch.where((ids < 0).view(-1, *[1] * (out.dim() - 1)), out, value)
                out.copy_(value)
        return 0

    return body


def _compiled_body(operator: Operator) -> Body:
    packet: Body = getattr(torch.ops.fastsal_body, operator.name).default
    return packet


def _triton_body(operator: Operator) -> Body:
    def body(*operands: Any) -> int:  # triton is imported with the first call: it takes a second
        importlib.import_module(f"fastsal.kernels.{operator.name}").launch(*operands)
        return 0

    return body


def body_of(operator: str, name: str) -> Body:
    """The body of `operator` called `name`, for `fastsal doctor`, tests and benchmarks."""
    make = {"cpp": _compiled_body, "cuda": _compiled_body, "triton": _triton_body, "reference": _reference_body}[name]
    return make(OPERATORS[operator])


def _dense(arguments: Iterable[Any], operator: Operator) -> list[Any]:
    """Operands in one memory format, that of the first of ``operator.dense``; index vectors contiguous."""
    operands = dict(zip(operator.argument_names, arguments, strict=True))
    chosen = memory_format(operands[operator.dense[0]])
    for name, operand in operands.items():
        if isinstance(operand, Tensor) and name not in ("result", "stop"):  # those are written in place
            target = chosen if name in operator.dense else torch.contiguous_format
            if not operand.is_contiguous(memory_format=target):
                operands[name] = operand.contiguous(memory_format=target)
    return list(operands.values())


def _apart(operator: Operator, args: Sequence[Any], outs: Sequence[Tensor]) -> None:
    """Refuses memory for an output that overlaps an argument (rows are gathered, so one would overwrite another) or
    another output."""
    taken = [(n, a) for n, a in zip(operator.argument_names, args, strict=True) if isinstance(a, Tensor)]
    for name, out in zip(operator.out_names, outs, strict=True):
        for label, other in taken:
            if _overlap(out, other):
                raise ValueError(
                    f"fastsal.{operator.name}: {name}: expected memory apart from that of {label}, got the same"
                )
        taken.append((name, out))


def _overlap(a: Tensor, b: Tensor) -> bool:
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr() or not a.numel() or not b.numel():
        return False
    starts = [t.storage_offset() * t.element_size() for t in (a, b)]
    ends = [
        start + (1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True))) * t.element_size()
        for start, t in zip(starts, (a, b), strict=True)
    ]
    return starts[0] < ends[1] and starts[1] < ends[0]


def implementation(operator: Operator, body: Body, check_values: bool) -> Callable[..., Any]:
    """The operator on one device: checks, allocation, body. `check_values`: look before, not after, the body runs."""
    mutated = [i for i, text in enumerate(operator.arguments.split(", ")) if "!)" in text]

    def compute(args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
        if check_values:
            operator.values(*args)
        if body(*_dense(args, operator), *outputs):
            operator.values(*args)
            raise RuntimeError(f"fastsal.{operator.name}: its body refused a value that the contract accepts")
        for i in mutated:
            torch.autograd.graph.increment_version(args[i])

    def run(*given: Any, **outs: Tensor) -> Any:
        args = operator.complete(given)
        if outs:
            outputs = operator.accept(args, outs)
            _apart(operator, args, outputs)
            compute(args, outputs)
            torch.autograd.graph.increment_version(outputs)
            return None
        outputs = operator.outputs(*args)
        compute(args, outputs)
        return outputs if len(outputs) > 1 else outputs[0]

    return run


def _say_slow_path() -> None:
    warnings.warn(
        "fastsal: the C++ extension is not built, so its operators run as plain torch (correct, slower). "
        f"Reason: {EXTENSION_MISSING}. To build it: pip install --no-build-isolation -e . from the repository",
        stacklevel=2,
    )


def _bind() -> None:
    if EXTENSION is None and _requested() == "auto":
        _say_slow_path()
    for key, device_type in (("CPU", "cpu"), ("CUDA", "cuda"), ("CompositeExplicitAutograd", "")):
        names = bodies(device_type)
        for operator in OPERATORS.values():
            name = names[operator.name]
            # On an accelerator values are looked at once per attack call, never per operator.
            body = implementation(operator, body_of(operator.name, name), name == "reference" and device_type == "cpu")
            LIBRARY.impl(operator.name, body, key)
            LIBRARY.impl(f"{operator.name}.out", body, key)


_bind()
