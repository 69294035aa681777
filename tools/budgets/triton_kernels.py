"""The Triton kernels as their launchers launch them, compiled ahead of time: their rows of the table."""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsal import backends
from fastsal.operators import OPERATORS
from tools.budgets import code
from tools.budgets.budget import Budget

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
COUNT = 4  # rows of a call
CIFAR, IMAGENET, ODD = (3, 32, 32), (3, 224, 224), (3, 33, 31)
SHORT = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
NORMS = {math.inf: "Linf", 2.0: "L2", 1.0: "L1"}

# Kernels that hold no row on chip, and those that do so only where it is short enough.
STREAMING = ("linf_step", "linf_start", "noise_mass", "l1_segment", "l2_segment", "retire")
HOLDS_UP_TO = {"scaled_start": 4096, "margin": 8192}

MOVE = re.compile(r"tt\.(load|store) (%[\w$.]+)[^\n]*?: tensor<((?:\d+x)+)!tt\.ptr<(\w+)>")
BYTES = {"f32": 4, "f64": 8, "bf16": 2, "f16": 2}


class Call(NamedTuple):
    """One call of an operator, and what it shows in the table."""

    operator: str
    label: str
    row: int  # elements
    args: tuple[Any, ...]


def missing() -> str:
    """Why there is nothing to measure; empty where there is."""
    return "" if importlib.util.find_spec("triton") else "triton is not installed"


def version() -> str:
    import triton

    return f"triton {triton.__version__}"


def _image(shape: tuple[int, ...], last: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    images = torch.zeros(COUNT, *shape, dtype=dtype)
    return images.contiguous(memory_format=torch.channels_last) if last else images


def _rows(shape: tuple[int, ...], last: bool) -> str:
    return "x".join(map(str, shape)) + (" channels last" if last else "")


def image_calls() -> Iterator[Call]:
    """Steps, starts and retire, of rows that fit on chip and of rows that do not."""
    one, unit = torch.full((1,), 0.1), (torch.zeros(1), torch.ones(1))
    each = (torch.zeros(3), torch.ones(3))
    sizes = ((CIFAR, False), (IMAGENET, False), (CIFAR, True), (IMAGENET, True), (ODD, False))
    for shape, last in sizes:
        x, row, rows = _image(shape, last), math.prod(shape), _rows(shape, last)
        box = each if last else unit
        for p, norm in NORMS.items():
            for grad in (torch.float32, torch.bfloat16) if shape != ODD else (torch.float32,):
                slope = x.to(grad)
                args = (x, x, slope, one, one, *box, None, None, p, 1)
                yield Call("pgd_step", f"{norm}, {rows}, fp32, grad {SHORT[grad]}", row, args)
            args = (x, one, torch.tensor(3), None, *box, None, p)
            yield Call("random_start", f"{norm}, {rows}, fp32", row, args)
        if not last:
            over, stop = torch.zeros(COUNT, dtype=torch.bool), torch.zeros(COUNT, dtype=torch.int64)
            args = (x, x, None, over, None, None, x, stop, 1, False)
            yield Call("retire", f"{rows}, fp32", row, args)


def loss_calls() -> Iterator[Call]:
    """Losses of short rows, of rows on chip, of rows longer than that, and of a length that forbids wide accesses."""
    for classes in (10, 1000, 100_000, 99_999):
        for dtype in (torch.float32, torch.bfloat16):
            logits, target = torch.zeros(COUNT, classes, dtype=dtype), torch.zeros(COUNT, dtype=torch.int64)
            label = f"{classes} classes, {SHORT[dtype]}"
            yield Call("truncated_cross_entropy", label, classes, (logits, target, None, math.inf))
            yield Call("kl_divergence", f"{label}, both gradients", classes, (logits, logits, None, True))
            yield Call("margin_loss", f"CW, {label}", classes, (logits, target, None, None, False))
            yield Call("margin_loss", f"DLR, {label}", classes, (logits, target, None, None, True))


def kind_of(kernel: str, row: int) -> str:
    streams = kernel in STREAMING or kernel.endswith("_in_chunks") or row > HOLDS_UP_TO.get(kernel, row)
    return "streaming" if streams else "row on chip"


def due(ttir: str, name: str, threads: int) -> int:
    """How many 128-bit accesses a thread makes when it moves its share of each tile of a row 16 bytes at a time; a
    share below 16 bytes moves in less. Bounds by channel are no rows."""
    comes_from = dict(re.findall(r"(%[\w$.]+) = tt\.(?:addptr|splat|broadcast|expand_dims) (%[\w$.]+)", ttir))
    total = 0
    for what, pointer, shape, element in MOVE.findall(ttir):
        while pointer in comes_from:
            pointer = comes_from[pointer]
        if what == name and element in BYTES and not pointer.startswith("%clip_"):
            elements = math.prod(int(n) for n in shape.split("x") if n)
            total += elements * BYTES[element] // threads // 16
    return total


def _measured(launch: Any, call: Call, target: str) -> Budget:
    compiled, metadata = launch.compiled, launch.compiled.metadata
    asm = compiled.asm
    threads = metadata.num_warps * metadata.warp_size
    if target.startswith("sm_"):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
            cubin.write(asm["cubin"])
            cubin.flush()
            (usage,) = code.usages(code.tool("cuobjdump", "--dump-resource-usage", cubin.name)).values()
            (text,) = code.by_kernel(code.tool("nvdisasm", "-c", cubin.name)).values()
        seen, source, rules = code.sass(text), asm["ptx"], (code.FUSED_PTX, code.DIVIDES_PTX)
    else:
        usage = code.amd_usage(asm["amdgcn"])
        seen, source, rules = code.gcn(asm["amdgcn"]), asm["llir"], (code.FUSED_LLVM, code.DIVIDES_LLVM)
    made, divided = code.fused_by_rule(len(rules[0].findall(source)), bool(rules[1].search(source)), seen)
    return Budget(
        backend="triton",
        kernel=launch.kernel,
        call=call.label,
        aligned=call.row % 8 == 0,
        target=target,
        kind=kind_of(launch.kernel, call.row),
        threads=threads,
        registers=usage.registers,
        spills=max(seen.local, usage.spills),
        stack=usage.stack,
        shared=metadata.shared,
        wide_loads=seen.wide_loads,
        wide_stores=seen.wide_stores,
        loads_due=due(asm["ttir"], "load", threads),
        stores_due=due(asm["ttir"], "store", threads),
        fused=made,
        fused_in_division=divided,
    )


def _budgets_of(number: int) -> list[Budget]:
    from tools.budgets.recorder import recording

    call, found = calls()[number], []
    outputs = OPERATORS[call.operator].outputs(*call.args)
    body = backends.body_of(call.operator, "triton")
    for target in TARGETS:
        with recording(target) as launches:
            body(*call.args, *outputs)
        for at, launch in enumerate(launches):
            phase = f", launch {at + 1} of {len(launches)}" if len(launches) > 1 else ""
            found.append(_measured(launch, call._replace(label=call.label + phase), target))
    return found


def calls() -> list[Call]:
    return [*image_calls(), *loss_calls()]


def budgets(jobs: int) -> list[Budget]:
    """One row per launch and target, in the order of the calls, each compiled in one of `jobs` processes."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        return [budget for found in pool.map(_budgets_of, range(len(calls()))) for budget in found]
