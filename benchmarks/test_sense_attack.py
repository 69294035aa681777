"""SENSE half-way through a training, beside a full-batch loop: ``pytest benchmarks/ --benchmark-only -k attack``.

The net is benchmarks/mid_training/, made by ``python -m benchmarks.checkpoint``. The loop, ``plain_attack.sense``, has
the 15 full-size operations per step that the loop of the paper's authors has, and is first shown to end where fastsal
does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastsal
from benchmarks import checkpoint, marked, plain_attack, trained, where
from benchmarks.alternation import Seconds, alternate, median_ratio, ratio_with_quartiles, seconds_of
from benchmarks.where import here
from fastsal.live import AttackInfo

ROWS, STEPS, SEED = 256, 10, 1
EPS, C = trained.EPS, trained.C
ALPHA, CUT = 1.875 * EPS / STEPS, -math.log(C)
FP32, BF16, PLAIN, LOOP = "fastsal, fp32", "fastsal, bf16", "fastsal, fast=False", "full-batch loop"
NO_GRAPHS = {FP32: f"{FP32}, no CUDA graphs", BF16: f"{BF16}, no CUDA graphs"}  # on a GPU
FULL = {FP32: "PGD, fp32", BF16: "PGD, bf16"}  # the same attack, nothing truncated
FULL |= {NO_GRAPHS[name]: f"{FULL[name]}, no CUDA graphs" for name in NO_GRAPHS}
TIMES, ROW_STEP = 5.0, 1.15  # what is aimed at: the loop over ours; a live row-step over one of the full batch
LIMIT = 30.0


@dataclass(frozen=True)
class Sensed:
    seconds: Seconds
    info: dict[str, AttackInfo]


def case() -> tuple[nn.Module, Tensor, Tensor]:
    """The net, and images that it is being trained on."""
    data = fastsal.data.load("fashion-mnist-mini").train
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:ROWS]
    return here(checkpoint.model()), here(data.images[rows].float() / 255), here(data.labels[rows])


def start(x: Tensor) -> Tensor:
    return fastsal.functional.random_start(x, EPS, SEED)


def settings() -> dict[str, dict[str, Any]]:
    precisions = {FP32: "fp32", **({BF16: "bf16"} if where.native_bf16()[0] else {})}
    ours: dict[str, dict[str, Any]] = {name: {"precision": precision} for name, precision in precisions.items()}
    if where.device().type == "cuda":
        without = fastsal.Levers(cuda_graphs=False)
        ours |= {NO_GRAPHS[name]: {"precision": precision, "fast": without} for name, precision in precisions.items()}
    return {**ours, PLAIN: {"fast": False}}


def check(x: Tensor, looped: tuple[Tensor, Tensor], ours: dict[str, tuple[Tensor, AttackInfo]]) -> None:
    """The loop and fastsal stop at the same steps and end at the same points.

    But for rows that stand at the cut, and signs of gradients near zero: fp32 as such turns 0.036 of the elements of
    the loop in fp64, and another order of its sums, on another processor, may turn as many. In bf16 there are more.
    """
    for name, (x_adv, info) in ours.items():
        exact = BF16 not in name
        assert float((x_adv - x).abs().max()) <= EPS + 1e-6, name
        other_stops = float((info.stop_step != looped[1]).float().mean())
        other_elements = float(((x_adv - looped[0]).abs() > 1e-6).float().mean())
        assert other_stops <= (0.01 if exact else 0.2), (name, other_stops)
        assert other_elements <= (0.05 if exact else 0.3), (name, other_elements)


def test_attack_sense_mid_training(benchmark: Any, turns: int, sensed: list[Sensed]) -> None:
    model, x, y = case()
    x_0, how = start(x), settings()

    def ours(c: float | None, options: dict[str, Any]) -> Callable[..., Any]:
        attack = fastsal.SENSE(model, EPS, ALPHA, STEPS, c, **options)
        return lambda **more: attack(x, y, seed=SEED, **more)

    contenders = {name: ours(C, options) for name, options in how.items()}
    with where.strict_fp32():
        given = {name: call(return_info=True) for name, call in contenders.items()}
        check(x, plain_attack.sense(model, x, y, x_0, EPS, ALPHA, STEPS, CUT), given)
    contenders[LOOP] = lambda: plain_attack.sense(model, x, y, x_0, EPS, ALPHA, STEPS, CUT)
    benchmark.pedantic(contenders[FP32])  # once: some take ten seconds
    if benchmark.enabled:
        contenders |= {FULL[name]: ours(None, how[name]) for name in FULL if name in how}
        once = {name: seconds_of(call) for name, call in contenders.items()}
        info = {name: pair[1] for name, pair in given.items()}
        sensed.append(Sensed(alternate(contenders, turns, LIMIT, once), info))


def per_row_step(sensed: Sensed, name: str, rows: int) -> str:
    """Time per row and step of the truncated attack, over that of the attack on the full batch."""
    full = ROWS * STEPS
    scaled = {"sense": [t / rows for t in sensed.seconds[name]], "full": [t / full for t in sensed.seconds[FULL[name]]]}
    return ratio_with_quartiles(scaled, "sense", "full")


def table(sensed: Sensed) -> str:
    rows = []
    for name, info in sensed.info.items():
        loop = ratio_with_quartiles(sensed.seconds, LOOP, name)
        steps = [""] * 2  # of fast=False: it computes all rows at every step
        if name in FULL:
            steps = [per_row_step(sensed, name, count) for count in (sum(info.stepped), info.row_backwards)]
        rows.append([name, loop, *steps])
    heads = ("SENSE", "full-batch loop takes, times", "time per live row-step over that of PGD", "per row computed")
    return marked.table(heads, rows)


def missed(sensed: Sensed) -> str:
    """The aims that were not reached, of the precision that the attack takes here."""
    ours = BF16 if BF16 in sensed.info else FP32
    times = median_ratio(sensed.seconds, LOOP, ours)
    row_step = median_ratio(sensed.seconds, ours, FULL[ours]) * ROWS * STEPS / sum(sensed.info[ours].stepped)
    found = [f"full-batch loop, times {ours}: {times:.2f} ({TIMES:g} or more)"] if times < TIMES else []
    found += [f"live row-step of {ours}: {row_step:.2f} ({ROW_STEP:g} or less)"] if row_step > ROW_STEP else []
    return f"Aimed at and not reached: {'; '.join(found) or 'none'}."


def words(sensed: Sensed) -> str:
    shares = ", ".join(f"{share:.2f}" for share in sensed.info[FP32].live_share)
    return (
        f"SmallCNN half-way through SENSE training (c = {C:g}, eps = {EPS:g}), {ROWS} of its training images, {STEPS} "
        f"steps, {len(sensed.seconds[FP32])} turns. Live share by step: {shares}. A live row-step is a row that takes "
        "a step; *per row computed* counts the rows of each backward instead, those too that the test of that very "
        "step retires."
    )
