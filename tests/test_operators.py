"""The contract of the operators: registration, shape functions, refusals. Their maths is tested elsewhere."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from operands import BODIES, INF, LAYOUTS, arguments, dtypes, run, same_bits, variants
from torch import Tensor
from torch._subclasses import FakeTensorMode

from fastsal import backends, functional, reference
from fastsal.checks import NORMS
from fastsal.operators import OPERATORS

pytestmark = pytest.mark.usefixtures("one_thread")
NORMED = ("random_start", "pgd_step")
CASES = [
    pytest.param(name, dtype, grad, variant, id=f"{name}-{str(dtype)[6:]}-{str(grad)[6:]}-{variant}")
    for name in OPERATORS
    for dtype, grad in dtypes(name)
    for variant in variants(name)
]
each_case = pytest.mark.parametrize(("name", "dtype", "grad", "variant"), CASES)
each_operator = pytest.mark.parametrize("name", OPERATORS)
each_body = pytest.mark.parametrize("body", BODIES)


def packet(name: str) -> Any:
    return getattr(torch.ops.fastsal, name).default


def outputs(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def on_meta(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def same(got: Tensor, expected: Tensor) -> bool:
    return same_bits(got, expected) if got.is_floating_point() else torch.equal(got, expected)


# ------------------------------------------------------------------------------------------ registration


@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "requires_grad"])
@pytest.mark.parametrize(
    ("name", "dtype", "grad", "layout", "variant"),
    [
        pytest.param(name, dtype, grad, layout, variants(name)[at % len(variants(name))], id=f"{name}-{at}-{layout}")
        for name in OPERATORS
        for at, (dtype, grad) in enumerate(dtypes(name) * (1 if name == "pgd_step" else len(variants(name))))
        for layout in (("contiguous", "strided") if name.endswith(("loss", "entropy", "divergence")) else LAYOUTS)
    ],
)
def test_opcheck(
    name: str, dtype: torch.dtype, grad: torch.dtype, layout: str, variant: Any, requires_grad: bool
) -> None:
    # no padding: what an operator leaves unwritten may differ from call to call
    args = arguments(name, dtype, grad, layout, variant, requires_grad, padding=2)
    outcome = torch.library.opcheck(packet(name), tuple(args))
    assert set(outcome.values()) == {"SUCCESS"}


@each_operator
def test_every_operator_has_the_same_name_everywhere(name: str) -> None:
    operator = OPERATORS[name]
    assert callable(getattr(reference, name))
    assert callable(getattr(functional, name))
    assert tuple(a.name for a in packet(name)._schema.arguments) == operator.argument_names


@pytest.mark.parametrize("layout", LAYOUTS)
@each_body
@each_case
def test_fake_and_meta_outputs_match_the_real_ones(
    name: str, dtype: torch.dtype, grad: torch.dtype, variant: Any, body: str, layout: str
) -> None:
    args = arguments(name, dtype, grad, layout, variant)
    real = run(body, name, *args)
    meta = packet(name)(*[on_meta(a) if isinstance(a, Tensor) else a for a in args])
    with FakeTensorMode() as mode:
        fake = packet(name)(*[mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args])
    for like in (meta, fake):
        assert [(o.shape, o.dtype, o.stride()) for o in outputs(like)] == [(o.shape, o.dtype, o.stride()) for o in real]


@each_operator
def test_inputs_that_require_grad_change_nothing_and_nothing_requires_grad(name: str) -> None:
    torch.manual_seed(1)
    args = arguments(name, padding=2)
    plain = packet(name)(*[a.clone() if isinstance(a, Tensor) else a for a in args])
    for label, a in zip(OPERATORS[name].argument_names, args, strict=True):
        if isinstance(a, Tensor) and a.is_floating_point() and label != "result":
            a.requires_grad_()
    for got, expected in zip(outputs(packet(name)(*args)), outputs(plain), strict=True):
        assert not got.requires_grad and got.grad_fn is None
        assert same(got, expected)


def test_only_retire_mutates_and_says_so_to_autograd() -> None:
    mutable = {name for name, operator in OPERATORS.items() if "!" in operator.arguments}
    assert mutable == {"retire"}
    args = arguments("retire")
    before = [a._version if isinstance(a, Tensor) else None for a in args]
    packet("retire")(*args)
    after = [a._version if isinstance(a, Tensor) else None for a in args]
    moved = {name for name, b, a in zip(OPERATORS["retire"].argument_names, before, after, strict=True) if b != a}
    assert moved == {"result", "stop"}


@each_operator
def test_no_output_shares_memory_with_an_argument(name: str) -> None:
    args = arguments(name)
    taken = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
    assert all(o.untyped_storage().data_ptr() not in taken for o in outputs(packet(name)(*args)))


def laid_out_alike(layout: str, *call: Any) -> list[Any]:
    """The same call in one layout, or each argument in another than the one before."""
    calls = []
    for each in LAYOUTS if layout == "mixed" else (layout,):
        torch.manual_seed(3)
        calls.append(arguments(*call[:3], each, call[3]))
    return [calls[at % len(calls)][at] for at in range(len(calls[0]))]


@each_body
@pytest.mark.parametrize("layout", ["channels_last", "strided", "mixed"])
@each_case
def test_the_layout_of_the_arguments_does_not_change_a_bit(
    name: str, dtype: torch.dtype, grad: torch.dtype, variant: Any, layout: str, body: str
) -> None:
    """Except the layout of the L2 and L1 steps, whose sums run in the order of memory."""
    outs = []
    for each in ("contiguous", layout):
        args = laid_out_alike(each, name, dtype, grad, variant)
        outs.append([*run(body, name, *args), *(args[6:8] if name == "retire" else ())])
    real = (torch.tensor([4, -1, 0, 5]) >= 0).nonzero().squeeze(1)
    for got, expected in zip(*outs, strict=True):
        if name in NORMED:
            got, expected = got[real], expected[real]
        if name in NORMED and variant != INF and layout == "channels_last" and got.is_floating_point():
            torch.testing.assert_close(got, expected, rtol=0, atol=2 * torch.finfo(dtype).eps)
        else:
            assert same(got, expected)


@each_body
def test_no_rows_and_no_elements(body: str) -> None:
    for count, shape in ((0, (3, 4, 5)), (0, ()), (4, (0,)), (4, (3, 0, 2)), (4, (0, 2, 2))):
        x, one = torch.rand(count, *shape), torch.full((1,), 0.1)
        for p in NORMS:
            (start,) = run(body, "random_start", x, one, torch.tensor(1), None, None, None, None, p)
            following, flags = run(body, "pgd_step", x, x, x, one, one, None, None, None, None, p)
            assert start.shape == following.shape == x.shape
            assert flags.shape == (count,) and not flags.any()
        stop = torch.full((count,), -1)
        rows, ids, live = run(body, "retire", x, x, None, None, None, None, x.clone(), stop, 1, True)
        assert rows.shape == ids.shape == (count,) and live.tolist() == [0] and stop.tolist() == [1] * count
    for name, extra in (("truncated_cross_entropy", (None, 0.5)), ("margin_loss", (None, None, True))):
        out = run(body, name, torch.rand(0, 10), torch.zeros(0, dtype=torch.int64), *extra)
        assert [len(o) for o in out] == [0] * len(out)
    for both in (True, False):
        out = run(body, "kl_divergence", torch.rand(0, 10), torch.rand(0, 10), None, both)
        assert [o.shape for o in out] == [(0,), (0, 10), (0, 10)]
    none = torch.zeros(0, dtype=torch.int64)
    x, one = torch.rand(3, 5), torch.full((1,), 0.1)
    assert run(body, "pgd_step", x, x, x, one, one, None, None, none, none, INF)[0].shape == (0, 5)
    assert run(body, "random_start", x, one, torch.tensor(1), None, None, None, none, 2.0)[0].shape == (0, 5)


# ---------------------------------------------------------------------------------------------- refusals


def put(name: str, value: Any) -> Any:
    return lambda args: args | {name: value(args[name]) if callable(value) else value}


INDEX = torch.tensor([4, -1, 0, 5])
SHAPES = [  # operator, argument, what is done to it, the error, what was expected, what came
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
    ("random_start", "p", 1.0, ValueError, "inf or 2.0", "1.0"),
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
    ("pgd_step", "p", 3.0, ValueError, "inf or 2.0", "3.0"),
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
    ("name", "argument", "change", "kind", "expected", "got", "on_values"),
    [pytest.param(*case, False, id=f"{case[0]}-{case[1]}-{case[5]}") for case in SHAPES]
    + [pytest.param(*case, True, id=f"{case[0]}-{case[1]}-{case[5]}") for case in VALUES],
)
def test_a_refusal_is_the_same_everywhere_and_leaves_no_trace(
    name: str, argument: str, change: Any, kind: type[Exception], expected: str, got: str, on_values: bool
) -> None:
    named = dict(zip(OPERATORS[name].argument_names, arguments(name), strict=True))
    named[argument] = change(named[argument]) if callable(change) else change
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
@pytest.mark.parametrize("p", [INF, 2.0])
def test_only_samples_that_are_asked_for_are_looked_at(body: str, p: float) -> None:
    x, one = torch.full((4, 3), 0.5), torch.full((1,), 0.1)
    x[1], x[2, 1] = 7.0, math.nan
    zero, ids, seed = torch.zeros(1), torch.tensor([3, -1, 0]), torch.tensor(1)
    here = x[[3, 0, 0]]
    assert run(body, "random_start", x, one, seed, None, zero, one * 10, ids, p)[0][0].isfinite().all()
    assert run(body, "pgd_step", x, here, here, one, one, zero, one * 10, None, ids, p)[0][0].isfinite().all()
    for wrong in (1, 2):
        ids = torch.tensor([3, -1, wrong])
        with pytest.raises(ValueError, match=f"random_start: x: .*, got a value outside in row {wrong} "):
            run(body, "random_start", x, one, seed, None, zero, one * 10, ids, p)
        with pytest.raises(ValueError, match=f"pgd_step: x: .*, got a value outside in row {wrong} "):
            run(body, "pgd_step", x, here, here, one, one, zero, one * 10, None, ids, p)


@each_body
@pytest.mark.parametrize("p", [INF, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_infinite_bound_is_no_bound_and_lets_no_infinity_in(body: str, p: float, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    x = torch.tensor([[largest, -largest, 0.0]], dtype=dtype)
    grad, one = torch.tensor([[1.0, -1.0, 1.0]], dtype=dtype), torch.full((1,), largest / 4, dtype=dtype)
    for bound in (None, torch.full((1,), INF, dtype=dtype)):
        edges = (bound if bound is None else -bound, bound)
        following, _ = run(body, "pgd_step", x, x, grad, one, one, *edges, None, None, p)
        assert following.isfinite().all() and following[0, 2] > 0
        torch.testing.assert_close(following[:, :2], x[:, :2])
        assert run(body, "random_start", x, one, torch.tensor(4), None, *edges, None, p)[0].isfinite().all()
        with pytest.raises(ValueError, match="x: expected finite values"):
            run(body, "pgd_step", x / 0, x, grad, one, one, *edges, None, None, p)


@each_operator
def test_a_wrong_device_is_refused_by_name(name: str) -> None:
    names = OPERATORS[name].argument_names
    leading = "current" if name == "retire" else names[0]  # the operand whose device the others must share
    for at, label in enumerate(names):
        args = arguments(name)
        if label == leading or not isinstance(args[at], Tensor):
            continue
        args[at] = on_meta(args[at])
        for call in (packet(name), *(partial(run, body, name) for body in BODIES)):
            with pytest.raises(ValueError) as caught:
                call(*args)
            assert str(caught.value) == f"fastsal.{name}: {label}: expected device cpu, got meta"


# ------------------------------------------------------------------------------- how a body is chosen


def test_the_body_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSAL_BACKEND", "reference")
    program = "from fastsal import backends; print(sorted(set(backends.bodies('cpu').values())))"
    fresh = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert fresh.stdout == "['reference']\n", fresh.stderr
    monkeypatch.setenv("FASTSAL_BACKEND", "fortran")
    with pytest.raises(ValueError, match="FASTSAL_BACKEND: expected 'auto', .*'reference', got 'fortran'"):
        backends.bodies("cpu")
