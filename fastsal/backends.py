"""The only place that binds operator bodies to devices.

A *body* takes the arguments of its operator and then the outputs that the contract allocated. It returns 0, or 1 when
it met a value it must refuse; then the contract's value check says which. Bodies:

- ``reference``: plain torch, any device (:mod:`fastsal.reference`);
- ``cpp``: the C++ extension, CPU (``csrc/cpu``).

``FASTSAL_BACKEND=reference`` keeps every operator on plain torch; ``fastsal doctor`` shows what runs where.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fastsal import reference
from fastsal.operators import LIBRARY, OPERATORS, Operator, memory_format

Body = Callable[..., int]

# The extension is bound under private operators, so that Python checks stand in front of it once for every caller.
_CPP = torch.library.Library("fastsal_cpu", "DEF")
for _operator in OPERATORS.values():
    _CPP.define(_operator.name + _operator.body_schema)

EXTENSION: Any = None
EXTENSION_MISSING = ""
try:
    EXTENSION = importlib.import_module("fastsal._C")
except ImportError as error:
    EXTENSION_MISSING = str(error)


def _requested() -> str:
    backend = os.environ.get("FASTSAL_BACKEND", "auto")
    if backend not in ("auto", "cpp", "reference"):
        raise ValueError(f"FASTSAL_BACKEND: expected 'auto', 'cpp' or 'reference', got {backend!r}")
    if backend == "cpp" and EXTENSION is None:
        raise ImportError(f"FASTSAL_BACKEND=cpp, but the C++ extension is not there: {EXTENSION_MISSING}")
    return backend


def _reference_body(operator: Operator) -> Body:
    compute = getattr(reference, operator.name)
    taken = len(operator.argument_names)

    def body(*operands: Any) -> int:
        with torch.no_grad():  # operators are not differentiable: plain torch must not leave a graph behind
            for out, value in zip(operands[taken:], compute(*operands[:taken]), strict=True):
                out.copy_(value)
        return 0

    return body


def _cpp_body(operator: Operator) -> Body:
    packet: Body = getattr(torch.ops.fastsal_cpu, operator.name).default
    return packet


def bodies(device_type: str) -> dict[str, str]:
    """Name of the body that each operator runs on `device_type`."""
    compiled = _requested() != "reference" and EXTENSION is not None
    name = "cpp" if compiled and device_type == "cpu" else "reference"
    return {operator: name for operator in OPERATORS}


def body_of(operator: str, name: str) -> Body:
    """The body of `operator` called `name`, for `fastsal doctor`, tests and benchmarks."""
    return {"cpp": _cpp_body, "reference": _reference_body}[name](OPERATORS[operator])


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


def implementation(operator: Operator, body: Body, check_values: bool) -> Callable[..., Any]:
    """The operator on one device: checks, allocation, body. `check_values`: look before, not after, the body runs."""
    mutated = [i for i, text in enumerate(operator.arguments.split(", ")) if "!)" in text]

    def run(*args: Any) -> Any:
        outputs = operator.outputs(*args)
        if check_values:
            operator.values(*args)
        if body(*_dense(args, operator), *outputs):
            operator.values(*args)
            raise RuntimeError(f"fastsal.{operator.name}: its body refused a value that the contract accepts")
        for i in mutated:
            torch.autograd.graph.increment_version(args[i])
        return outputs if len(outputs) > 1 else outputs[0]

    return run


def _say_slow_path() -> None:
    warnings.warn(
        "fastsal: the C++ extension is not built, so its operators run as plain torch (correct, slower). "
        f"Reason: {EXTENSION_MISSING}. To build it: pip install --no-build-isolation -e . from the repository",
        stacklevel=2,
    )


def _bind() -> None:
    requested = _requested()
    if EXTENSION is None and requested == "auto":
        _say_slow_path()
    on_cpu = bodies("cpu")
    for operator in OPERATORS.values():
        name = on_cpu[operator.name]
        LIBRARY.impl(
            operator.name,
            implementation(operator, body_of(operator.name, name), check_values=name == "reference"),
            "CPU",
        )
        # Any other device: plain torch. Values are looked at once per attack call, never per operator.
        LIBRARY.impl(
            operator.name,
            implementation(operator, body_of(operator.name, "reference"), check_values=False),
            "CompositeExplicitAutograd",
        )


_bind()
