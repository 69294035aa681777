"""Which share of the machine's own rate of matrix products an attack reaches, and where the rest of its time goes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import fastsal
from benchmarks import marked, where
from benchmarks.alternation import alternate, median_ratio, ratio_with_quartiles, seconds_of
from benchmarks.test_attacks import ALPHA, EPS, NETS, SEED, STEPS, case

LIMIT = 25.0  # seconds of a contest after which no turn begins, but three
KINDS = {  # of operators, by parts of their names
    "convolutions, products": ("convolution", "conv2d", "addmm", "aten::mm", "linear"),
    "batch norm": ("batch_norm",),
    "pools, means": ("pool", "mean", "aten::sum"),
    "fastsal": ("fastsal::",),
    "copies": ("copy", "clone", "contiguous", "aten::to", "aten::fill", "zero"),
    "activations, sums": ("relu", "threshold", "aten::add", "aten::mul", "aten::div", "pad", "slice"),
}
AIMS = {"bf16": dict(zip(NETS, (0.55, 0.75, 0.90), strict=True))}  # shares of the machine's rate
SIZE = 2048  # of the square matrices whose product is the machine's own rate


class Operations(TorchDispatchMode):
    """Counts multiplications and additions of convolutions and matrix products, forward and backward.

    As torch's FlopCounterMode does, whose hooks do not go with ``autograd.grad``.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        self.total += 0 if count is None else count(*args, **(kwargs or {}), out_val=result)
        return result


def kinds_of_time(call: Callable[[], Any]) -> dict[str, float]:
    """Shares of the time of a call: of operators by kind, and of what is not inside any of these."""
    gpu = where.device().type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiled:
        total = seconds_of(call)
    shares = dict.fromkeys(KINDS, 0.0)
    for event in profiled.key_averages():
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), None)
        if kind is not None:
            shares[kind] += 1e-6 * (event.self_device_time_total if gpu else event.self_cpu_time_total) / total
    return {**shares, "the rest": max(0.0, 1 - sum(shares.values()))}


def rate(names: list[str], turns: int) -> str:
    native, why = where.native_bf16()
    gpu = where.device().type == "cuda"
    size = SIZE * (4 if gpu else 1)
    dtypes = {"fp32": torch.float32, **({"bf16": torch.bfloat16} if native else {})}
    rows, missed = [], list[str]()
    for name in names:
        model, x, y = case(name)
        for precision, dtype in dtypes.items():
            attack = fastsal.PGD(model, EPS, ALPHA, STEPS, precision=precision)
            generator = torch.Generator().manual_seed(0)
            a, b = (where.here(torch.rand(size, size, generator=generator).to(dtype)) for _ in range(2))
            calls = {"attack": partial(attack, x, y, seed=SEED), "product": partial(torch.mm, a, b, out=a.clone())}
            with Operations() as counted:
                once = {"attack": seconds_of(calls["attack"])}
            calls["product"]()
            once["product"] = seconds_of(calls["product"])
            operations = {"attack": counted.total, "product": 2 * size**3}
            seconds = alternate(calls, turns, LIMIT, once)
            per_operation = {key: [t / operations[key] for t in times] for key, times in seconds.items()}
            of_call = kinds_of_time(calls["attack"])
            speeds = (f"{1e-9 / sorted(per_operation[key])[len(per_operation[key]) // 2]:.0f}" for key in calls)
            share = ratio_with_quartiles(per_operation, "product", "attack")
            reached, aim = median_ratio(per_operation, "product", "attack"), AIMS.get(precision, {}).get(name, 0.0)
            missed += [f"{name}: {reached:.2f} ({aim:.2f})"] if reached < aim else []
            rows.append(
                [name, precision, f"{operations['attack'] / 1e9:.1f}", *speeds, share]
                + [f"{100 * part:.0f} %" for part in of_call.values()]
            )
            print("  ".join(rows[-1]), flush=True)
    heads = ("net", "precision", "GFLOP a call", "GFLOP/s", "of a product", "share", *KINDS, "the rest")
    parts = [
        f"PGD-{STEPS}, all levers on: operations of its forwards and backwards (convolutions "
        f"and matrix products alone) by the time of the whole call, beside the product of two {size}x{size} matrices "
        "of the same precision in the same run. *share*: median over turns (quartiles). To the right, where the time "
        "of one profiled call went; *the rest* is Python, autograd and dispatch"
        + (", while the device waits." if gpu else "."),
        marked.table(heads, rows, words=2),
    ]
    aims = f"Less than the share aimed at in bf16 (aim): {'; '.join(missed) or 'none'}."
    parts.append(aims if native else f"No bf16 here: {why}.")
    return "\n\n".join(parts)
