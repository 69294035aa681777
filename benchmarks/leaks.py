"""Attacks one after the other, and what they leave: ``python -m benchmarks.leaks`` makes 10,000 and says what was left.

Counted before and after, when a garbage collector has run: tensors that live, objects, bytes that Python and the
process hold, hooks and forwards of its own on every module, and what fastsal remembers by model. Ends with an error
where anything grew with the number of attacks.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastsal
from benchmarks.alternation import machine
from fastsal import compiled, model_view, refused

SLACK = {"objects": 2_000, "python bytes": 200_000, "resident bytes": 24 * 2**20}  # not one an attack


class Net(nn.Module):
    """What attacks touch: folded and lean batch norm, a buffer, layers of their own layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.again = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.again(torch.relu(self.norm(self.conv(x)))).mean((2, 3))))


class Fails(Net):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise ArithmeticError


def attacks() -> Iterator[Callable[[], object]]:
    """Calls of every kind, over and over; each tenth on a model that is new, each twentieth fails on its way."""
    x, y = torch.rand(6, 2, 5, 5), torch.arange(6) % 3
    model = Net()
    kinds: list[dict[str, Any]] = [
        {"c": 0.3},
        {"c": None, "norm": "L2", "return_info": True},
        {"c": 0.3, "loss": "kl", "fast": fastsal.Levers(live_rows="buckets")},
        {"c": None, "norm": "L1", "precision": "bf16"},
        {"c": 0.3, "momentum": 1.0, "decide_at": "clean"},
        {"c": None, "step_rule": "apgd"},
        {"c": None, "tau": 1, "fast": False},
    ]

    def attack(net: nn.Module, how: dict[str, Any]) -> Callable[[], object]:
        return lambda: fastsal.perturb(net, x, y, 0.05, steps=3, **how)

    def failing(net: nn.Module, how: dict[str, Any]) -> Callable[[], object]:
        def call() -> None:
            try:
                attack(net, how)()
            except ArithmeticError:
                return
            raise RuntimeError("expected an attack that fails, got one that does not")

        return call

    for i, how in enumerate(itertools.cycle(kinds)):
        if i % 20 == 19:
            yield failing(Fails(), how)
        else:
            yield attack(Net() if i % 10 == 5 else model, how)


def resident() -> int:
    """Bytes of the process in memory; 0 where the system does not tell."""
    found = Path("/proc/self/statm")
    return int(found.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if found.exists() else 0


def hooks(module: nn.Module) -> int:
    kinds = [name for name in vars(module) if name.endswith("_hooks")]
    return sum(len(getattr(module, name)) for name in kinds) + ("forward" in vars(module))


def held() -> dict[str, int]:
    gc.collect()
    objects = gc.get_objects()
    tensors = [thing for thing in objects if issubclass(type(thing), Tensor)]
    modules = [thing for thing in objects if issubclass(type(thing), nn.Module)]
    return {
        "tensors": len(tensors),
        "tensor bytes": sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor.layout == torch.strided),
        "modules": len(modules),
        "hooks": sum(map(hooks, modules)),
        "remembered models": len(refused._refused) + len(model_view._outputs_known) + len(compiled._forwards),
        "objects": len(objects),
        "python bytes": tracemalloc.get_traced_memory()[0],
        "resident bytes": resident(),
    }


def grown(count: int, warm: int = 140) -> tuple[dict[str, int], dict[str, int]]:
    """What is held after `warm` attacks, and after `count` more."""
    calls = attacks()
    tracemalloc.start()
    for call in itertools.islice(calls, warm):
        call()
    del call
    before = held()
    for call in itertools.islice(calls, count):
        call()
    del call
    after = held()
    tracemalloc.stop()
    return before, after


def leaks(before: dict[str, int], after: dict[str, int]) -> list[str]:
    return [
        f"{what}: expected at most {before[what] + SLACK.get(what, 0):,}, got {after[what]:,}"
        for what in before
        if after[what] > before[what] + SLACK.get(what, 0)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="attacks (default %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started, begin = machine(), time.perf_counter()
    before, after = grown(options.count)
    print(f"{started}\n{options.count:,} attacks in {time.perf_counter() - begin:.0f} s: before, after, difference")
    for what in before:
        print(f"  {what:<18} {before[what]:>13,} {after[what]:>13,} {after[what] - before[what]:>+10,}")
    found = leaks(before, after)
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
