"""Calls on which every body of an operator must agree with the reference: compiled, interpreted, emulated or on a GPU.

    for case in cases("pgd_step", "quick"):
        assert (problem := disagreement(case, answer(case, body), run_reference(case))) is None, problem

`body` takes the arguments of the operator and then its outputs. "quick" holds the few small cases that catch the most;
"full" adds every dtype, shape and way of indexing. `wild_cases` hand over indices and labels out of range, which a
body that looks at no values must survive. The same name and size always give the same bits.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from agreement import disagreement
from kernel_calls import Case, answer, poisoned_outputs, run_reference
from operands import INF, around, box, clean, gradients, scores
from torch import Tensor

from fastsal.checks import FLOATS, GRADIENTS, NORMS, channel_view

__all__ = ["Case", "answer", "cases", "disagreement", "poisoned_outputs", "run_reference", "wild_cases"]
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16

# ----------------------------------------------------------------------------------------- making cases


def _case(build: Callable[..., tuple[tuple[Any, ...], int]], *options: Any, **named: Any) -> Case:
    """A case from the numbers that its label seeds."""
    words = [build.__name__.strip("_"), *options, *(f"{key}={value}" for key, value in named.items())]
    label = "-".join(str(word).removeprefix("torch.").replace(" ", "") for word in words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(label.encode()))
        args, offset = build(*options, **named)
    return Case(build.__name__.strip("_"), label, args, offset)


def _dense(value: Tensor, last: bool, base: int) -> Tensor:
    """Row-major or channels last; `base` elements off its natural alignment."""
    if last and value.dim() in (4, 5):
        format = torch.channels_last if value.dim() == 4 else torch.channels_last_3d
        return value.contiguous(memory_format=format)
    return torch.cat((value.new_zeros(base), value.flatten()))[base:].view(value.shape) if base else value.contiguous()


def _gather(slots: int, samples: int, how: str) -> tuple[Tensor | None, Tensor | None]:
    """rows and ids: absent, or all samples in some order between repetitions and padding; slots in any order."""
    if how == "none" or samples == 0:
        return None, None
    ids = torch.cat((torch.tensor([-1]), torch.randperm(samples), torch.tensor([-1]), torch.randint(samples, (2,))))
    if how == "rows":
        return torch.randint(slots, (samples,)), None
    return torch.randint(slots, (len(ids),)), ids


# The last ones are as small as the distance between neighbouring numbers: there, every rounding shows.
RADII = [8 / 255, 0.25, 0, 1e-40, 3, 1e-300, 1.3e-7, 2.4e-16, 3e-8, 1e-16]
STEPS = [2 / 255, -0.7, 0.01, 0.3, 0.3, -0.0, 1e-7, 2e-16, -1, 1]


# Powers of ten for whole rows. At the fractions, the squares of some elements can be added as they are, of others not.
MAGNITUDES = [0, 300, -300, 144.5, -144.5, 306, -320, 200, -200, 1]

# Boxes made of one of tests/operands.py.
BASES = {"infinite": "per channel", "below": "unit", "upper": "per channel", "positive": "unit"}


def _inside(count: int, shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> Tensor:
    """Points of the box, as many below zero as above where the box allows it."""
    x = clean(count, shape, dtype, BASES.get(kind, kind))
    x = torch.where(torch.rand(x.shape) < 0.5, -x, x)
    low, high = (None if edge is None else channel_view(edge, x) for edge in _boxed(kind, shape, dtype))
    if kind == "positive":  # of all magnitudes, and none is -0, which is below a bound of 0 by its bits
        return x.abs().pow(torch.randint(1, 9, x.shape))
    return x if low is None and high is None else x.clamp(low, high)


def _points(x: Tensor, eps: Tensor, p: float) -> Tensor:
    """Current points: every other row well inside the ball (for L2 and L1, where a step leaves some of them)."""
    outer = around(x, eps, finite=p == 1.0)
    weight = -torch.log(torch.rand_like(x)) * torch.randn_like(x).sign() * (torch.rand_like(x) < 0.7)
    flat = weight.reshape(x.shape[0], -1) if x.numel() else weight.reshape(x.shape[0], 0)
    length = flat.abs().sum(1) if p == 1 else flat.square().sum(1).sqrt()
    each = (-1, *[1] * (x.dim() - 1))
    inner = x + weight / length.clamp(min=1e-3).view(each) * eps.view(each) * 0.9
    return torch.where((torch.arange(x.shape[0]) % 2 == 0).view(each), inner, outer)


def _scaled(count: int, shape: tuple[int, ...]) -> Tensor:
    scale = 10.0 ** torch.tensor(MAGNITUDES[:count], dtype=F64)
    return torch.randn(count, *shape, dtype=F64) * scale.view(-1, *[1] * len(shape))


def _crumbs(count: int, shape: tuple[int, ...], p: float) -> Tensor:
    """A few large elements, then so many small ones that none of them changes a sum, and all of them do."""
    crumb = 0.9 * 2.0**-52
    points = torch.full((count, math.prod(shape)), math.sqrt(crumb) if p == 2 else crumb, dtype=F64)
    points[:, :64] = 1
    return points.view(count, *shape)


def _close(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Neighbours of 1 in rows 0 and 1, then a few of the smallest numbers among zeros; then the first two are infinite,
    and as nothing moves in such a row, they do not."""
    info = torch.finfo(dtype)
    grad = torch.tensor([1, 1 + info.eps, -1, -1 - info.eps], dtype=dtype)[torch.randint(4, (count, *shape))]
    least = torch.where(torch.rand(grad.shape) < 0.1, info.smallest_normal * info.eps, 0.0).to(dtype)
    grad[2:4] = least[2:4]
    grad.view(count, -1)[4:, :2] = INF
    return grad


def _slopes(count: int, shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> Tensor:
    """Gradients with ties and zeros ("plain"), of all magnitudes ("finite"), or not finite in places ("special"), or in
    one or two ("sparse"); or each row at a magnitude of its own, as far as fp64 goes ("scaled"); or none ("crumbs"), or
    as close to each other, or to zero, as can be ("close")."""
    if kind == "scaled":
        return _scaled(count, shape).to(dtype)
    if kind == "crumbs":
        return torch.zeros(count, *shape, dtype=dtype)
    if kind == "close":
        return _close(count, shape, dtype)
    if kind not in ("plain", "sparse", "far"):
        return gradients(count, shape, dtype, finite=kind == "finite")
    grad = (torch.randn(count, *shape) * 3).round() / 4
    grad[2:3] = 0
    if grad.numel() and count > 3:
        grad[3].view(-1)[-1] = [INF, math.nan][count % 2]
    if kind == "sparse":
        for row in range(count):  # row 0: none; one in each fifth of a row, then two of them
            for part in {row % 6, row // 6 * 5} - {0}:
                grad[row].view(-1)[grad[row].numel() * part // 6] = -INF
    return grad.to(dtype)


def _boxed(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    if kind == "infinite":
        low, high = _boxed("per channel", shape, dtype)
        assert low is not None and high is not None
        low[0], high[-1] = -INF, INF
        return low, high
    if kind == "positive":
        return box("unit", 1, dtype)
    if kind == "below":
        return None, torch.ones(1, dtype=dtype)
    if kind == "upper":
        return None, box("per channel", shape[0] if shape else 1, dtype)[1]
    return box(kind, shape[0] if shape else 1, dtype)


def _random_start(
    dtype: torch.dtype, p: float, shape: tuple[int, ...], samples: int, kind: str, index: str = "gather",
    last: bool = False, base: int = 0, seed: int = 0x123456789ABCDEF, keys: bool = True, shared: bool = False,
) -> tuple[tuple[Any, ...], int]:  # fmt: skip
    x = _dense(_inside(samples, shape, dtype, kind), last, base)
    eps = torch.tensor([0.1] if shared else RADII[:samples], dtype=dtype)
    names = torch.randint(-(2**63), 2**63 - 1, (samples,)) if keys else None
    if names is not None:
        names[1:3] = torch.tensor([2**32 + 5, 5])[: max(min(samples - 1, 2), 0)]
    ids = _gather(samples, samples, index)[1]
    return (x, eps, torch.tensor(seed), names, *_boxed(kind, shape, dtype), ids, p), base


def _pgd_step(
    dtype: torch.dtype, grad: torch.dtype, p: float, shape: tuple[int, ...], samples: int, kind: str,
    index: str = "gather", values: str = "plain", last: bool = False, base: int = 0, shared: bool = False,
    share: float = 0.1,
) -> tuple[tuple[Any, ...], int]:  # fmt: skip
    slots = samples if index == "none" or samples == 0 else samples + 2
    x = _inside(samples, shape, dtype, kind)
    eps = torch.tensor([8 / 255] if shared else RADII[:samples], dtype=dtype)
    alpha = torch.tensor([0.01] if shared else STEPS[:samples], dtype=dtype)
    rows, ids = _gather(slots, samples, index)
    # the point in a slot belongs to a row that reads it, so that not every row is far outside of its ball
    owner = torch.arange(slots) % max(samples, 1)
    if rows is not None:
        of_row = torch.arange(len(rows)) if ids is None else ids.clamp(min=0)
        owner[rows] = of_row
    if values == "crumbs":
        x, here = torch.zeros_like(x), _crumbs(slots, shape, p).to(dtype)
    elif values == "far":  # every row at a magnitude of its own, several times as far out as its radius
        x, here, eps = torch.zeros_like(x), _scaled(slots, shape), 10.0 ** torch.tensor(MAGNITUDES[:slots], dtype=dtype)
    else:
        here = _points(x[owner], eps if shared else eps[owner], p)
    slope = _slopes(slots, shape, grad, values)
    topk = max(1, math.ceil(share * math.prod(shape))) if p == 1 else 1
    operands = [_dense(operand, last, base) for operand in (x, here, slope)]
    return (*operands, eps, alpha, *_boxed(kind, shape, dtype), rows, ids, p, topk), base


def _labelled(rows: int, classes: int, dtype: torch.dtype, index: str, special: bool) -> tuple[Tensor, ...]:
    """Logits, labels and ids; with -inf, inf, NaN, ties and the extremes of the dtype where `special`."""
    samples = rows + 3 if index == "gather" else rows
    target = torch.randint(classes, (samples,))
    target[:2] = torch.tensor([0, classes - 1])[: min(samples, 2)]
    ids = torch.arange(rows)
    if index == "gather" and rows:
        ids = torch.randperm(samples)[:rows]
        ids[0], ids[(rows - 1) // 2] = 1, -1  # the last row is real: whatever passes its end is noticed
        if rows > 13:
            ids[12] = -1
    special = special and rows > 12
    if special:
        target[ids[4]] = target[ids[10]] = 0
    logits, own = scores(rows, classes, dtype), target[ids.clamp(min=0)]
    if special:
        anywhere = torch.randint(classes, (rows,))
        logits[0, ::2], logits[0, 1] = -INF, torch.finfo(dtype).max
        logits[1, :: max(classes // 3, 1)] = -INF
        logits[2, anywhere[2]], logits[3, anywhere[3]], logits[3, classes // 2] = INF, math.nan, math.nan
        logits[4] = -INF  # class 0 is the label, so that the competitor is not class 0
        logits[5] = 0.25
        logits[7, own[7]] = -INF
        logits[8] = logits[8].clamp(max=1)
        logits[8, own[8]] = logits[8, anywhere[8]] = 2  # a tie for the largest, the label among the two
        logits[9, own[9]] = INF
        logits[10, 0] = math.nan
        logits[11, own[11]] = 1000  # the others' probabilities are exactly 0
        logits[12, own[12]], logits[12, (own[12] + 1) % classes] = 500, math.nan  # the largest of the others, not right
    return logits, target, ids


def _truncated_cross_entropy(
    dtype: torch.dtype, classes: int, rows: int, cut: float, index: str = "gather", special: bool = True, base: int = 0
) -> tuple[tuple[Any, ...], int]:
    logits, target, ids = _labelled(rows, classes, dtype, index, special)
    return (_dense(logits, False, base), target, None if index == "none" else ids, cut), base


def _margin_loss(
    dtype: torch.dtype, classes: int, rows: int, dlr: bool, targeted: bool, index: str = "gather",
    special: bool = True, base: int = 0,
) -> tuple[tuple[Any, ...], int]:  # fmt: skip
    logits, target, ids = _labelled(rows, classes, dtype, index, special)
    if special and rows > 12:
        # equal, but for the label in the last class: where it lies in the lane of class 0, that one comes second
        logits[5, -1], target[ids[5]] = 1, classes - 1
    other = (target + torch.randint(1, classes, target.shape)) % classes if targeted else None
    if (
        special and rows > 13 and classes > 9
    ):  # first and second, or second and third, in one lane of the smallest blocks
        logits[-1, [0, 8]] = logits[-1].max() + torch.tensor([4, 8], dtype=dtype)
        logits[11, torch.tensor([0, 8]) + int(target[ids[11]] % 8 == 0)] = torch.tensor([900, 904], dtype=dtype)
    return (_dense(logits, False, base), target, other, None if index == "none" else ids, dlr), base


def _kl_divergence(
    dtype: torch.dtype, classes: int, rows: int, both: bool, index: str = "gather", special: bool = True, base: int = 0
) -> tuple[tuple[Any, ...], int]:
    adv, target, ids = _labelled(rows, classes, dtype, index, False)
    clean_logits = scores(len(target), classes, dtype, ties=False)
    if rows > 12:
        of = ids.clamp(min=0)
        clean_logits[of[4]] = adv[4]  # one distribution: no divergence
        if special:
            adv[1], clean_logits[of[1]] = (torch.randn(2, classes) * 2).to(dtype)
            adv[1, ::2] = clean_logits[of[1], ::2] = -INF  # impossible in both: adds nothing
            adv[2], clean_logits[of[2]] = (torch.randn(2, classes) * 2).to(dtype)
            clean_logits[of[2], [-1, 0] if classes > 2 else -1] = -INF
            adv[3], clean_logits[of[3]] = (torch.randn(2, classes) * 2).to(dtype)
            adv[3, 0] = -INF  # impossible for adv alone: an infinite divergence
            adv[5, 0], clean_logits[of[7], -1] = math.nan, math.nan
            # impossible for adv as well: one class whose probability is 0 to rounding, and several, one of them likely
            adv[0], clean_logits[of[0]] = (torch.randn(2, classes) * 2).to(dtype)
            far = 400 if dtype == F64 else 60
            adv[0, 0], clean_logits[of[0], 0], clean_logits[of[0], -1] = -INF, -far, far
            adv[10], clean_logits[of[10]] = (torch.randn(2, classes) * 2).to(dtype)
            adv[10, ::2], clean_logits[of[10], ::2] = -INF, -60
            clean_logits[of[10], :2] = torch.tensor([5, 50], dtype=dtype)
            clean_logits[of[11], :2] = adv[11, -2:] = torch.tensor([2000, 1000], dtype=dtype)  # far apart
            (adv[12] if both else clean_logits[of[12]])[:] = -INF  # no distribution
            adv[8, 0], clean_logits[of[9], 0] = INF, INF
            if rows > 13:  # masked by the least number: in clean, and in adv where clean has no probability either
                adv[13], clean_logits[of[13]] = (torch.randn(2, classes) * 2).to(dtype)
                least, some = torch.finfo(dtype).min, classes // 4
                clean_logits[of[13], :some], clean_logits[of[13], some : 2 * some] = least, -1e4
                adv[13, some : 2 * some] = least
    return (_dense(clean_logits, False, base), _dense(adv, False, base), None if index == "none" else ids, both), base


def _retire(
    dtype: torch.dtype, shape: tuple[int, ...], rows: int, flags: str, final: bool, index: str = "gather",
    last: bool = False, base: int = 0,
) -> tuple[tuple[Any, ...], int]:  # fmt: skip
    samples = rows + 3 if index in ("gather", "ids") else rows
    slots = {"gather": rows + 2, "rows": max(rows - 4, 1)}.get(index, rows)
    previous, current = (_dense(clean(n, shape, dtype), last, base) for n in (slots, rows))
    result = _dense(torch.full((samples, *shape), 7, dtype=dtype), last, base)
    which, ids = torch.randint(max(slots, 1), (rows,)), torch.randperm(samples)[:rows]
    ids[1::4] = -1
    right = torch.rand(rows) < 0.8 if "right" in flags else None
    over = torch.rand(rows) < 0.4 if "over" in flags else None
    indices = {"none": (None, None), "rows": (which, None), "ids": (None, ids)}.get(index, (which, ids))
    return (previous, current, right, over, *indices, result, torch.full((samples,), -1), 4, final), base


# --------------------------------------------------------------------------------------------- the lists

SMALL, VOLUME, ODD = (3, 4, 5), (2, 3, 5, 4), (3, 33, 31)
CUT, SEGMENTS = (4, 40, 41), (3, 80, 81)  # rows that are cut in two, and in several
SHAPES = [(), (1,), (63,), (1000,), (3, 32, 32), ODD, VOLUME]
BOXES = ("none", "unit", "per channel", "half open", "below", "infinite", "upper")


def _quick_starts() -> Iterator[Case]:
    for p in NORMS:
        yield _case(_random_start, F32, p, SMALL, 6, "per channel")
        yield _case(_random_start, F64, p, SMALL, 6, "infinite", last=True, seed=-1)
        yield _case(_random_start, F32, p, (63,), 3, "unit", "none", shared=True, base=1)
        yield _case(_random_start, F32, p, (), 3, "half open", "ids", seed=2**63 - 1)
        yield _case(_random_start, F64, p, (1,), 2, "none", "none", keys=False, seed=0)
        yield _case(_random_start, F32, p, (1000,), 2, "below", "none", keys=False)
        yield _case(_random_start, F32, p, VOLUME, 4, "per channel", last=True)
        yield _case(_random_start, F32, p, ODD, 2, "per channel", "none", last=True)
        yield _case(_random_start, F32, p, SMALL, 0, "unit")
        yield _case(_random_start, F32, p, (7,), 10, "none", "none")
        yield _case(_random_start, F64, p, SMALL, 10, "half open", "ids")
        yield _case(_random_start, F32, p, CUT, 2, "per channel")
        yield _case(_random_start, F64, p, (2, 3, 5), 4, "per channel")


def _full_starts() -> Iterator[Case]:
    for dtype, p, shape, at in itertools.product(FLOATS, NORMS, [*SHAPES, SEGMENTS], range(3)):
        samples = (6, 2, 1)[at] if shape != SEGMENTS else 2
        kind = BOXES[(at + len(shape) + 3 * (dtype == F64)) % 7]
        index, keys = ("gather", "none", "ids")[at], at != 1
        yield _case(_random_start, dtype, p, shape, samples, kind, index, at == 0, at % 2, shared=at == 1, keys=keys)
    for p, seed in itertools.product(NORMS, (0, 1, -1, 2**63 - 1, -(2**63), 2**32)):
        yield _case(_random_start, F32, p, (37,), 6, "none", "none", seed=seed)


def _quick_steps() -> Iterator[Case]:
    for p in NORMS:
        yield _case(_pgd_step, F32, F32, p, SMALL, 6, "per channel")
        yield _case(_pgd_step, F32, F32, p, SMALL, 5, "unit", values="special")
        yield _case(_pgd_step, F64, F64, p, SMALL, 6, "infinite", last=True, share=0.5)
        yield _case(_pgd_step, F32, BF16, p, (63,), 3, "unit", "rows", shared=True, base=1)
        yield _case(_pgd_step, F32, F16, p, (1000,), 3, "below", "none", "finite")
        yield _case(_pgd_step, F64, BF16, p, (8,), 6, "none", share=1.0)
        yield _case(_pgd_step, F32, F64, p, (), 5, "half open")
        yield _case(_pgd_step, F64, F32, p, (1,), 5, "per channel", "rows")
        yield _case(_pgd_step, F32, F16, p, VOLUME, 4, "per channel", last=True, share=0.01)
        yield _case(_pgd_step, F32, F32, p, ODD, 2, "per channel", "none", last=True)
        yield _case(_pgd_step, F32, F32, p, SMALL, 0, "unit")
        yield _case(_pgd_step, F64, F16, p, (33,), 1, "none", "none", "finite")
        yield _case(_pgd_step, F32, F32, p, SMALL, 10, "half open", "none")
        yield _case(_pgd_step, F64, F64, p, SMALL, 10, "upper", "rows")
        yield _case(_pgd_step, F64, F64, p, (21,), 6, "none", "none", "finite")
        yield _case(_pgd_step, F32, F32, p, (2500,), 9, "unit", "none", "sparse")
        yield _case(_pgd_step, F32, F32, p, CUT, 3, "per channel", values="sparse")
    yield _case(_pgd_step, F32, F32, INF, SEGMENTS, 3, "per channel", values="sparse")
    yield _case(_pgd_step, F32, F32, INF, (13_001,), 2, "unit", "none", "sparse")
    for p, size in itertools.product(NORMS, (257, 258)):  # an element or two beyond what a small block holds
        yield _case(_pgd_step, F32, F32, p, (size,), 2, "none", "none")
    for dtype, grad, values in ((F32, F32, "finite"), (F64, F64, "special"), (F32, BF16, "plain")):
        yield _case(_pgd_step, dtype, grad, INF, (120,), 10, "positive", "none", values)
    for values in ("scaled", "far"):
        yield _case(_pgd_step, F64, F64, 2.0, (40,), 10, "none", "none", values)
        yield _case(_pgd_step, F64, F64, 2.0, (6200,), 3, "none", "none", values)
    for p in (2.0, 1.0):
        yield _case(_pgd_step, F64, F32, p, (8208,), 2, "none", "none", "crumbs")
    yield _case(_pgd_step, F32, F32, 1.0, (40,), 6, "none", "none", "close", share=0.7, shared=True)
    yield _case(_pgd_step, F64, F64, 1.0, SMALL, 6, "none", "none", "close", last=True, share=0.2, shared=True)
    yield _case(_pgd_step, F32, F32, 1.0, (21,), 6, "none", "none", "finite")


def _full_steps() -> Iterator[Case]:
    ways = (("gather", "plain"), ("none", "finite"), ("rows", "special"))
    for p, dtype, grad, shape, at in itertools.product(NORMS, FLOATS, GRADIENTS, [*SHAPES, SEGMENTS], range(3)):
        if shape == SEGMENTS and (grad not in (F32, F16) or at == 2):
            continue
        samples, (index, values) = (6, 2, 1)[at] if shape != SEGMENTS else 2, ways[at]
        kind = BOXES[(at + len(shape) + GRADIENTS.index(grad)) % 7]
        share = (0.05, 1.0, 0.4)[(at + GRADIENTS.index(grad)) % 3]
        yield _case(
            _pgd_step, dtype, grad, p, shape, samples, kind, index, values, at != 1, at % 2, at == 1, share
        )  # fmt: skip


def _quick_entropies() -> Iterator[Case]:
    yield _case(_truncated_cross_entropy, F32, 10, 14, 0.7)
    yield _case(_truncated_cross_entropy, F32, 2, 13, 0.0)
    yield _case(_truncated_cross_entropy, F64, 3, 13, INF, "none")
    yield _case(_truncated_cross_entropy, F32, 16, 17, 0.7)
    yield _case(_truncated_cross_entropy, BF16, 17, 13, 0.7, base=1)
    yield _case(_truncated_cross_entropy, F16, 33, 13, 1.5)
    yield _case(_truncated_cross_entropy, F32, 1000, 13, 0.0)
    yield _case(_truncated_cross_entropy, F64, 65, 13, -INF)
    yield _case(_truncated_cross_entropy, F32, 9001, 3, 0.7, special=False)
    yield _case(_truncated_cross_entropy, F32, 1001, 13, 0.7)
    yield _case(_truncated_cross_entropy, F32, 5000, 13, 0.7)
    yield _case(_truncated_cross_entropy, F32, 16388, 2, 0.7, special=False)  # too long for a block by one access
    yield _case(_truncated_cross_entropy, F32, 10, 0, 0.7)
    yield _case(_truncated_cross_entropy, F64, 9, 13, 0.7)
    yield _case(_truncated_cross_entropy, F32, 3, 1, 0.7, "none")


def _full_entropies() -> Iterator[Case]:
    for dtype, classes, at in itertools.product(GRADIENTS, CLASSES, range(3)):
        rows, index, cut = ((14, "gather", 0.7), (13, "none", 0.0), (1, "none", INF))[at]
        yield _case(_truncated_cross_entropy, dtype, classes, rows, cut, index, base=at % 2)


CLASSES = [2, 3, 4, 10, 15, 16, 17, 33, 64, 1000, 1025, 10_000, 100_000]


def _quick_margins() -> Iterator[Case]:
    for dlr, targeted in itertools.product((False, True), (False, True)):
        yield _case(_margin_loss, F32, 10, 14, dlr, targeted)
        yield _case(_margin_loss, F32, 4 if dlr else 2, 13, dlr, targeted, "none")
        yield _case(_margin_loss, F64, 17, 13, dlr, targeted, base=1)
        yield _case(_margin_loss, BF16, 33, 13, dlr, targeted)
        yield _case(_margin_loss, F16, 1000, 13, dlr, targeted)
        yield _case(_margin_loss, F32, 9001, 3, dlr, targeted, special=False)
    yield _case(_margin_loss, F32, 3, 13, True, False)
    yield _case(_margin_loss, F32, 10, 0, False, False)
    yield _case(_margin_loss, F32, 3, 1, False, False, "none")
    yield _case(_margin_loss, F64, 9, 13, True, True)


def _full_margins() -> Iterator[Case]:
    for dtype, classes, at, dlr, targeted in itertools.product(
        GRADIENTS, CLASSES, range(2), (False, True), (False, True)
    ):
        if not dlr or classes >= 3 + targeted:
            rows, index = ((14, "gather"), (13, "none"))[at]
            yield _case(_margin_loss, dtype, classes, rows, dlr, targeted, index, base=at)


def _quick_divergences() -> Iterator[Case]:
    for both in (True, False):
        yield _case(_kl_divergence, F32, 10, 14, both)
        yield _case(_kl_divergence, F32, 2, 13, both, "none")
        yield _case(_kl_divergence, F32, 16, 17, both)
        yield _case(_kl_divergence, F64, 17, 13, both, base=1)
        yield _case(_kl_divergence, BF16, 33, 13, both)
        yield _case(_kl_divergence, F16, 1000, 13, both)
        yield _case(_kl_divergence, F32, 9001, 3, both, special=False)
        yield _case(_kl_divergence, F32, 1001, 13, both)
        yield _case(_kl_divergence, F32, 10, 0, both)
    yield _case(_kl_divergence, F64, 9, 13, True)
    yield _case(_kl_divergence, F64, 4104, 14, True)  # too long for a chip
    yield _case(_kl_divergence, F32, 4104, 14, True)
    yield _case(_kl_divergence, F32, 5000, 2, True, special=False)
    yield _case(_kl_divergence, F64, 4101, 2, False, special=False, base=1)
    yield _case(_kl_divergence, F32, 3, 1, False, "none")


def _full_divergences() -> Iterator[Case]:
    for dtype, classes, at, both in itertools.product(GRADIENTS, CLASSES, range(3), (True, False)):
        rows, index = ((14, "gather"), (13, "none"), (1, "none"))[at]
        yield _case(_kl_divergence, dtype, classes, rows, both, index, base=at % 2)


def _quick_retirements() -> Iterator[Case]:
    for final in (False, True):
        yield _case(_retire, F32, SMALL, 9, "right,over", final)
        yield _case(_retire, F32, (63,), 9, "over", final, base=1)
        yield _case(_retire, F64, SMALL, 9, "right", final, last=True)
        yield _case(_retire, F64, (), 70, "over", final)
        yield _case(_retire, F32, ODD, 4, "over", final, "none", last=True)
        yield _case(_retire, F32, (5,), 9, "", final, "none")
        yield _case(_retire, F32, (8,), 0, "over", final, "none")
    yield _case(_retire, F32, (4,), 1100, "over", False)
    yield _case(_retire, F32, (4,), 1, "over", False, "none")
    yield _case(_retire, F32, (5,), 9, "right,over", False, "rows")
    yield _case(_retire, F32, (5,), 9, "over", True, "rows")
    yield _case(_retire, F64, (5,), 9, "right,over", False, "ids")


def _full_retirements() -> Iterator[Case]:
    flags = ("right,over", "over", "right", "")
    for dtype, shape, at, final in itertools.product(FLOATS, SHAPES, range(4), (False, True)):
        rows, index = ((9, "gather"), (1, "none"), (9, "none"), (130, "gather"))[at]
        yield _case(_retire, dtype, shape, rows, flags[(at + len(shape)) % 4], final, index, at != 1, at % 2)
    for rows, shape in ((2500, (2,)), (5, (3, 160, 161))):
        yield _case(_retire, F32, shape, rows, "over", False)


_LISTS: dict[str, tuple[Callable[[], Iterator[Case]], Callable[[], Iterator[Case]]]] = {
    "random_start": (_quick_starts, _full_starts),
    "pgd_step": (_quick_steps, _full_steps),
    "truncated_cross_entropy": (_quick_entropies, _full_entropies),
    "margin_loss": (_quick_margins, _full_margins),
    "kl_divergence": (_quick_divergences, _full_divergences),
    "retire": (_quick_retirements, _full_retirements),
}


def cases(name: str, size: str) -> Iterator[Case]:
    """The cases of one operator: "quick", or "full", which holds the quick ones too."""
    quick, full = _LISTS[name]
    return {"quick": quick, "full": lambda: itertools.chain(quick(), full())}[size]()


# ---------------------------------------------------------------------------------------- out of range

WILD = (-1, 2**62, -(2**62), 2**31, -2)
FIRST_WILD = {"ids": 2, "rows": 0, "target": 0, "other": 1}  # every other place from there on; some stay as they were


def _wild(case: Case) -> Iterator[Case]:
    """The case with indices and labels beyond its operands, each vector by itself and then all of them."""
    vectors: dict[str, Tensor] = {}
    for name, limit in case.limits().items():
        vector = case[name].clone()
        places = vector[FIRST_WILD[name] :: 2]
        beyond = torch.tensor((limit, *WILD))[: len(places)]
        places[: len(beyond)] = beyond
        if len(beyond):
            vectors[name] = vector
    for changed in [[name] for name in vectors] + [list(vectors)] * (len(vectors) > 1):
        args = dict(case.named) | {name: vectors[name] for name in changed}
        yield Case(case.name, f"{case.label}-wild-{'+'.join(changed)}", tuple(args.values()), case.offset)


def wild_cases(name: str) -> Iterator[Case]:
    """Indices and labels that the contract refuses, for bodies that look at no values; the reference knows what comes
    of them: see `run_reference`."""
    for case in cases(name, "quick"):
        yield from _wild(case)
