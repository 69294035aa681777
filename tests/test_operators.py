"""The contract of the operators: registration, shape functions, layouts. Maths and refusals are tested elsewhere."""

from __future__ import annotations

import subprocess
import sys
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


# ------------------------------------------------------------------------------- how a body is chosen


def test_the_body_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSAL_BACKEND", "reference")
    program = "from fastsal import backends; print(sorted(set(backends.bodies('cpu').values())))"
    fresh = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert fresh.stdout == "['reference']\n", fresh.stderr
    monkeypatch.setenv("FASTSAL_BACKEND", "fortran")
    with pytest.raises(ValueError, match=r"FASTSAL_BACKEND: expected 'auto', .*'reference', got 'fortran'"):
        backends.bodies("cpu")
