"""Random calls: the compiled bodies against the reference by the shared rules, and what must hold whatever the numbers.

The numbers of a call come from the seed in its description, so the falsifying example that hypothesis prints is all
that a reproduction needs. FASTSAL_EXAMPLES=20 draws twenty times as many, others on every run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import Case, answer, raw, run_reference
from kernel_cases import disagreement
from operands import BODIES, INF, around, box, clean, gradients, laid_out, scores
from torch import Tensor

from fastsal.backends import body_of, implementation
from fastsal.checks import FLOATS, GRADIENTS, NORMS, channel_view
from fastsal.operators import OPERATORS

pytestmark = pytest.mark.usefixtures("one_thread")
TIMES = int(os.environ.get("FASTSAL_EXAMPLES", "1"))
EXAMPLES = {
    "random_start": 300,
    "pgd_step": 800,
    "truncated_cross_entropy": 250,
    "margin_loss": 300,
    "kl_divergence": 250,
    "retire": 250,
}


def often(count: int) -> settings:
    return settings(max_examples=count * TIMES, derandomize=TIMES == 1, deadline=None, database=None, print_blob=True)


# ------------------------------------------------------------------------------------ descriptions of calls

seeds = st.integers(0, 2**31)
tiny = [0.0, 1e-45, 1e-40, 1e-30, 1e-7, 3e-8, 8 / 255, 1.0, 1e30]
radii = st.lists(st.sampled_from(tiny) | st.floats(0, 4, width=32), min_size=1, max_size=4)
steps = st.lists(st.sampled_from([-0.0, *tiny]) | st.floats(-2, 2, width=32), min_size=1, max_size=4)
layouts = st.sampled_from(["contiguous", "contiguous", "channels_last", "strided", "permuted"])
shapes = (
    st.lists(st.integers(1, 5), max_size=4).map(tuple)
    | st.sampled_from([(0,), (2, 0, 3), (7,), (8,), (9,), (16,), (17,), (63,), (64,), (257,), (3, 16, 16)])
    | st.tuples(st.integers(1, 300))
)
boxes = st.sampled_from(["none", "unit", "per channel", "half open", "infinite"])
index = st.sampled_from(["none", "rows", "ids", "both"])


class Points(NamedTuple):
    """A start or a step."""

    dtype: torch.dtype
    grad: torch.dtype
    p: float
    shape: tuple[int, ...]
    samples: int
    index: str
    box: str
    eps: list[float]
    alpha: list[float]
    share: float
    finite: bool
    layouts: tuple[str, str, str]
    seed: int


class Logits(NamedTuple):
    """A loss: `specials` are (row, class, value) of the logits; class 4, 9, ... stands for the whole row."""

    dtype: torch.dtype
    classes: int
    rows: int
    index: str
    scale: float
    specials: list[tuple[int, int, float]]
    cut: float
    variant: bool
    targeted: bool
    layout: str
    seed: int


class Leaving(NamedTuple):
    """A call of retire."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    rows: int
    index: str
    right: bool
    over: bool
    last: bool
    step: int
    layouts: tuple[str, str]
    seed: int


points = st.builds(
    Points, st.sampled_from(FLOATS), st.sampled_from(GRADIENTS), st.sampled_from(NORMS), shapes, st.integers(0, 5),
    index, boxes, radii, steps, st.floats(0, 1), st.booleans(), st.tuples(layouts, layouts, layouts), seeds,
)  # fmt: skip
classes = st.integers(2, 40) | st.sampled_from([255, 256, 257, 1000])
specials = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 1000), st.sampled_from([INF, -INF, math.nan, 0.0, -0.0, 1e4, -1e4])),
    max_size=6,
)
cuts = st.floats(0, 8) | st.sampled_from([0.0, INF, -INF, -1.0])
logits = st.builds(
    Logits, st.sampled_from(GRADIENTS), classes, st.integers(0, 8), index, st.sampled_from([0.1, 1.0, 4.0, 100.0]),
    specials, cuts, st.booleans(), st.booleans(), layouts, seeds,
)  # fmt: skip
leaving = st.builds(
    Leaving, st.sampled_from(FLOATS), shapes, st.integers(0, 20), index, st.booleans(), st.booleans(), st.booleans(),
    st.integers(0, 2**40), st.tuples(layouts, layouts), seeds,
)  # fmt: skip


# ---------------------------------------------------------------------------------- calls from descriptions


def stored(value: Tensor, layout: str) -> Tensor:
    """The same values in another order of memory."""
    if layout == "permuted":
        backwards = tuple(range(value.dim()))[::-1]
        return value.permute(backwards).contiguous().permute(backwards)
    return laid_out(value, layout)


def cycled(values: list[float], count: int, dtype: torch.dtype) -> Tensor:
    """One value for all, or one per sample."""
    return torch.tensor(values * (count if len(values) > 1 else 1), dtype=dtype)[: count if len(values) > 1 else 1]


def bounds(spec: Points) -> tuple[Tensor | None, Tensor | None]:
    channels = spec.shape[0] if spec.shape else 1
    if spec.box != "infinite":
        return box(spec.box, channels, spec.dtype)
    low, high = box("per channel", channels, spec.dtype)
    assert low is not None and high is not None
    low[:1], high[-1:] = -INF, INF
    return low, high


def of_points(name: str, spec: Points) -> Case:
    torch.manual_seed(spec.seed)
    low, high = bounds(spec)
    kind = "per channel" if spec.box == "infinite" else spec.box
    x = clean(spec.samples, spec.shape, spec.dtype, kind)
    samples, shape, indexed = spec.samples, spec.shape, spec.samples > 0
    eps, alpha = cycled(spec.eps, samples, spec.dtype), cycled(spec.alpha, samples, spec.dtype)
    rows = ids = None
    count = samples if spec.index in ("none", "rows") or not indexed else samples + 3
    slots = count if spec.index in ("none", "ids") or not indexed else count + 2
    if indexed and spec.index in ("rows", "both"):
        rows = torch.randint(slots, (count,))
    if indexed and spec.index in ("ids", "both"):
        ids = torch.randint(-1, samples, (count,))
    x = stored(x, spec.layouts[0])
    if name == "random_start":
        names = torch.randint(-(2**63), 2**63 - 1, (samples,)) if spec.finite else None
        seed = torch.tensor(spec.seed * 0x9E3779B97F4A7C1 % 2**63)
        return Case(name, str(spec), (x, eps, seed, names, low, high, ids, spec.p))
    owner = torch.arange(slots) % max(samples, 1)
    if rows is not None:
        owner[rows] = torch.arange(count) if ids is None else ids.clamp(min=0)
    radius = eps if len(eps) == 1 else eps[owner]
    size = max(math.prod(shape), 1)
    each = (-1, *[1] * len(shape))
    within = x[owner] + radius.view(each) * (2 * torch.rand(slots, *shape, dtype=spec.dtype) - 1) / (
        1 if spec.p == INF else size ** (1 / spec.p)
    )
    here = around(x[owner], radius, finite=spec.p == 1.0)
    here = torch.where(torch.rand(slots).view(each) < 0.5, here, within)
    grad = gradients(slots, shape, spec.grad, spec.finite)
    topk = max(1, round(spec.share * size))
    operands = [x, stored(here, spec.layouts[1]), stored(grad, spec.layouts[2])]
    return Case(name, str(spec), (*operands, eps, alpha, low, high, rows, ids, spec.p, topk))


def of_logits(name: str, spec: Logits) -> Case:
    torch.manual_seed(spec.seed)
    fewest = 2 if name != "margin_loss" or not spec.variant else 4 if spec.targeted else 3
    count, classes = spec.rows, max(spec.classes, fewest)
    samples = count if spec.index == "none" else count + 2
    ids = None if spec.index == "none" else torch.randint(-1, samples, (count,))
    target = torch.randint(classes, (samples,))
    values = (scores(count, classes, torch.float64) if spec.seed % 2 else torch.randn(count, classes).double()) * (
        spec.scale if spec.seed % 2 == 0 else 1
    )
    values = values.to(spec.dtype)
    if name == "kl_divergence":
        first = torch.randn(samples, classes).mul(spec.scale).to(spec.dtype)
        of = torch.arange(count) if ids is None else ids.clamp(min=0)
        values = torch.randn(count, classes).mul(spec.scale).to(spec.dtype)
        for row, at, value in spec.specials:
            if row < count:
                # where adv has no probability, clean has none either, or so much that it does not underflow
                if value != -INF or spec.scale < 10:
                    values[row, at % classes] = value if abs(value) != 1e4 else 1.0
                if at % 3 or value == -INF:
                    first[of[row], at % classes] = value if abs(value) != 1e4 else 1.0
        return Case(name, str(spec), (stored(first, spec.layout), stored(values, spec.layout), ids, spec.variant))
    for row, at, value in spec.specials:
        if row < count and at % 5 == 4:
            values[row] = value
            target[row if ids is None else ids[row].clamp(min=0)] = at % 3 * (classes - 1) // 2  # a tie, won or lost
        elif row < count:
            values[row, at % classes] = value
    values = stored(values, spec.layout)
    if name == "truncated_cross_entropy":
        return Case(name, str(spec), (values, target, ids, spec.cut))
    other = (target + torch.randint(1, classes, (samples,))) % classes if spec.targeted else None
    return Case(name, str(spec), (values, target, other, ids, spec.variant))


def of_leaving(name: str, spec: Leaving) -> Case:
    torch.manual_seed(spec.seed)
    count = spec.rows
    samples = count + 3 if spec.index in ("ids", "both") else count
    slots = count + 2 if spec.index in ("rows", "both") else count
    rows = torch.randint(slots, (count,)) if spec.index in ("rows", "both") else None
    ids = torch.randperm(samples)[:count] if spec.index in ("ids", "both") else None
    if ids is not None:
        ids[torch.rand(count) < 0.2] = -1
    previous, current = clean(slots, spec.shape, spec.dtype), clean(count, spec.shape, spec.dtype)
    result = torch.full((samples, *spec.shape), 7, dtype=spec.dtype)
    flags = [torch.rand(count) < share if given else None for share, given in ((0.8, spec.right), (0.4, spec.over))]
    into = laid_out(result, "channels_last" if spec.layouts[0] == "channels_last" else "contiguous")
    operands = [stored(previous, spec.layouts[0]), stored(current, spec.layouts[1])]
    stop = torch.full((samples,), -1)
    return Case(name, str(spec), (*operands, *flags, rows, ids, into, stop, spec.step, spec.last))


CALLS: dict[str, tuple[st.SearchStrategy[Any], Callable[[str, Any], Case]]] = {
    "random_start": (points, of_points),
    "pgd_step": (points, of_points),
    "truncated_cross_entropy": (logits, of_logits),
    "margin_loss": (logits, of_logits),
    "kl_divergence": (logits, of_logits),
    "retire": (leaving, of_leaving),
}
each_operator = pytest.mark.parametrize("name", OPERATORS)


def contract(name: str, body: str) -> Callable[..., None]:
    """A body behind the contract's checks, which bring operands into one order of memory."""
    operator = OPERATORS[name]
    call = implementation(operator, body_of(name, body), body == "reference")
    taken = len(operator.argument_names)

    def run(*operands: Any) -> None:
        call(*operands[:taken], **dict(zip(operator.out_names, operands[taken:], strict=True)))

    return run


# ------------------------------------------------------------------------------------------------- agreement


def test_there_are_enough_of_them() -> None:
    assert set(EXAMPLES) == set(OPERATORS) and sum(EXAMPLES.values()) >= 2000


@pytest.mark.parametrize("body", [body for body in BODIES if body != "reference"] or ["reference"])
@each_operator
def test_random_calls_agree_with_the_reference(name: str, body: str) -> None:
    strategy, build = CALLS[name]
    call, seen = contract(name, body), 0

    @often(EXAMPLES[name])
    @given(strategy)
    def agrees(spec: Any) -> None:
        nonlocal seen
        seen += 1
        case = build(name, spec)
        problem = disagreement(case, answer(case, call), run_reference(case))
        assert problem is None, problem

    agrees()
    assert seen >= EXAMPLES[name]


# ------------------------------------------------------------------------------------------------ properties


def length(moved: list[Fraction], p: float) -> Fraction:
    """The norm of a row, or its square for p = 2, without rounding."""
    if p == INF:
        return max(map(abs, moved), default=Fraction(0))
    return sum((d * d if p == 2 else abs(d) for d in moved), Fraction(0))


@often(120)
@given(points, st.integers(1, 3))
def test_a_start_and_some_steps_stay_in_ball_and_box(spec: Points, count: int) -> None:
    spec = spec._replace(index="none", layouts=("contiguous",) * 3, shape=spec.shape[:3])
    case = of_points("pgd_step", spec)
    x, eps, low, high = case["x"], case["eps"], case["clip_min"], case["clip_max"]
    here = torch.ops.fastsal.random_start(x, eps, torch.tensor(spec.seed), None, low, high, None, spec.p)
    for _ in range(count):
        grad = gradients(spec.samples, spec.shape, spec.grad, spec.finite)
        here, _ = torch.ops.fastsal.pgd_step(x, here, grad, *case.args[3:])
        assert here.isfinite().all()
        assert low is None or (here >= channel_view(low, x)).all()
        assert high is None or (here <= channel_view(high, x)).all()
        for old, new, radius in zip(x.tolist(), here.tolist(), eps.expand(len(x)).tolist(), strict=True):
            row = [torch.tensor(values, dtype=torch.float64).flatten().tolist() for values in (old, new)]
            moved = [Fraction(b) - Fraction(a) for a, b in zip(*row, strict=True)]
            assert length(moved, spec.p) <= (Fraction(radius) ** 2 if spec.p == 2 else Fraction(radius))


@often(80)
@given(points)
def test_projecting_twice_is_projecting_once(spec: Points) -> None:
    """Bit for bit in Linf; in L2 and L1 what is inside by a millionth of eps does not move."""
    spec = spec._replace(index="none", alpha=[0.0], finite=True)
    case = of_points("pgd_step", spec)
    grad = torch.zeros_like(case["grad"])
    once, _ = torch.ops.fastsal.pgd_step(case["x"], case["x_adv"], grad, *case.args[3:])
    twice, _ = torch.ops.fastsal.pgd_step(case["x"], once, grad, *case.args[3:])
    if spec.p == INF:
        assert torch.equal(once, twice)
    else:
        near = 2e-6 * case["eps"].double().view(-1, *[1] * len(spec.shape))
        apart = (once.double() - twice.double()).abs() > near
        assert torch.equal(once[apart].nextafter(twice[apart]), twice[apart])


def reordered(case: Case, order: Tensor) -> Case:
    """The same call for the rows `order` of its result alone, in that order."""
    named = case.named
    if case.name in ("random_start", "pgd_step"):
        given_rows = named.get("rows")
        count = len(named["x"] if case.name == "random_start" else named["x_adv"])
        if case.name == "pgd_step":
            named["rows"] = (torch.arange(count) if given_rows is None else given_rows)[order]
        count = count if given_rows is None else len(given_rows)
    else:
        leading = "adv" if case.name == "kl_divergence" else "logits"
        count = len(named[leading])
        named[leading] = named[leading][order]
    named["ids"] = (torch.arange(count) if named["ids"] is None else named["ids"])[order]
    return Case(case.name, case.label, tuple(named.values()))


def renumbered(case: Case, order: Tensor) -> Case:
    """The same call with its samples stored in another order."""
    named = case.named
    first = {"kl_divergence": "clean", "truncated_cross_entropy": "target", "margin_loss": "target"}
    samples = len(named[first.get(case.name, "x")])
    order = order[order < samples]
    place = torch.empty_like(order)
    place[order] = torch.arange(samples)
    rows = {"kl_divergence": "adv", "pgd_step": "x_adv", "random_start": "x"}.get(case.name, "logits")
    count = len(named[rows] if named.get("rows") is None else named["rows"])
    ids = torch.arange(count) if named["ids"] is None else named["ids"]
    named["ids"] = torch.where(ids < 0, -1, place[ids.clamp(min=0)]) if samples else ids
    if case.name == "random_start" and named["sample_ids"] is None:
        named["sample_ids"] = torch.arange(samples)
    for label in ("x", "sample_ids", "clean", "target", "other"):
        if named.get(label) is not None:
            named[label] = named[label][order]
    for label in ("eps", "alpha"):
        if label in named and len(named[label]) > 1:
            named[label] = named[label][order]
    return Case(case.name, case.label, tuple(named.values()))


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "retire"])
def test_no_row_knows_of_its_neighbours(name: str) -> None:
    """A batch cut in any way, its rows in any order and its samples stored in any order give the same bits."""
    strategy, build = CALLS[name]

    @often(60)
    @given(strategy)
    def holds(spec: Any) -> None:
        case = build(name, spec)
        call = contract(name, BODIES[-1])
        whole = answer(case, call)
        torch.manual_seed(spec.seed)
        order = torch.randperm(len(whole[0]))
        cut = int(torch.randint(len(order) + 1, ()))
        for part in (order[:cut], order[cut:], torch.arange(cut)):
            for got, expected in zip(answer(reordered(case, part), call), whole, strict=True):
                assert got.shape[0] == 0 or torch.equal(raw(got), raw(expected[part]))
        for got, expected in zip(answer(renumbered(case, torch.randperm(20)), call), whole, strict=True):
            assert torch.equal(raw(got), raw(expected))

    holds()


@often(60)
@given(leaving)
def test_retire_in_another_order_writes_the_same_and_keeps_that_order(spec: Leaving) -> None:
    case = of_leaving("retire", spec)
    call = contract("retire", BODIES[-1])
    kept, names, live, result, stop = answer(case, call)
    named, order = case.named, torch.randperm(spec.rows)
    for label in ("current", "right", "over"):
        if named[label] is not None:
            named[label] = named[label][order]
    for label in ("rows", "ids"):
        named[label] = (torch.arange(spec.rows) if named[label] is None else named[label])[order]
    again = answer(Case("retire", case.label, tuple(named.values())), call)
    assert torch.equal(raw(again[3]), raw(result)) and torch.equal(again[4], stop) and torch.equal(again[2], live)
    count = int(live)
    survives = torch.zeros(spec.rows, dtype=torch.bool)
    survives[kept[:count]] = True
    assert torch.equal(order[again[0][:count]], order[survives[order]])
    assert torch.equal(again[1][:count], named["ids"][survives[order]])
    assert not kept[count:].any() and (names[count:] == -1).all()
