"""What each lever of the attack is worth, alone and among the others."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastsal
from benchmarks import marked, plain_attack, test_sense_attack, where
from benchmarks.alternation import Seconds, alternate, quartiles, ratio_with_quartiles, seconds_of
from benchmarks.test_attacks import ALPHA, EPS, NETS, SEED, STEPS, case
from fastsal import Levers, heap
from fastsal.levers import OFF

LIMIT = 25.0  # seconds of a contest after which no turn begins, but three
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
        norms = "off: no batch norm" not in (notes["fold_batch_norm"], notes["lean_batch_norm"])
        for name, on in (
            ("channels_last", self.levers.channels_last),
            ("fold_batch_norm", self.levers.fold_batch_norm),
            ("lean_batch_norm", self.levers.lean_batch_norm),
            ("kept_memory", self.levers.kept_memory),
            ("compile", self.compile),
            ("cuda_graphs", self.levers.cuda_graphs),
        ):
            if norms or not name.endswith("batch_norm"):
                compiled = name == "lean_batch_norm" and self.compile  # then torch.compile decides
                assert notes[name].startswith("on") == (on and not compiled), (name, on, notes[name])
        assert notes["precision"].startswith("bf16" if self.bf16 else "fp32"), notes["precision"]


NONE = Setting(OFF)


def default_setting() -> Setting:
    """As the attack runs here by default: what "auto" comes to. Each contest checks that it does."""
    gpu, memory = where.device().type == "cuda", heap.refusal(where.device().type) is None
    levers = Levers(fold_batch_norm=not gpu, lean_batch_norm=not gpu, kept_memory=memory, cuda_graphs=gpu)
    return Setting(levers, bf16=where.native_bf16()[0])


@dataclass(frozen=True)
class Row:
    """A lever in a contest: which contender has it and which one has not, alone and among the others."""

    lever: str
    case: str
    alone: tuple[Any, Any] | None  # without it, with it; None: not measured
    whole: tuple[Any, Any]
    on: bool  # by default


# Written before anything was measured on the machine of the table. How many times as fast the lever makes the call.
ON_CPU = {
    ("live rows, exact", SENSE_CASE): "1.6",
    ("live rows, buckets", SENSE_CASE): "1.45",
    ("channels_last", SMALL): "1.38",
    ("channels_last", RESNET): "1.17",
    ("channels_last", PREACT): "1.05",
    ("channels_last", SENSE_CASE): "1.38",
    ("folded batch norm", RESNET): "1.1 to 1.2",
    ("folded batch norm", PREACT): "1.01",
    ("lean batch norm", PREACT): "1.00",
    ("kept memory", SMALL): "1.2",
    ("kept memory", RESNET): "1.05",
    ("kept memory", PREACT): "1.05",
    ("kept memory", SENSE_CASE): "1.2",
    ("bf16", SMALL): "1.62",
    ("bf16", RESNET): "1.72",
    ("bf16", PREACT): "2.0",
    ("compile", SMALL): "0.80",
    ("compile", RESNET): "1.16",
    ("compile", PREACT): "1.0 to 1.05",
    ("no weight gradients", SMALL): "1.4 to 1.5",
    ("no weight gradients", RESNET): "1.4 to 1.5",
    ("no weight gradients", PREACT): "1.5",
    ("last forward without graph", SENSE_CASE): "1.00 to 1.02",
}
ON_GPU = {  # written before the first run on one: such nets wait for launches, not for arithmetic
    ("live rows, exact", SENSE_CASE): "0.9",
    ("live rows, buckets", SENSE_CASE): "1.0",
    ("channels_last", SMALL): "0.95",
    ("channels_last", RESNET): "1.0",
    ("channels_last", PREACT): "1.1",
    ("channels_last", SENSE_CASE): "0.95",
    ("folded batch norm", RESNET): "1.2",
    ("folded batch norm", PREACT): "1.05",
    ("lean batch norm", PREACT): "1.00",
    ("bf16", SMALL): "0.9",
    ("bf16", RESNET): "1.0",
    ("bf16", PREACT): "1.2",
    ("compile", SMALL): "1.5",
    ("compile", RESNET): "2",
    ("compile", PREACT): "1.5",
    ("CUDA graphs", SMALL): "3",
    ("CUDA graphs", RESNET): "4",
    ("CUDA graphs", PREACT): "3",
    ("CUDA graphs", SENSE_CASE): "2.5",
    ("no weight gradients", SMALL): "1.1",
    ("no weight gradients", RESNET): "1.2",
    ("no weight gradients", PREACT): "1.2",
    ("last forward without graph", SENSE_CASE): "1.00",
}
WHY = {
    "live rows, exact": "on a CPU the host knows the number of live rows for nothing, so the batch holds no others.",
    "live rows, buckets": "for accelerators and compiled models, where shapes must repeat and a look at the number of "
    "live rows waits; on a CPU the exact strategy takes its place.",
    "channels_last": "convolutions take it as it is, without reordering what they read and write.",
    "folded batch norm": "two passes fewer over every activation that it follows, forward and backward; the first step "
    "of a call still runs it, since that forward is watched to find the pairs.",
    "lean batch norm": "a matter of memory: norms that are not folded keep no input for a backward that needs none.",
    "kept memory": "each step frees all of its activations, and without this much of their memory goes back to the "
    "system and comes again page by page, zeroed. Timed in a process of its own; the contender without it has the "
    "largest thresholds that glibc takes by itself. What it costs in memory: 3.",
    "bf16": "half the bytes and, where the processor has it, twice the products per instruction; where it has not, "
    '`precision="auto"` stays in fp32.',
    "compile": "it takes a minute or more for each shape when it first comes, so it must be asked for.",
    "CUDA graphs": "what a replay saves is launches; where a net keeps the device busy it saves little.",
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


def raced(
    calls: Mapping[Any, Callable[..., Any]], x: Tensor, radius: float, most: float, turns: int, limit: float = LIMIT
) -> Seconds:
    with where.strict_fp32():
        once = check(calls, x, radius, most)
    again = {key: seconds_of(calls[key]) if isinstance(key, Setting) and key.compile else t for key, t in once.items()}
    return alternate(calls, turns, limit, again)


def with_compiler() -> bool:
    return any(map(shutil.which, ("g++", "clang++", "c++")))


def switches(name: str, compiling: bool) -> Iterator[Row]:
    """The levers that have a switch and may matter to PGD on a net. The number of live rows never changes there."""

    def switched(lever: str, on: bool, **levers: bool) -> Row:
        with_it = replace(NONE, levers=replace(OFF, **levers))
        others = replace(full, levers=replace(full.levers, **dict.fromkeys(levers, False)))
        among = replace(full, levers=replace(full.levers, **levers))
        return Row(lever, name, (NONE, with_it), (others, among), on)

    full, native = default_setting(), where.native_bf16()[0]

    yield switched("channels_last", full.levers.channels_last, channels_last=True)
    if name != SMALL:  # which has no batch norm
        yield switched("folded batch norm", bool(full.levers.fold_batch_norm), fold_batch_norm=True)
    if name == PREACT:  # where most norms are not folded
        yield switched("lean batch norm", bool(full.levers.lean_batch_norm), lean_batch_norm=True)
    if native:
        yield Row("bf16", name, (NONE, replace(NONE, bf16=True)), (replace(full, bf16=False), full), True)
    if where.device().type == "cuda":
        yield switched("CUDA graphs", bool(full.levers.cuda_graphs), cuda_graphs=True)
    if compiling:
        alone = None if name == PREACT else (NONE, replace(NONE, compile=True))  # it would take minutes
        yield Row("compile", name, alone, (full, replace(full, compile=True)), False)


def shrunk(setting: Setting, how: str) -> Setting:
    return replace(setting, levers=replace(setting.levers, live_rows=how))


def sense_switches() -> Iterator[Row]:
    full, gpu = default_setting(), where.device().type == "cuda"
    for how, on in (("exact", not gpu), ("buckets", gpu)):
        yield Row(
            f"live rows, {how}", SENSE_CASE, (NONE, shrunk(NONE, how)), (shrunk(full, "off"), shrunk(full, how)), on
        )
    default = shrunk(full, "buckets" if gpu else "exact")
    for lever, name in (("channels_last", "channels_last"), ("CUDA graphs", "cuda_graphs")):
        if gpu or name != "cuda_graphs":
            among, others = (replace(default, levers=replace(default.levers, **{name: on})) for on in (True, False))
            alone = replace(NONE, levers=replace(OFF, **{name: True}))
            yield Row(lever, SENSE_CASE, (NONE, alone), (others, among), getattr(full.levers, name))


def pgd_calls(settings: Iterable[Setting], model: nn.Module, x: Tensor, y: Tensor) -> dict[Setting, Callable[..., Any]]:
    attacks = {setting: fastsal.PGD(model, EPS, ALPHA, STEPS, **setting.options) for setting in settings}
    return {setting: partial(attack, x, y, seed=SEED) for setting, attack in attacks.items()}


def sense_calls(
    settings: Iterable[Setting], model: nn.Module, x: Tensor, y: Tensor
) -> dict[Setting, Callable[..., Any]]:
    how = test_sense_attack.EPS, test_sense_attack.ALPHA, test_sense_attack.STEPS, test_sense_attack.C
    attacks = {setting: fastsal.SENSE(model, *how, **setting.options) for setting in settings}
    return {setting: partial(attack, x, y, seed=SEED) for setting, attack in attacks.items()}


def kept_memory_row(name: str) -> Row:
    full = shrunk(default_setting(), "exact")
    returned = replace(full, levers=replace(full.levers, kept_memory=False))
    return Row(
        "kept memory", name, (NONE, replace(NONE, levers=replace(OFF, kept_memory=True))), (returned, full), True
    )


def kept_memory_alone(name: str, turns: int) -> list[list[list[float]]]:
    """Seconds of the two contests of that row, in a process that has done nothing else: what others have left on the
    heap decides how much of it malloc can return."""
    row, found = kept_memory_row(name), []
    (model, x, y), radius, calls = (
        (test_sense_attack.case(), test_sense_attack.EPS, sense_calls)
        if name == SENSE_CASE
        else (case(name), EPS, pgd_calls)
    )
    for pair in (row.alone or (), row.whole):
        seconds = raced(calls(pair, model, x, y), x, radius, 0.3, turns, 4 * LIMIT)
        found.append([seconds[setting] for setting in pair])
    return found


def kept_memory_lines(name: str, turns: int) -> list[list[str]]:
    if not default_setting().levers.kept_memory:
        return []
    options = ["--turns", str(turns), "--threads", str(torch.get_num_threads()), "--kept-memory-alone", name]
    command = [sys.executable, "-m", "benchmarks.attack_report", "--device", "cpu", *options]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    row = kept_memory_row(name)
    pairs = zip((row.alone, row.whole), json.loads(printed.splitlines()[-1]), strict=True)
    return [line(row, {key: times for pair, both in pairs for key, times in zip(pair or (), both, strict=True)})]


def settings_of(rows: list[Row]) -> list[Setting]:
    return list(dict.fromkeys(setting for row in rows for setting in (*(row.alone or ()), *row.whole)))


def channels_last(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    return copy.deepcopy(model).to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)


def pgd_levers(name: str, turns: int, compiling: bool) -> list[list[str]]:
    """Table rows of one net."""
    model, x, y = case(name)
    default_setting().check(fastsal.PGD(model, EPS, ALPHA, 2)(x, y, return_info=True)[1].levers)
    rows = list(switches(name, compiling))

    seconds = raced(pgd_calls(settings_of(rows), model, x, y), x, EPS, 0.3, turns)
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
    return [
        *lines,
        *kept_memory_lines(name, turns),
        line(Row("no weight gradients", name, alone, whole, True), seconds),
    ]


def sense_levers(turns: int) -> list[list[str]]:
    model, x, y = test_sense_attack.case()
    radius, alpha, steps = test_sense_attack.EPS, test_sense_attack.ALPHA, test_sense_attack.STEPS
    rows = list(sense_switches())

    seconds = raced(sense_calls(settings_of(rows), model, x, y), x, radius, 0.05, turns)
    lines = [line(row, seconds) for row in rows]
    loops: dict[str, Callable[[], Any]] = {}
    x_0 = test_sense_attack.start(x)
    for layout, (net, start) in {"": (model, x_0), ", channels last": channels_last(model, x_0)}.items():
        for label, graph in (("graph", True), ("none", False)):
            loops[label + layout] = partial(
                plain_attack.sense, net, x, y, start, radius, alpha, steps, test_sense_attack.CUT, last_graph=graph
            )
    seconds = raced(loops, x, radius, 0.05, turns)
    alone, whole = ("graph", "none"), ("graph, channels last", "none, channels last")
    last = line(Row("last forward without graph", SENSE_CASE, alone, whole, True), seconds)
    return [*lines, *kept_memory_lines(SENSE_CASE, turns), last]


# ---------------------------------------------------------------------------------------------- levers


def predicted(lever: str, name: str) -> str:
    return (ON_GPU if where.device().type == "cuda" else ON_CPU)[lever, name]


def line(row: Row, seconds: Seconds) -> list[str]:
    low, worth, high = quartiles(seconds, *row.whole)
    wins, loses = low > 1 and worth >= 1.02, high < 1 and worth <= 0.98
    verdict = "wins" if wins else "loses" if loses else "no difference"
    kept = f"{'on' if row.on else 'off'} by default; {verdict}"
    figures = (ratio_with_quartiles(seconds, *pair) if pair else "not measured" for pair in (row.alone, row.whole))
    made = [row.lever, row.case, predicted(row.lever, row.case), *figures, kept]
    print("  ".join(made), flush=True)
    return made


def levers(names: list[str], turns: int, compiling: bool) -> str:
    rows = [row for name in names for row in pgd_levers(name, turns, compiling)] + sense_levers(turns)
    native, why_bf16 = where.native_bf16()
    if not native:
        rows += [["bf16", name, predicted("bf16", name), *["no bf16 here"] * 2, "auto: fp32 here"] for name in names]
    if not compiling:
        rows += [["compile", name, predicted("compile", name), *["not measured here"] * 2, "off"] for name in names]
    if where.device().type != "cuda":
        rows.append(["CUDA graphs", "all", "", *["no CUDA timed here"] * 2, "off on a CPU"])
    order = list(WHY)
    rows.sort(key=lambda row: order.index(row[0]))  # stable: the nets keep their order
    lost = [f"{row[0]} on {row[1]}" for row in rows if row[-1] == "on by default; loses"]
    parts = [
        "How many times as fast a lever makes the whole call: medians over turns of paired ratios (quartiles). "
        "*Predicted*: before it was measured here. *Alone*: it and no other lever, in fp32. *In the whole*: all levers "
        f"on, in {'bf16' if native else 'fp32'}, against all but this one. {why_bf16[0].upper()}{why_bf16[1:]}. "
        "*wins*, *loses*: in the whole, by 2 % or more and in three quarters of the turns.",
        marked.table(("lever", "net", "predicted", "alone", "in the whole", "kept"), rows, words=2),
        "\n".join(f"- {lever}: {why}" for lever, why in WHY.items()),
        f"On by default and slower in the whole: {', '.join(lost) or 'none'}.",
    ]
    return "\n\n".join(parts)
