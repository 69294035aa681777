"""PGD-10 as a whole call beside other libraries and plain loops: ``pytest benchmarks/ --benchmark-only -k attack``.

``pip install --no-deps -r benchmarks/peers.txt`` first: what is not installed is left out, and said. Prints ratios at
the end: how many times the time of fastsal another one takes, the median over turns and their quartiles. ``--turns 3``
is quick.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastsal
from benchmarks import marked, peers, plain_attack, where
from benchmarks.alternation import Seconds, alternate, median_ratio, ratio_with_quartiles
from benchmarks.where import here

EPS, ALPHA, STEPS, SEED = 8 / 255, 2 / 255, 10, 1
NETS = {
    "SmallCNN, 256x1x28x28": ("small-cnn", (256, 1, 28, 28)),
    "ResNet-20, 128x3x32x32": ("resnet20", (128, 3, 32, 32)),
    "PreActResNet-18, 32x3x32x32": ("preact-resnet18", (32, 3, 32, 32)),
}
FP32, BF16, PLAIN, LOOP = "fastsal, fp32", "fastsal, bf16", "fastsal, fast=False", "plain loop"
NO_GRAPHS = {"fp32": f"{FP32}, no CUDA graphs", "bf16": f"{BF16}, no CUDA graphs"}  # on a GPU
# Times the time of ours that another takes at least, in fp32 and in bf16 where that is native.
AIMS = {  # torchattacks, others; by net
    FP32: dict(zip(NETS, ((1.4, 1.0), (1.4, 1.0), (1.0, 1.0)), strict=True)),
    BF16: dict(zip(NETS, ((3.5, 4.5), (3.5, 4.5), (2.3, 3.5)), strict=True)),
}
LIMIT = 40.0  # seconds of a contest after which no turn begins, but three


@dataclass(frozen=True)
class Raced:
    """What is kept of a contest of attacks."""

    net: str
    seconds: Seconds


def case(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A net in eval mode, with batch norms that have seen its images, and labels that it gets right."""
    architecture, shape = NETS[name]
    torch.manual_seed(0)
    model = here(fastsal.models.get(architecture, in_channels=shape[1]))
    x = here(torch.rand(shape))
    with torch.no_grad():
        for _ in range(3):
            model(x)
        y = model.eval()(x).argmax(1)
    return model, x, y


def calls(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], Any]]:
    def ours(**how: Any) -> Callable[[], Tensor]:
        attack = fastsal.PGD(model, EPS, ALPHA, STEPS, **how)
        return lambda: attack(x, y, seed=SEED)

    x_0 = fastsal.functional.random_start(x, EPS, SEED)
    found = {FP32: ours(precision="fp32"), PLAIN: ours(fast=False)}
    if where.native_bf16()[0]:
        found[BF16] = ours(precision="bf16")
    if x.is_cuda:
        without = fastsal.Levers(cuda_graphs=False)
        found |= {NO_GRAPHS[p]: ours(precision=p, fast=without) for p in NO_GRAPHS if p == "fp32" or BF16 in found}
    found[LOOP] = lambda: plain_attack.pgd(model, x, y, x_0, EPS, ALPHA, STEPS)
    for name in peers.installed():
        found[name] = peers.call_of(name, model, x, y, EPS, ALPHA, STEPS)
    return found


def check(model: nn.Module, x: Tensor, y: Tensor, contenders: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """All stay in the ball and fool the net about as often; the plain loop and both of ours end at the same points.

    Returns the seconds that each took.
    """
    results, right, once = {}, {}, {}
    for name, call in contenders.items():
        begin = time.perf_counter()
        given = call()
        where.wait()
        once[name] = time.perf_counter() - begin
        result = (
            given[1] if isinstance(given, tuple) else here(torch.as_tensor(given))
        )  # foolbox: raw, clipped, success
        result = result.detach()
        assert float((result - x).abs().max()) <= EPS + 1e-6, name
        with torch.no_grad():
            right[name] = float((model(result).argmax(1) == y).float().mean())
        results[name] = result
    for name in (FP32, PLAIN):
        assert float((results[name] != results[LOOP]).float().mean()) < 0.3, name  # signs of small gradients, ten steps
    assert max(right.values()) - min(right.values()) < 0.25, right
    return once


@pytest.mark.parametrize("name", NETS)
def test_attack(name: str, benchmark: Any, turns: int, attacks: list[Raced]) -> None:
    model, x, y = case(name)
    contenders = calls(model, x, y)
    with where.strict_fp32():
        once = check(model, x, y, contenders)
    benchmark.pedantic(contenders[FP32])  # once: some take ten seconds
    if benchmark.enabled:
        attacks.append(Raced(name, alternate(contenders, turns, LIMIT, once)))


def table(raced: list[Raced]) -> str:
    """Markdown: one row per contender, one column per net and precision of ours."""
    kinds = (FP32, BF16, *NO_GRAPHS.values())
    ours = [(contest, name) for contest in raced for name in kinds if name in contest.seconds]
    names = dict.fromkeys(name for contest in raced for name in contest.seconds)
    rows = []
    for name in names:
        cells = [
            ratio_with_quartiles(r.seconds, name, to) if name in r.seconds and name != to else "" for r, to in ours
        ]
        rows.append([name, *cells])
    heads = [f"{r.net} ({len(r.seconds[to])} turns), times {to}" for r, to in ours]
    return marked.table(("PGD-10", *heads), rows)


def missed(raced: list[Raced]) -> str:
    """The aims that were not reached."""
    found = []
    for contest in raced:
        for ours, aims in AIMS.items():
            for name in peers.PEERS if ours in contest.seconds else ():
                if name in contest.seconds:
                    times, aim = median_ratio(contest.seconds, name, ours), aims[contest.net][name != "torchattacks"]
                    found += [f"{name} on {contest.net}, times {ours}: {times:.2f} ({aim:g})"] if times < aim else []
    return f"Not as much slower as was aimed at (aim): {'; '.join(found) or 'none'}."


def beside() -> list[str]:
    """Who ran, who is not here, and whether there is bf16."""
    lines = []
    missing = sorted(set(peers.PEERS) - set(peers.installed()))
    versions = ", ".join(f"{name} {version}" for name, version in peers.installed().items())
    lines.append(f"Beside: {versions or 'no other library'}.")
    if missing:
        lines.append(f"Not installed: {', '.join(missing)} (`{peers.INSTALL}`).")
    if not where.native_bf16()[0]:
        lines.append(f"No bf16 here: {where.native_bf16()[1]}.")
    return lines
