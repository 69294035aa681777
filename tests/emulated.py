"""Runs CUDA operators on the CPU: `emulated(NAME, *args, *outs)` calls launch_NAME of csrc/cuda with the tensors'
pointers, on the emulator in tests/emulator.

The fields of an operator's Call struct are read from its header and filled by name: a tensor's pointer (`NAME` or
`NAME_out`), a tensor's dtype (`NAME_dtype`), a number among the arguments, or what `SIZES` derives from the shapes.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fastsal.backends import implementation
from fastsal.operators import OPERATORS

HERE = Path(__file__).parent
CSRC = HERE.parent / "csrc"
HEADER = HERE / "emulator" / "cuda_on_cpu.h"
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra"]
FLAGS += ["-Werror", "-Wno-unknown-pragmas"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # the enum of csrc/cuda/call.h
SCALARS = {"int64_t": ctypes.c_int64, "double": ctypes.c_double, "bool": ctypes.c_bool, "Dtype": ctypes.c_int32}

ENTRY = """extern "C" const char* run(const fastsal::{call}* call, uint64_t seed, unsigned block_threads,
                           emulator::Watched* watched, size_t watched_count, int64_t grid_limit) {{
  emulator::machine().grid_limit = grid_limit;
  return emulator::guarded(seed, block_threads, watched, watched_count,
                           [&] {{ fastsal::launch_{name}(*call, nullptr); }});
}}
extern "C" int64_t launches() {{ return int64_t(emulator::machine().launches.size()); }}
"""
MEMORY_ENTRY = """extern "C" int64_t {memory}_bytes(const fastsal::{call}* call, unsigned block_threads) {{
  emulator::machine().block_threads = block_threads;
  return fastsal::{memory}_bytes(*call);
}}
"""
# Memory that an operator asks for besides its outputs: fresh, with any content; or zero before and after every call.
MEMORIES = {"workspace": 0xFF, "tickets": 0}


class EmulatorError(RuntimeError):
    """What the emulator found wrong with a kernel."""


def _row_size(x: Tensor) -> int:
    return math.prod(x.shape[1:])


def _layout(x: Tensor) -> dict[str, int]:
    """How the elements of a row lie in memory."""
    size, channels = _row_size(x), x.shape[1] if x.dim() > 1 else 1
    places = size // channels if channels else 0
    last = x.dim() > 2 and channels > 1 and places > 1 and x.stride(1) == 1
    return {"size": size, "channels": channels, "places": places, "channels_last": last}


def _logits(logits: str, samples: str) -> Callable[[dict[str, Any]], dict[str, int]]:
    return lambda v: {"count": v[logits].shape[0], "samples": v[samples].shape[0], "classes": v[logits].shape[1]}


# Per operator: the numbers of its Call struct that no argument has, from its arguments and outputs by name.
SIZES: dict[str, Callable[[dict[str, Any]], dict[str, int]]] = {
    "retire": lambda v: {
        "count": v["current"].shape[0],
        "points": v["previous"].shape[0],
        "samples": v["result"].shape[0],
        "size": _row_size(v["current"]),
    },
    "random_start": lambda v: {
        "count": v["start_out"].shape[0],
        "samples": v["x"].shape[0],
        **_layout(v["x"]),
    },
    "pgd_step": lambda v: {
        "count": v["next_out"].shape[0],
        "points": v["x_adv"].shape[0],
        "samples": v["x"].shape[0],
        **_layout(v["x"]),
    },
    "truncated_cross_entropy": _logits("logits", "target"),
    "margin_loss": _logits("logits", "target"),
    "kl_divergence": _logits("adv", "clean"),
}


def compiler() -> str:
    """The C++ compiler; skips where it, or the sources, are not there."""
    if not (CSRC / "cuda").is_dir():
        pytest.skip("tested without the repository around it: there is no csrc/cuda beside tests/")
    found = next(filter(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")), None)
    if found is None:
        pytest.skip("no C++ compiler: none of $CXX, c++, g++ and clang++ is on the PATH")
    return found


def build(source: str, *extra: str, suffix: str = ".so") -> Path:
    """`source` compiled on the emulator; kept in the temporary directory under the hash of all that goes into it."""
    tool = compiler()
    files = [HEADER, *sorted(CSRC.glob("cuda/*")), *sorted(CSRC.glob("rows/*"))]
    version = subprocess.run([tool, "--version"], capture_output=True, check=True).stdout
    # else g++ makes the shared memory of two libraries in one process one and the same
    apart = [] if b"clang" in version else ["-fno-gnu-unique"]
    flags = [*FLAGS, *apart, *(["-shared"] if suffix == ".so" else []), *extra]
    content = [source.encode(), " ".join([tool, *flags]).encode(), *(file.read_bytes() for file in files)]
    key = hashlib.sha256(b"\0".join([version, *content])).hexdigest()[:24]
    into = Path(tempfile.gettempdir()) / f"fastsal-emulator-{os.getuid()}"
    into.mkdir(mode=0o700, exist_ok=True)
    built = into / f"{key}{suffix}"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=into) as work:
            fresh = Path(work) / built.name
            command = [tool, *flags, "-include", str(HEADER), "-I", str(CSRC), "-x", "c++", "-", "-o", str(fresh)]
            outcome = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
            assert outcome.returncode == 0, outcome.stderr
            fresh.replace(built)  # at once, in case another test process builds the same
    return built


def call_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_")) + "Call"


def source(name: str) -> str:
    """The operator's host code and kernels, with functions that ctypes can call."""
    fields = [field for field, _ in call_struct(name)._fields_]
    parts = [f'#include "cuda/{path.name}"\n' for path in sorted((CSRC / "cuda").glob(f"{name}*.cu"))]
    memories = [MEMORY_ENTRY.format(memory=memory, call=call_name(name)) for memory in MEMORIES if memory in fields]
    return "".join([*parts, ENTRY.format(name=name, call=call_name(name)), *memories])


@functools.cache
def _library(name: str) -> ctypes.CDLL:
    compiler()  # skips before the sources are looked at
    return opened(build(source(name)))


def opened(path: Path) -> ctypes.CDLL:
    """A compiled source(), ready to be called."""
    library = ctypes.CDLL(str(path))
    library.run.restype = ctypes.c_char_p
    numbers = [ctypes.c_uint64, ctypes.c_uint, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]
    library.run.argtypes = [ctypes.c_void_p, *numbers]
    for count in ("launches", *(f"{memory}_bytes" for memory in MEMORIES)):
        if hasattr(library, count):
            getattr(library, count).restype = ctypes.c_int64
    return library


@functools.cache
def call_struct(name: str) -> type[ctypes.Structure]:
    """The Call struct of an operator, as its header declares it."""
    text = re.sub(r"//.*", "", (CSRC / "cuda" / f"{name}.h").read_text())
    body = re.search(rf"struct {call_name(name)} {{(.*?)}};", text, re.DOTALL)
    assert body, f"no struct {call_name(name)} in {name}.h"
    fields: list[tuple[str, Any]] = []
    for declaration in filter(None, (part.strip() for part in body[1].split(";"))):
        kind, names = re.fullmatch(r"((?:const )?\w+\s*\*?)\s*([\w, ]+)", declaration).groups()  # type: ignore[union-attr]
        ctype = ctypes.c_void_p if "*" in kind else SCALARS[kind.strip()]
        fields += [(field.strip(), ctype) for field in names.split(",")]
    return type(call_name(name), (ctypes.Structure,), {"_fields_": fields})


class Watched(ctypes.Structure):
    """An operand's memory; after the call, how many bytes of it the kernels read and wrote, in how many accesses."""

    _fields_ = (
        ("begin", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("loaded", ctypes.c_int64),
        ("stored", ctypes.c_int64),
        ("accesses", ctypes.c_int64),
    )


class Traffic(NamedTuple):
    loaded: int  # bytes
    stored: int
    accesses: int = 0


def fill(name: str, values: dict[str, Any]) -> ctypes.Structure:
    """The Call of an operator for its arguments and outputs by name."""
    sizes = SIZES[name](values)
    call = call_struct(name)()
    for field, ctype in call._fields_:
        value = values.get(field)
        if field in MEMORIES:
            continue
        if ctype is ctypes.c_void_p:
            assert field in values, f"{field}: no argument or output of {name}"
            setattr(call, field, None if value is None else value.data_ptr())
        elif field.endswith("_dtype"):
            setattr(call, field, DTYPES.index(values[field.removesuffix("_dtype")].dtype))
        elif field.endswith("_count"):
            counted = values[field.removesuffix("_count")]
            setattr(call, field, 0 if counted is None else counted.shape[0])
        else:
            setattr(call, field, sizes[field] if field in sizes else values[field])
    return call


def memory_sizes(name: str, call: ctypes.Structure, threads: int, library: ctypes.CDLL | None = None) -> dict[str, int]:
    """Bytes of each of MEMORIES that a call asks for, with at most `threads` threads in a block."""
    library = library or _library(name)
    asked = [memory for memory in MEMORIES if hasattr(call, memory)]
    return {memory: int(getattr(library, f"{memory}_bytes")(ctypes.byref(call), threads)) for memory in asked}


_traffic: dict[str, dict[str, Traffic]] = {}


def emulated(
    name: str,
    *operands: Any,
    seed: int = 0,
    threads: int = 0,
    grid_limit: int = 0,
    library: ctypes.CDLL | None = None,
) -> int:
    """A body: the arguments of the operator, then its outputs. `threads`: at most so many in a block (0: the usual);
    `grid_limit`: at most so many blocks in one dimension of a grid; `library`: another build of source(name)."""
    library, operator = library or _library(name), OPERATORS[name]
    values = dict(zip((*operator.argument_names, *operator.out_names), operands, strict=True))
    call = fill(name, values)
    for memory, size in memory_sizes(name, call, threads, library).items():
        values[memory] = torch.full((size,), MEMORIES[memory], dtype=torch.uint8)
        setattr(call, memory, values[memory].data_ptr())
    tensors = {label: value for label, value in values.items() if isinstance(value, Tensor)}
    watched = (Watched * len(tensors))(
        *((t.data_ptr(), t.numel() * t.element_size(), 0, 0, 0) for t in tensors.values())
    )
    message = library.run(ctypes.byref(call), seed, threads, watched, len(tensors), grid_limit)
    if message:
        raise EmulatorError(message.decode())
    if "tickets" in values:
        assert not values["tickets"].any(), f"{name}: its tickets are not zero again"
    _traffic[name] = {label: Traffic(w.loaded, w.stored, w.accesses) for label, w in zip(tensors, watched, strict=True)}
    return 0


def traffic(name: str) -> dict[str, Traffic]:
    """Bytes that the last call of `name` read and wrote, per operand; only what read() and write() moved."""
    return _traffic[name]


def launches(name: str) -> int:
    """How many kernels the last call of `name` launched."""
    return int(_library(name).launches())


def run_emulated(name: str, *args: Any, **how: Any) -> tuple[Tensor, ...]:
    """The operator behind the contract's own checks, computed by its emulated CUDA body; always a tuple."""
    body = functools.partial(emulated, name, **how)
    out = implementation(OPERATORS[name], body, check_values=False)(*args)
    return out if isinstance(out, tuple) else (out,)
