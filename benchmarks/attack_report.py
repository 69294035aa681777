"""What each lever of the attack is worth, and which share of the machine's speed is reached.

``python -m benchmarks.attack_report`` prints markdown; ``--write FILE`` replaces the marked sections of that file;
``--part levers`` or ``--part rate`` makes one of the two, ``--net TEXT`` some of the nets, ``--turns 3`` is quick.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import fastsal
from benchmarks import marked, plain_attack, test_sense_attack
from benchmarks.alternation import (
    TURNS,
    Seconds,
    alternate,
    machine,
    median_ratio,
    ratio_with_quartiles,
    seconds_of,
)
from benchmarks.test_attacks import ALPHA, EPS, NETS, SEED, STEPS, case
from fastsal import Levers
from fastsal.levers import OFF
from fastsal.precision import bf16_pays

LIMIT = 25.0  # seconds of a contest after which no turn begins, but three
NATIVE, WHY_BF16 = bf16_pays("cpu")
SENSE_CASE = "SmallCNN mid-training, SENSE"
SMALL, RESNET, PREACT = NETS
LOOP_STEPS = 2  # of the hand-written loops, whose steps are all alike


@dataclass(frozen=True)
class Setting:
    """One way to run an attack."""

    levers: Levers
    bf16: bool = False
    compile: bool = False

    @property
    def options(self) -> dict[str, Any]:
        return {"fast": self.levers, "precision": "bf16" if self.bf16 else "fp32", "compile": self.compile}

    def check(self, notes: dict[str, str]) -> None:
        """What is on, by the account of the attack. There may be no batch norm to fold."""
        for name, on in (
            ("channels_last", self.levers.channels_last),
            ("fold_batch_norm", self.levers.fold_batch_norm and notes["fold_batch_norm"] != "off: no batch norm"),
            ("compile", self.compile),
        ):
            assert notes[name].startswith("on") == on, (name, on, notes[name])
        assert notes["precision"].startswith("bf16" if self.bf16 else "fp32"), notes["precision"]


NONE = Setting(OFF)
WHOLE = Setting(Levers(), bf16=NATIVE)  # as the attack runs here by default


@dataclass(frozen=True)
class Row:
    """A lever in a contest: which contender has it and which one has not, alone and among the others."""

    lever: str
    case: str
    alone: tuple[Any, Any] | None  # without it, with it; None: not measured
    whole: tuple[Any, Any]
    on: bool  # by default


# Written before anything was measured on the machine of the table. How many times as fast the lever makes the call.
PREDICTED = {
    ("live rows, exact", SENSE_CASE): "1.6",
    ("live rows, buckets", SENSE_CASE): "1.45",
    ("channels_last", SMALL): "1.38",
    ("channels_last", RESNET): "1.17",
    ("channels_last", PREACT): "1.05",
    ("channels_last", SENSE_CASE): "1.38",
    ("folded batch norm", RESNET): "1.1 to 1.2",
    ("folded batch norm", PREACT): "1.01",
    ("bf16", SMALL): "1.62",
    ("bf16", RESNET): "1.72",
    ("bf16", PREACT): "2.0",
    ("compile", SMALL): "0.80",
    ("compile", RESNET): "1.16",
    ("compile", PREACT): "1.0 to 1.05",
    ("CUDA graphs", "all"): "launches alone",
    ("no weight gradients", SMALL): "1.4 to 1.5",
    ("no weight gradients", RESNET): "1.4 to 1.5",
    ("no weight gradients", PREACT): "1.5",
    ("last forward without graph", SENSE_CASE): "1.00 to 1.02",
}
WHY = {
    "live rows, exact": "on a CPU the host knows the number of live rows for nothing, so the batch holds no others.",
    "live rows, buckets": "for accelerators and compiled models, where shapes must repeat and a look at the number of "
    "live rows waits; on a CPU the exact strategy takes its place.",
    "channels_last": "convolutions take it as it is, without reordering what they read and write.",
    "folded batch norm": "two passes fewer over every activation that it follows, forward and backward; the first step "
    "of a call still runs it, since that forward is watched to find the pairs.",
    "bf16": "half the bytes and, where the processor has it, twice the products per instruction; where it has not, "
    '`precision="auto"` stays in fp32.',
    "compile": "it takes a minute or more for each shape when it first comes, so it must be asked for.",
    "CUDA graphs": "not measured yet, so it must be asked for.",
    "no weight gradients": "of the three products of a layer in a training step an attack needs two. The parameters "
    "are frozen, so nothing else is computed; there is no switch. In hand-written loops, in the whole: channels last.",
    "last forward without graph": "it costs no code, and saves the memory of one graph; there is no switch. In "
    "hand-written loops, in the whole: channels last.",
}


# --------------------------------------------------------------------------------------------- contests


def check(calls: Mapping[Any, Callable[..., Any]], x: Tensor, radius: float, most: float) -> dict[Any, float]:
    """All of the fp32 calls end at the same points but for signs of small gradients; seconds that each took.

    What an attack was asked to have on is on.
    """
    once, first = {}, None
    for key, call in calls.items():
        begin = time.perf_counter()
        given = call(return_info=True) if isinstance(key, Setting) else call()
        once[key] = time.perf_counter() - begin
        if isinstance(key, Setting):
            key.check(given[1].levers)
        given = given[0] if isinstance(given, tuple) else given
        assert float((given - x).abs().max()) <= radius + 1e-6, key
        if isinstance(key, Setting) and key.bf16:
            continue
        first = given if first is None else first
        assert float(((given - first).abs() > 1e-6).float().mean()) <= most, key
    return once


def raced(calls: Mapping[Any, Callable[..., Any]], x: Tensor, radius: float, most: float, turns: int) -> Seconds:
    once = check(calls, x, radius, most)
    again = {key: seconds_of(calls[key]) if isinstance(key, Setting) and key.compile else t for key, t in once.items()}
    return alternate(calls, turns, LIMIT, again)


def with_compiler() -> bool:
    return any(map(shutil.which, ("g++", "clang++", "c++")))


def switches(name: str) -> Iterator[Row]:
    """The levers that have a switch and may matter to PGD on a net. The number of live rows never changes there."""

    def switched(lever: str, on: bool, **levers: bool) -> Row:
        with_it = replace(NONE, levers=replace(OFF, **levers))
        without = replace(WHOLE, levers=replace(WHOLE.levers, **dict.fromkeys(levers, False)))
        return Row(lever, name, (NONE, with_it), (without, WHOLE), on)

    yield switched("channels_last", Levers().channels_last, channels_last=True)
    if name != SMALL:  # which has no batch norm
        yield switched("folded batch norm", Levers().fold_batch_norm, fold_batch_norm=True)
    if NATIVE:
        yield Row("bf16", name, (NONE, replace(NONE, bf16=True)), (replace(WHOLE, bf16=False), WHOLE), True)
    if with_compiler():
        alone = None if name == PREACT else (NONE, replace(NONE, compile=True))  # it would take minutes
        yield Row("compile", name, alone, (WHOLE, replace(WHOLE, compile=True)), False)


def shrunk(setting: Setting, how: str) -> Setting:
    return replace(setting, levers=replace(setting.levers, live_rows=how))


def sense_switches() -> Iterator[Row]:
    whole_batch = shrunk(WHOLE, "off")
    for how, on in (("exact", True), ("buckets", False)):
        alone, whole = shrunk(NONE, how), shrunk(WHOLE, how)
        yield Row(f"live rows, {how}", SENSE_CASE, (NONE, alone), (whole_batch, whole), on)
    exact = shrunk(WHOLE, "exact")
    without = replace(exact, levers=replace(exact.levers, channels_last=False))
    with_it = replace(NONE, levers=replace(OFF, channels_last=True))
    yield Row("channels_last", SENSE_CASE, (NONE, with_it), (without, exact), Levers().channels_last)


def settings_of(rows: list[Row]) -> list[Setting]:
    return list(dict.fromkeys(setting for row in rows for setting in (*(row.alone or ()), *row.whole)))


def channels_last(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    return copy.deepcopy(model).to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)


def pgd_levers(name: str, turns: int) -> list[list[str]]:
    """Table rows of one net."""
    model, x, y = case(name)
    rows = list(switches(name))

    def ours(setting: Setting) -> Callable[..., Any]:
        attack = fastsal.PGD(model, EPS, ALPHA, STEPS, **setting.options)
        return partial(attack, x, y, seed=SEED)

    seconds = raced({setting: ours(setting) for setting in settings_of(rows)}, x, EPS, 0.3, turns)
    lines = [line(row, seconds) for row in rows]

    x_0 = fastsal.functional.random_start(x, EPS, SEED)
    loops: dict[str, Callable[[], Tensor]] = {}
    for layout, (net, start) in {"": (model, x_0), ", channels last": channels_last(model, x_0)}.items():
        for label, computed in (("backward", True), ("grad", False)):
            loops[label + layout] = partial(
                plain_attack.pgd, net, x, y, start, EPS, ALPHA, LOOP_STEPS, weight_gradients=computed
            )
    seconds = raced(loops, x, EPS, 0.3, turns)
    alone, whole = ("backward", "grad"), ("backward, channels last", "grad, channels last")
    return [*lines, line(Row("no weight gradients", name, alone, whole, True), seconds)]


def sense_levers(turns: int) -> list[list[str]]:
    model, x, y = test_sense_attack.case()
    radius, alpha, steps = test_sense_attack.EPS, test_sense_attack.ALPHA, test_sense_attack.STEPS
    rows = list(sense_switches())

    def ours(setting: Setting) -> Callable[..., Any]:
        attack = fastsal.SENSE(model, radius, alpha, steps, test_sense_attack.C, **setting.options)
        return partial(attack, x, y, seed=SEED)

    seconds = raced({setting: ours(setting) for setting in settings_of(rows)}, x, radius, 0.02, turns)
    lines = [line(row, seconds) for row in rows]
    loops: dict[str, Callable[[], Any]] = {}
    x_0 = test_sense_attack.start(x)
    for layout, (net, start) in {"": (model, x_0), ", channels last": channels_last(model, x_0)}.items():
        for label, graph in (("graph", True), ("none", False)):
            loops[label + layout] = partial(
                plain_attack.sense, net, x, y, start, radius, alpha, steps, test_sense_attack.CUT, last_graph=graph
            )
    seconds = raced(loops, x, radius, 0.02, turns)
    alone, whole = ("graph", "none"), ("graph, channels last", "none, channels last")
    return [*lines, line(Row("last forward without graph", SENSE_CASE, alone, whole, True), seconds)]


# ---------------------------------------------------------------------------------------------- levers


def line(row: Row, seconds: Seconds) -> list[str]:
    worth = median_ratio(seconds, *row.whole)
    verdict = "wins" if worth >= 1.02 else "loses" if worth <= 0.98 else "no difference"
    kept = f"{'on' if row.on else 'off'} by default; {verdict}"
    figures = (ratio_with_quartiles(seconds, *pair) if pair else "not measured" for pair in (row.alone, row.whole))
    made = [row.lever, row.case, PREDICTED[row.lever, row.case], *figures, kept]
    print("  ".join(made), flush=True)
    return made


def levers(names: list[str], turns: int) -> str:
    rows = [row for name in names for row in pgd_levers(name, turns)] + sense_levers(turns)
    if not NATIVE:
        rows += [["bf16", name, PREDICTED["bf16", name], *["no bf16 here"] * 2, "auto: fp32 here"] for name in names]
    if not with_compiler():
        rows += [["compile", name, PREDICTED["compile", name], *["no C++ compiler"] * 2, "off"] for name in names]
    rows.append(["CUDA graphs", "all", PREDICTED["CUDA graphs", "all"], *["no CUDA timed here"] * 2, "off by default"])
    order = list(WHY)
    rows.sort(key=lambda row: order.index(row[0]))  # stable: the nets keep their order
    lost = [f"{row[0]} on {row[1]}" for row in rows if row[-1] == "on by default; loses"]
    parts = [
        "How many times as fast a lever makes the whole call: medians over turns of paired ratios (quartiles). "
        "*Predicted*: before it was measured here. *Alone*: it and no other lever, in fp32. *In the whole*: all levers "
        f"on, in {'bf16' if NATIVE else 'fp32'}, against all but this one. {WHY_BF16[0].upper()}{WHY_BF16[1:]}.",
        marked.table(("lever", "net", "predicted", "alone", "in the whole", "kept"), rows, words=2),
        "\n".join(f"- {lever}: {why}" for lever, why in WHY.items()),
        f"On by default and slower in the whole: {', '.join(lost) or 'none'}.",
    ]
    return "\n\n".join(parts)


# ------------------------------------------------------------------------------------------------ rate

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
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        total = seconds_of(call)
    shares = dict.fromkeys(KINDS, 0.0)
    for event in profiled.key_averages():
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), None)
        if kind is not None:
            shares[kind] += 1e-6 * event.self_cpu_time_total / total
    return {**shares, "the rest": max(0.0, 1 - sum(shares.values()))}


def rate(names: list[str], turns: int) -> str:
    dtypes = {"fp32": torch.float32, **({"bf16": torch.bfloat16} if NATIVE else {})}
    rows, missed = [], list[str]()
    for name in names:
        model, x, y = case(name)
        for precision, dtype in dtypes.items():
            attack = fastsal.PGD(model, EPS, ALPHA, STEPS, precision=precision)
            generator = torch.Generator().manual_seed(0)
            a, b = (torch.rand(SIZE, SIZE, generator=generator).to(dtype) for _ in range(2))
            calls = {"attack": partial(attack, x, y, seed=SEED), "product": partial(torch.mm, a, b, out=a.clone())}
            with Operations() as counted:
                once = {"attack": seconds_of(calls["attack"])}
            calls["product"]()
            once["product"] = seconds_of(calls["product"])
            operations = {"attack": counted.total, "product": 2 * SIZE**3}
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
        f"and matrix products alone) by the time of the whole call, beside the product of two {SIZE}x{SIZE} matrices "
        "of the same precision in the same run. *share*: median over turns (quartiles). To the right, where the time "
        "of one profiled call went; *the rest* is Python, autograd and dispatch.",
        marked.table(heads, rows, words=2),
    ]
    aims = f"Less than the share aimed at in bf16 (aim): {'; '.join(missed) or 'none'}."
    parts.append(aims if NATIVE else f"No bf16 here: {WHY_BF16}.")
    return "\n\n".join(parts)


def main() -> None:
    parts: dict[str, Callable[[list[str], int], str]] = {"levers": levers, "rate": rate}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=TURNS, help="alternations, at most (default %(default)s)")
    parser.add_argument("--part", choices=list(parts), help="one of the two (default: both)")
    parser.add_argument("--net", action="append", metavar="TEXT", help="nets whose name holds this; may be repeated")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads (default: torch's)")
    parser.add_argument("--write", type=Path, help="a markdown file whose marked sections are replaced")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = [name for name in NETS if any(text.lower() in name.lower() for text in options.net or [""])]
    if not names:
        raise SystemExit(f"--net: expected parts of {', '.join(NETS)}, got {', '.join(options.net)}")
    started = machine()
    warnings.filterwarnings("error", category=fastsal.FallbackWarning)  # a lever that is not on must not be timed
    for part in [options.part] if options.part else parts:
        text = f"Machine: {started}. {options.turns} turns at most.\n\n{parts[part](names, options.turns)}"
        print(f"\n{text}\n", flush=True)
        if options.write:
            marked.write(part, text, options.write)


if __name__ == "__main__":
    main()
