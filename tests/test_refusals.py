"""What the contract refuses: the same error on every body, through torch.ops, and without a trace."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from operands import BODIES, INF, arguments, run, same_bits, variants
from torch import Tensor

from fastsal.checks import NORMS
from fastsal.operators import OPERATORS

pytestmark = pytest.mark.usefixtures("one_thread")
each_operator = pytest.mark.parametrize("name", OPERATORS)
each_body = pytest.mark.parametrize("body", BODIES)


def packet(name: str) -> Any:
    return getattr(torch.ops.fastsal, name).default


def on_meta(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def same(got: Tensor, expected: Tensor) -> bool:
    return same_bits(got, expected) if got.is_floating_point() else torch.equal(got, expected)


INDEX = torch.tensor([4, -1, 0, 5])
ALL = {"other": None, "dlr": True}  # DLR that looks for the best class itself
SHAPES = [  # operator, argument at fault, what is done to it (or to several), error, what was expected, what came
    ("random_start", "x", lambda x: x[0, 0, 0, 0], ValueError, "a batch dimension", "()"),
    ("random_start", "x", lambda x: x.half(), TypeError, "torch.float32 or torch.float64", "torch.float16"),
    ("random_start", "eps", lambda e: e[:2], ValueError, "shape (1,) or (6,)", "(2,)"),
    ("random_start", "eps", lambda e: e[0], ValueError, "shape (1,) or (6,)", "()"),
    ("random_start", "eps", lambda e: e.double(), TypeError, "torch.float32", "torch.float64"),
    ("random_start", "seed", lambda s: s.int(), TypeError, "torch.int64", "torch.int32"),
    ("random_start", "seed", lambda s: s.repeat(2), ValueError, "one int64", "(2,)"),
    ("random_start", "sample_ids", INDEX, ValueError, "shape (6,)", "(4,)"),
    ("random_start", "clip_min", torch.zeros(2), ValueError, "shape (1,) or (3,)", "(2,)"),
    ("random_start", "clip_max", torch.ones(1, dtype=torch.float64), TypeError, "torch.float32", "torch.float64"),
    ("random_start", "ids", INDEX.int(), TypeError, "torch.int64", "torch.int32"),
    ("random_start", "ids", INDEX.view(2, 2), ValueError, "shape (M,)", "(2, 2)"),
    ("random_start", "p", 0.0, ValueError, "inf, 2.0 or 1.0", "0.0"),
    ("random_start", "p", math.nan, ValueError, "inf, 2.0 or 1.0", "nan"),
    ("pgd_step", "x", lambda x: x.bfloat16(), TypeError, "torch.float32 or torch.float64", "torch.bfloat16"),
    ("pgd_step", "x_adv", lambda a: a[..., :4], ValueError, "shape (5, 3, 4, 5)", "(5, 3, 4, 4)"),
    ("pgd_step", "x_adv", lambda a: a.double(), TypeError, "torch.float32", "torch.float64"),
    ("pgd_step", "x_adv", lambda a: a[0, 0, 0, 0], ValueError, "a batch dimension", "()"),
    ("pgd_step", "grad", lambda g: g[:4], ValueError, "shape (5, 3, 4, 5)", "(4, 3, 4, 5)"),
    ("pgd_step", "grad", lambda g: g.int(), TypeError, "torch.float16", "torch.int32"),
    ("pgd_step", "eps", lambda e: e[:5], ValueError, "shape (1,) or (6,)", "(5,)"),
    ("pgd_step", "alpha", lambda e: e.view(2, 3), ValueError, "shape (1,) or (6,)", "(2, 3)"),
    ("pgd_step", "clip_min", torch.zeros(3, 1), ValueError, "one per channel", "(3, 1)"),
    ("pgd_step", "clip_max", torch.ones(4), ValueError, "shape (1,) or (3,)", "(4,)"),
    ("pgd_step", "rows", INDEX.view(2, 2), ValueError, "shape (M,)", "(2, 2)"),
    ("pgd_step", "ids", INDEX[:3], ValueError, "shape (4,)", "(3,)"),
    ("pgd_step", "ids", None, ValueError, "one id per row when x has 6 samples", "None"),
    ("pgd_step", "p", 3.0, ValueError, "inf, 2.0 or 1.0", "3.0"),
    ("pgd_step", "p", -INF, ValueError, "inf, 2.0 or 1.0", "-inf"),
    ("pgd_step", "topk", {"p": 1.0, "topk": 0}, ValueError, "1 to 60, the elements of a row", "0"),
    ("pgd_step", "topk", {"p": 1.0, "topk": 61}, ValueError, "1 to 60, the elements of a row", "61"),
    ("pgd_step", "topk", {"p": 1.0, "topk": -(2**62)}, ValueError, "1 to 60, the elements of a row", str(-(2**62))),
    ("truncated_cross_entropy", "logits", lambda z: z[0], ValueError, "shape (M, C) with 2 <= C <= 100000", "(7,)"),
    ("truncated_cross_entropy", "logits", lambda z: z[:, :1], ValueError, "2 <= C <= 100000", "(4, 1)"),
    ("truncated_cross_entropy", "logits", torch.zeros(4, 100_001), ValueError, "2 <= C <= 100000", "(4, 100001)"),
    ("truncated_cross_entropy", "logits", lambda z: z.long(), TypeError, "torch.bfloat16", "torch.int64"),
    ("truncated_cross_entropy", "target", lambda y: y.int(), TypeError, "torch.int64", "torch.int32"),
    ("truncated_cross_entropy", "target", lambda y: y.view(2, 3), ValueError, "shape (M,)", "(2, 3)"),
    ("truncated_cross_entropy", "ids", INDEX[:3], ValueError, "shape (4,)", "(3,)"),
    ("truncated_cross_entropy", "target", lambda y: y.repeat(2).view(3, 4), ValueError, "shape (M,)", "(3, 4)"),
    ("margin_loss", "logits", lambda z: z[:, :0], ValueError, "2 <= C <= 100000", "(4, 0)"),
    ("margin_loss", "target", lambda y: y.float(), TypeError, "torch.int64", "torch.float32"),
    ("margin_loss", "other", lambda y: y[:5], ValueError, "shape (6,)", "(5,)"),
    ("margin_loss", "ids", INDEX.double(), TypeError, "torch.int64", "torch.float64"),
    ("margin_loss", "logits", ALL | {"logits": lambda z: z[:, :2]}, ValueError, "3 <= C <= 100000 for DLR", "(4, 2)"),
    ("margin_loss", "logits", {"dlr": True, "logits": lambda z: z[:, :3]}, ValueError, "4 <= C <= 100", "(4, 3)"),
    ("kl_divergence", "adv", lambda z: z[0], ValueError, "shape (M, C) with 2 <= C <= 100000", "(7,)"),
    ("kl_divergence", "adv", lambda z: z[:, :1], ValueError, "2 <= C <= 100000", "(4, 1)"),
    ("kl_divergence", "adv", torch.zeros(4, 100_001), ValueError, "2 <= C <= 100000", "(4, 100001)"),
    ("kl_divergence", "adv", lambda z: z.long(), TypeError, "torch.bfloat16", "torch.int64"),
    ("kl_divergence", "clean", lambda z: z.double(), TypeError, "torch.float32", "torch.float64"),
    ("kl_divergence", "clean", lambda z: z[:, :6], ValueError, "7 classes, as adv has", "(6, 6)"),
    ("kl_divergence", "clean", lambda z: z[0], ValueError, "shape (M, C)", "(7,)"),
    ("kl_divergence", "ids", INDEX[:3], ValueError, "shape (4,)", "(3,)"),
    ("kl_divergence", "ids", INDEX.int(), TypeError, "torch.int64", "torch.int32"),
    ("kl_divergence", "ids", None, ValueError, "one id per row when clean has 6 samples", "None"),
    ("retire", "previous", lambda x: x[..., :3], ValueError, "shape (5, 3, 4, 5)", "(5, 3, 4, 3)"),
    ("retire", "previous", lambda x: x.double(), TypeError, "torch.float32", "torch.float64"),
    ("retire", "current", lambda x: x.half(), TypeError, "torch.float32 or torch.float64", "torch.float16"),
    ("retire", "right", lambda r: r.int(), TypeError, "torch.bool", "torch.int32"),
    ("retire", "over", lambda o: o[:2], ValueError, "shape (4,)", "(2,)"),
    ("retire", "rows", None, ValueError, "one slot of previous per row of current (4)", "None"),
    ("retire", "ids", None, ValueError, "one id per row when result has 6 samples", "None"),
    ("retire", "ids", INDEX.int(), TypeError, "torch.int64", "torch.int32"),
    ("retire", "result", lambda r: r[:, :2], ValueError, "shape (6, 3, 4, 5)", "(6, 2, 4, 5)"),
    ("retire", "result", lambda r: r.double(), TypeError, "torch.float32", "torch.float64"),
    ("retire", "result", lambda r: r.transpose(2, 3).contiguous().transpose(2, 3), ValueError, "contiguous", "(60"),
    ("retire", "stop", lambda s: s[:4], ValueError, "shape (6,)", "(4,)"),
    ("retire", "stop", lambda s: s.int(), TypeError, "torch.int64", "torch.int32"),
    ("retire", "stop", lambda s: s.repeat(2)[::2], ValueError, "contiguous", "(2,)"),
]
NEGATIVE, ABSENT = torch.tensor([0.1, -0.1, 0, 0, 0, 0]), torch.tensor([4, -1, 0, 6])
VALUES = [
    ("random_start", "eps", NEGATIVE, ValueError, "finite and >= 0", "-0.1"),
    ("random_start", "eps", NEGATIVE * math.nan, ValueError, "finite and >= 0", "nan at position 0"),
    ("random_start", "eps", torch.tensor([INF]), ValueError, "finite and >= 0", "inf at position 0"),
    ("random_start", "ids", ABSENT, ValueError, "values in [-1, 6)", "6 at position 3"),
    ("random_start", "ids", torch.tensor([-2, 0]), ValueError, "values in [-1, 6)", "-2 at position 0"),
    ("random_start", "x", lambda x: x.index_fill(0, torch.tensor(5), 9), ValueError, "finite values in [cl", "row 5"),
    ("pgd_step", "eps", NEGATIVE, ValueError, "finite and >= 0", "position 1"),
    ("pgd_step", "alpha", NEGATIVE / 0, ValueError, "finite", "inf at position 0"),
    ("pgd_step", "rows", torch.tensor([0, 1, 5, 2]), ValueError, "values in [0, 5)", "5 at position 2"),
    ("pgd_step", "rows", torch.tensor([0, -1, 3, 2]), ValueError, "values in [0, 5)", "-1 at position 1"),
    ("pgd_step", "ids", ABSENT, ValueError, "values in [-1, 6)", "6 at position 3"),
    ("pgd_step", "x", lambda x: x * math.nan, ValueError, "finite values in [clip_min, clip_max]", "row 4"),
    ("pgd_step", "x", lambda x: x - 3, ValueError, "finite values in [clip_min, clip_max]", "row 4"),
    ("truncated_cross_entropy", "target", torch.arange(6) + 2, ValueError, "values in [0, 7)", "7 at position 5"),
    ("truncated_cross_entropy", "target", torch.arange(6) - 1, ValueError, "values in [0, 7)", "-1 at position 0"),
    ("truncated_cross_entropy", "ids", ABSENT, ValueError, "values in [-1, 6)", "6 at position 3"),
    ("margin_loss", "target", torch.arange(6) + 2, ValueError, "values in [0, 7)", "7 at position 5"),
    ("margin_loss", "other", torch.arange(6) - 1, ValueError, "values in [0, 7)", "-1 at position 0"),
    ("margin_loss", "other", torch.tensor([1, 0, 2, 4, 5, 6]), ValueError, "a class other than target", "2 at positi"),
    ("margin_loss", "ids", ABSENT - 3, ValueError, "values in [-1, 6)", "-4 at position 1"),
    ("kl_divergence", "ids", ABSENT, ValueError, "values in [-1, 6)", "6 at position 3"),
    ("kl_divergence", "ids", ABSENT - 3, ValueError, "values in [-1, 6)", "-4 at position 1"),
    ("retire", "rows", torch.tensor([0, 1, 5, 2]), ValueError, "values in [0, 5)", "5 at position 2"),
    ("retire", "ids", ABSENT, ValueError, "values in [-1, 6)", "6 at position 3"),
]


def refused(call: Any, args: list[Any]) -> Exception:
    """The error of a call, which left every argument as it was."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    before, versions = copy.deepcopy(tensors), [a._version for a in tensors]
    with pytest.raises((ValueError, TypeError)) as caught:
        call(*args)
    assert versions == [a._version for a in tensors]
    if tensors[0].device.type == "cpu":
        assert all(map(same, tensors, before))
    return caught.value


@pytest.mark.parametrize(
    ("name", "argument", "change", "kind", "expected", "got", "variant", "on_values"),
    [pytest.param(*case, None, False, id=f"{case[0]}-{case[1]}-{case[5]}") for case in SHAPES]
    + [
        pytest.param(*case, variant, True, id=f"{case[0]}-{variant}-{case[1]}-{case[5]}")
        for case in VALUES
        for variant in variants(case[0])
    ],
)
def test_a_refusal_is_the_same_everywhere_and_leaves_no_trace(
    name: str,
    argument: str,
    change: Any,
    kind: type[Exception],
    expected: str,
    got: str,
    variant: Any,
    on_values: bool,
) -> None:
    named = dict(zip(OPERATORS[name].argument_names, arguments(name, variant=variant), strict=True))
    for label, value in (change if isinstance(change, dict) else {argument: change}).items():
        named[label] = value(named[label]) if callable(value) else value
    args = list(named.values())
    errors = [refused(packet(name), args)]
    errors += [refused(partial(run, body, name), args) for body in BODIES]
    if not on_values:
        errors.append(refused(packet(name), [on_meta(a) if isinstance(a, Tensor) else a for a in args]))
    assert {type(error) for error in errors} == {kind}
    messages = {str(error) for error in errors}
    assert len(messages) == 1, messages
    message = messages.pop()
    assert message.startswith(f"fastsal.{name}: {argument}: expected ") and ", got " in message
    assert expected in message and got in message.split(", got ")[1]


@each_body
@pytest.mark.parametrize("p", NORMS)
def test_only_samples_that_are_asked_for_are_looked_at(body: str, p: float) -> None:
    x, one = torch.full((4, 3), 0.5), torch.full((1,), 0.1)
    x[1], x[2, 1] = 7.0, math.nan
    zero, ids, seed = torch.zeros(1), torch.tensor([3, -1, 0]), torch.tensor(1)
    here = x[[3, 0, 0]]
    assert run(body, "random_start", x, one, seed, None, zero, one * 10, ids, p)[0][0].isfinite().all()
    assert run(body, "pgd_step", x, here, here, one, one, zero, one * 10, None, ids, p)[0][0].isfinite().all()
    for wrong in (1, 2):
        ids = torch.tensor([3, -1, wrong])
        with pytest.raises(ValueError, match=f"random_start: x: .*, got .* in row {wrong} "):
            run(body, "random_start", x, one, seed, None, zero, one * 10, ids, p)
        with pytest.raises(ValueError, match=f"pgd_step: x: .*, got .* in row {wrong} "):
            run(body, "pgd_step", x, here, here, one, one, zero, one * 10, None, ids, p)


@each_body
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_infinite_bound_is_no_bound_and_lets_no_infinity_in(body: str, p: float, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    x = torch.tensor([[largest, -largest, 0.0]], dtype=dtype)
    grad, one = torch.tensor([[1.0, -1.0, 1.0]], dtype=dtype), torch.full((1,), largest / 4, dtype=dtype)
    for bound in (None, torch.full((1,), INF, dtype=dtype)):
        edges = (bound if bound is None else -bound, bound)
        following, _ = run(body, "pgd_step", x, x, grad, one, one, *edges, None, None, p, 3)
        assert following.isfinite().all() and following[0, 2] > 0
        torch.testing.assert_close(following[:, :2], x[:, :2])
        assert run(body, "random_start", x, one, torch.tensor(4), None, *edges, None, p)[0].isfinite().all()
        with pytest.raises(ValueError, match="x: expected finite values"):
            run(body, "pgd_step", x / 0, x, grad, one, one, *edges, None, None, p)


@each_operator
def test_a_wrong_device_is_refused_by_name(name: str) -> None:
    names = OPERATORS[name].argument_names
    leading = {"retire": "current", "kl_divergence": "adv"}.get(
        name, names[0]
    )  # the operand whose device the others must share
    for at, label in enumerate(names):
        args = arguments(name)
        if label == leading or not isinstance(args[at], Tensor):
            continue
        args[at] = on_meta(args[at])
        for call in (packet(name), *(partial(run, body, name) for body in BODIES)):
            with pytest.raises(ValueError) as caught:
                call(*args)
            assert str(caught.value) == f"fastsal.{name}: {label}: expected device cpu, got meta"


@each_body
def test_what_retire_writes_to_is_apart_from_what_it_reads(body: str) -> None:
    n = 64
    points, ids, stop = torch.rand(n, 8), torch.arange(n).roll(-1).contiguous(), torch.zeros(n, dtype=torch.int64)
    for change in ({"stop": ids}, {"result": points}, {"current": points, "result": points[:]}):
        given = {"previous": points, "current": points + 1, "result": torch.zeros(n, 8), "stop": stop} | change
        call = (given["previous"], given["current"], None, None, None, ids, given["result"], given["stop"], 1, True)
        with pytest.raises(ValueError, match=r"retire: (stop|result): expected memory apart from that of"):
            run(body, "retire", *call)


@each_body
def test_memory_that_autograd_would_not_hear_of_is_refused(body: str) -> None:
    points, stop = torch.rand(3, 8), torch.zeros(3, dtype=torch.int64)

    def call(result: torch.Tensor) -> None:
        run(body, "retire", points, points + 1, None, None, None, None, result, stop, 1, True)

    for leaf in (torch.zeros(3, 8, requires_grad=True), torch.zeros(3, 8, requires_grad=True) * 1):
        with pytest.raises(ValueError, match="retire: result: expected a tensor that does not require grad"):
            call(leaf)
        with torch.no_grad():
            call(leaf)
    with torch.inference_mode():
        inference = torch.zeros(3, 8)
        call(inference)
    with pytest.raises(ValueError, match="retire: result: expected no inference tensor"):
        call(inference)


@each_body
@pytest.mark.parametrize("sparse", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_sparse_operands_are_named(body: str, sparse: Any) -> None:
    one = torch.ones(1)
    with pytest.raises(TypeError, match=r"random_start: x: expected a dense tensor .*, got torch.sparse"):
        run(body, "random_start", sparse(torch.eye(3)), one, torch.tensor(1), None, None, None, None, INF)
    with pytest.raises(TypeError, match="kl_divergence: adv: expected a dense tensor"):
        run(body, "kl_divergence", torch.eye(3), sparse(torch.eye(3)), None, True)


@each_body
def test_a_bound_that_is_nan_is_named_and_so_is_the_element_outside(body: str) -> None:
    x, one, low = torch.full((2, 2, 3), 0.5), torch.ones(1), torch.tensor([0.0, math.nan])
    seed = torch.tensor(1)
    with pytest.raises(ValueError, match="random_start: clip_min: expected numbers, got"):
        run(body, "random_start", x, one, seed, None, low, None, None, INF)
    low[1] = 0.625
    with pytest.raises(ValueError, match=r"here \[0.625, 1\], got 0.5 in row 0 at \(1, 0\)"):
        run(body, "random_start", x, one, seed, None, low, one, None, INF)


@each_body
@pytest.mark.parametrize("p", NORMS)
def test_no_samples_and_padding_alone(body: str, p: float) -> None:
    none, one, ids = torch.empty(0, 2, 3), torch.ones(1), torch.full((3,), -1)
    assert run(body, "random_start", none, one, torch.tensor(1), None, None, None, ids, p)[0].shape == (3, 2, 3)
    here = torch.rand(3, 2, 3)
    step = run(body, "pgd_step", none, here, here, one, one, None, None, None, ids, p)
    assert step[0].shape == (3, 2, 3) and not step[1].any()
    scores, label = torch.rand(3, 4), torch.empty(0, dtype=torch.int64)
    assert run(body, "truncated_cross_entropy", scores, label, ids, 0.5)[3].all()
    for dlr in (False, True):
        assert not run(body, "margin_loss", scores, label, None, ids, dlr)[1].any()
    assert not run(body, "kl_divergence", torch.empty(0, 4), scores, ids, True)[1].any()
