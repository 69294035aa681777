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
from collections.abc import Callable
from typing import Any

import torch

from fastsal import reference
from fastsal.calls import implementation
from fastsal.operators import LIBRARY, OPERATORS, Operator

__all__ = ["bodies", "body_of", "candidates", "implementation", "missing"]

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
    backend = os.environ.get("FASTSAL_BACKEND") or "auto"
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
    return dict.fromkeys(OPERATORS, requested if requested in able else able[0])


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
