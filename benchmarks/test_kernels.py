"""Every operator beside eager torch and torch.compile: ``pytest benchmarks/ --benchmark-only -k kernels``.

Times are for reading, never for asserting. Each statement is checked against the operator before it is timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from benchmarks import eager_steps
from benchmarks.contenders import NORMS, Contender, agree, step_contenders
from benchmarks.step_inputs import EPS, Rotation

pytestmark = pytest.mark.benchmark(max_time=0.3, min_rounds=5, warmup=True, warmup_iterations=2)
Timed = Callable[..., Any]
WAYS = ["fastsal", "eager", "torch.compile"]

contenders = cache(step_contenders)
compiled = cache(lambda function: torch.compile(function, dynamic=False))


def chosen(way: str, operator: Callable[..., Any], eager: Callable[..., Any]) -> Callable[..., Any]:
    return {"fastsal": operator, "eager": eager, "torch.compile": compiled(eager)}[way]


@pytest.mark.parametrize("contender", step_contenders("Linf"))
@pytest.mark.parametrize("norm", NORMS)
def test_step(norm: str, contender: str, batches: Rotation, timed: Timed, compiler: None) -> None:
    ways: dict[str, Contender] = contenders(norm)
    agree({name: ways[name] for name in dict.fromkeys(("fastsal operator", contender))}, batches.next())
    size = "x".join(map(str, batches.next().x.shape))
    timed(f"{norm} step, {size}", batches.bytes_per_step, lambda: ways[contender](batches.next()))


@pytest.mark.parametrize("way", WAYS)
def test_random_start(way: str, batches: Rotation, timed: Timed, compiler: None) -> None:
    eps, seed, low, high = torch.tensor([EPS]), torch.tensor(1), torch.zeros(1), torch.ones(1)
    start = torch.ops.fastsal.random_start.default
    function = chosen(way, lambda x: start(x, eps, seed, None, low, high, None, math.inf), eager_steps.linf_start)
    arguments = () if way == "fastsal" else (EPS,)
    x = batches.next().x
    assert (function(x, *arguments) - x).abs().max() <= EPS * (1 + 1e-5)
    size = "x".join(map(str, x.shape))
    timed(f"random start, {size}", batches.bytes_per_step // 2, lambda: function(batches.next().x, *arguments))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("rows", "classes"), [(256, 10), (256, 1000), (8, 100_000)])
@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
def test_losses(loss: str, rows: int, classes: int, way: str, timed: Timed, compiler: None) -> None:
    logits, target = torch.randn(rows, classes), torch.randint(classes, (rows,))
    if loss == "margin":
        operator, eager, extra = torch.ops.fastsal.margin_loss.default, eager_steps.margin, ((None, None), ())
    else:
        operator, eager = torch.ops.fastsal.truncated_cross_entropy.default, eager_steps.cross_entropy
        extra = ((None, math.log(2)), (math.log(2),))
    function, arguments = chosen(way, operator, eager), extra[way != "fastsal"]
    for got, expected in zip(function(logits, target, *arguments), operator(logits, target, *extra[0]), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    moved = 2 * logits.numel() * logits.element_size()
    timed(f"{loss}, {rows}x{classes}", moved, lambda: function(logits, target, *arguments))


@pytest.mark.parametrize("way", ["fastsal", "eager"])
def test_retire(way: str, batches: Rotation, timed: Timed) -> None:
    """A quarter of the rows leave; boolean indexing is not compiled, since its sizes depend on the data."""
    count = len(batches.next().x)
    over, ids = torch.arange(count) % 4 == 1, torch.arange(count).flip(0)
    stop = torch.full((count,), -1)
    retire = torch.ops.fastsal.retire.default

    def run() -> Any:
        b = batches.next()
        if way == "eager":
            return eager_steps.retire(b.x, b.x_adv, over, ids, b.out)
        return retire(b.x, b.x_adv, None, over, None, ids, b.out, stop, 1, False)

    kept, names, *_ = run()
    live = int((~over).sum())
    assert torch.equal(kept[:live], (~over).nonzero().squeeze(1)) and torch.equal(names[:live], ids[~over])
    moved = int(over.sum()) * 2 * batches.bytes_per_step // 4 // count
    timed(f"retire, {'x'.join(map(str, batches.next().x.shape))}", moved, run)
