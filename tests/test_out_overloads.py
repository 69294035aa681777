"""The `.out` overloads: the caller's memory for every result. Same bits, the same checks, and a few of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from kernel_calls import poison_like, raw
from operands import BODIES, INF, LAYOUTS, arguments, dtypes, run, variants
from torch import Tensor
from torch._subclasses import FakeTensorMode

from fastsal.backends import body_of, implementation
from fastsal.operators import OPERATORS

pytestmark = pytest.mark.usefixtures("one_thread")
each_operator = pytest.mark.parametrize("name", OPERATORS)
each_body = pytest.mark.parametrize("body", BODIES)
OUTPUTS = [(name, at) for name, operator in OPERATORS.items() for at in range(len(operator.returns))]
each_output = pytest.mark.parametrize(
    ("name", "at"), OUTPUTS, ids=[f"{name}-{OPERATORS[name].out_names[at]}" for name, at in OUTPUTS]
)


def packet(name: str) -> Any:
    return getattr(torch.ops.fastsal, name).out


def memory(name: str, args: list[Any]) -> dict[str, Tensor]:
    """Poison in the place of each output."""
    outs = {}
    for label, out in zip(OPERATORS[name].out_names, OPERATORS[name].outputs(*args), strict=True):
        outs[label] = out.copy_(poison_like(out))
    return outs


def ways(name: str) -> list[tuple[str, Callable[..., Any]]]:
    """Through torch.ops, and each body behind the contract's checks."""
    bodies = [(body, implementation(OPERATORS[name], body_of(name, body), body == "reference")) for body in BODIES]
    return [("torch.ops", packet(name)), *bodies]


def fresh(args: list[Any]) -> list[Any]:
    return [a.clone() if isinstance(a, Tensor) else a for a in args]


@each_body
@pytest.mark.parametrize("layout", LAYOUTS)
@each_operator
def test_the_same_bits_as_without_out(name: str, layout: str, body: str) -> None:
    call = dict(ways(name))[body]
    for dtype, grad in dtypes(name):
        for variant in variants(name):
            args = arguments(name, dtype, grad, layout, variant)
            outs, given = memory(name, args), fresh(args)
            assert call(*given, **outs) is None
            expected = fresh(args)
            without = run(body, name, *expected)
            kept = torch.tensor([True, variant is None, True, True])  # padding rows of points stay as they were
            for got, new in zip(outs.values(), without, strict=True):
                assert got.stride() == new.stride()
                if name in ("random_start", "pgd_step"):
                    assert torch.equal(raw(got[~kept]), raw(poison_like(got[~kept]))) or got.dtype == torch.bool
                    got, new = got[kept], new[kept]
                assert torch.equal(raw(got), raw(new))
            for mine, theirs in zip(given, expected, strict=True):
                assert not isinstance(mine, Tensor) or torch.equal(raw(mine), raw(theirs))


@each_operator
def test_through_torch_ops_too_and_with_defaults_left_out(name: str) -> None:
    for variant in variants(name):
        args = arguments(name, variant=variant)
        outs, given = memory(name, args), fresh(args)
        assert packet(name)(*given, **outs) is None
        expected = getattr(torch.ops.fastsal, name).default(*args)
        for got, new in zip(outs.values(), expected if isinstance(expected, tuple) else (expected,), strict=True):
            real = torch.tensor([0, 2, 3]) if name in ("random_start", "pgd_step") else slice(None)
            assert torch.equal(raw(got[real]), raw(new[real]))
    left_out = len(OPERATORS[name].defaults)
    if left_out:
        args = [*arguments(name)[:-left_out], *OPERATORS[name].defaults]
        whole, short = memory(name, args), memory(name, args)
        packet(name)(*args, **whole)
        packet(name)(*args[:-left_out], **short)
        assert all(torch.equal(raw(a), raw(b)) for a, b in zip(whole.values(), short.values(), strict=True))


@each_operator
def test_autograd_is_told_of_every_write(name: str) -> None:
    operator = OPERATORS[name]
    for way, call in ways(name):
        args = arguments(name, padding=2)
        outs = memory(name, args)
        tensors = {label: a for label, a in zip(operator.argument_names, args, strict=True) if isinstance(a, Tensor)}
        before = {label: tensor._version for label, tensor in (tensors | outs).items()}
        call(*args, **outs)
        moved = {label for label, tensor in (tensors | outs).items() if tensor._version > before[label]}
        assert moved == set(outs) | ({"result", "stop"} if name == "retire" else set()), way


@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "requires_grad"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@each_operator
def test_opcheck(name: str, layout: str, requires_grad: bool) -> None:
    for variant in variants(name):
        args = arguments(name, layout=layout, variant=variant, requires_grad=requires_grad, padding=2)
        outcome = torch.library.opcheck(packet(name), tuple(args), memory(name, args))
        assert set(outcome.values()) == {"SUCCESS"}


# ---------------------------------------------------------------------------------------------- refusals


def refused(name: str, args: list[Any], outs: dict[str, Tensor]) -> str:
    """The one message of every way to call, none of which wrote or counted anything."""
    tensors = [a for a in (*args, *outs.values()) if isinstance(a, Tensor)]
    before, versions = [t.clone() for t in tensors], [t._version for t in tensors]
    messages = set()
    for way, call in ways(name):
        with pytest.raises((ValueError, TypeError)) as caught:
            call(*args, **outs)
        messages.add((type(caught.value), str(caught.value)))
        assert versions == [t._version for t in tensors], way
        for tensor, was in zip(tensors, before, strict=True):
            assert tensor.device.type == "meta" or torch.equal(raw(tensor), raw(was)), way
    assert len(messages) == 1, messages
    kind, message = messages.pop()
    assert kind is (TypeError if ": expected torch." in message and " memory, " not in message else ValueError), message
    return message


@each_output
def test_memory_of_a_wrong_shape_dtype_or_device(name: str, at: int) -> None:
    args = arguments(name)
    label = OPERATORS[name].out_names[at]
    outs = memory(name, args)
    right = outs[label]
    prefix = f"fastsal.{name}: {label}: expected "
    longer = torch.cat((right, right[:1])) if right.dim() else right
    flat = right.reshape(-1, 1, 1)
    for wrong in (longer, flat):
        message = refused(name, args, outs | {label: wrong})
        assert message == f"{prefix}shape {tuple(right.shape)}, got {tuple(wrong.shape)}"
    for dtype in (torch.float16, torch.int32, torch.float64):
        if dtype != right.dtype:
            message = refused(name, args, outs | {label: right.to(dtype)})
            assert message == f"{prefix}{right.dtype}, got {dtype}"
    message = refused(name, args, outs | {label: right.to("meta")})
    assert message == f"{prefix}device cpu, got meta"


@each_output
def test_memory_with_gaps(name: str, at: int) -> None:
    args = arguments(name)
    label = OPERATORS[name].out_names[at]
    outs = memory(name, args)
    right = outs[label]
    if right.numel() < 2:
        pytest.skip("one element is contiguous whatever its strides")
    gaps = torch.stack((right, right), dim=-1)[..., 0]
    backwards = right.new_empty(right.shape[::-1]).permute(*range(right.dim())[::-1])
    repeated = right[:1].expand_as(right)
    for wrong in (gaps, *([backwards] if right.dim() > 1 else []), repeated):
        message = refused(name, args, outs | {label: wrong})
        assert message.startswith(f"fastsal.{name}: {label}: expected torch.contiguous_format memory, got strides (")


@pytest.mark.parametrize("name", ["random_start", "pgd_step"])
def test_points_come_in_the_memory_format_of_x(name: str) -> None:
    for layout, wrong in (
        ("contiguous", torch.channels_last),
        ("strided", torch.channels_last),
        ("channels_last", torch.contiguous_format),
    ):
        args = arguments(name, layout=layout)
        outs = memory(name, args)
        label = OPERATORS[name].out_names[0]
        message = refused(name, args, outs | {label: outs[label].contiguous(memory_format=wrong)})
        asked = "channels_last" if layout == "channels_last" else "contiguous_format"
        assert message.startswith(f"fastsal.{name}: {label}: expected torch.{asked} memory, got strides (")


@each_operator
def test_memory_that_an_argument_lies_in(name: str) -> None:
    operator = OPERATORS[name]
    tried = 0
    for at, label in enumerate(operator.out_names):
        for position, argument in enumerate(operator.argument_names):
            args = arguments(name, padding=2)
            outs = memory(name, args)
            given, out = args[position], outs[label]
            if not isinstance(given, Tensor) or given.dtype != out.dtype:
                continue
            tried += 1
            # one buffer for both, one element of it shared
            buffer = torch.cat((given.flatten(), out.flatten()[1:]))
            args[position] = buffer[: given.numel()].view(given.shape)
            outs[label] = buffer[given.numel() - 1 :].view(out.shape)
            if out.numel():
                message = refused(name, args, outs)
                assert message == (
                    f"fastsal.{name}: {label}: expected memory apart from that of {argument}, got the same"
                )
            # side by side in one buffer: nothing wrong with that
            buffer = torch.cat((given.flatten(), out.flatten()))
            args[position] = buffer[: given.numel()].view(given.shape)
            outs[label] = buffer[given.numel() :].view(out.shape)
            packet(name)(*args, **outs)
            expected = getattr(torch.ops.fastsal, name).default(*args)
            expected = expected[at] if isinstance(expected, tuple) else expected
            assert torch.equal(raw(outs[label]), raw(expected))
    assert tried


@pytest.mark.parametrize("name", [name for name, operator in OPERATORS.items() if len(operator.returns) > 1])
def test_memory_of_two_outputs_that_is_one(name: str) -> None:
    args = arguments(name)
    outs = memory(name, args)
    for first, second in ((0, 1), (1, 2), (0, 2), (2, 3)):
        labels = OPERATORS[name].out_names
        if second < len(labels):
            a, b = outs[labels[first]], outs[labels[second]]
            buffer = torch.zeros(8 * (a.numel() + b.numel()), dtype=torch.int8)
            shared = [buffer.view(t.dtype)[: t.numel()].view(t.shape) for t in (a, b)]
            message = refused(name, args, outs | {labels[first]: shared[0], labels[second]: shared[1]})
            assert message == (
                f"fastsal.{name}: {labels[second]}: expected memory apart from that of {labels[first]}, got the same"
            )


@each_operator
def test_fake_and_meta_memory_is_checked_alike(name: str) -> None:
    """Accepted where real memory is, and refused with the same words."""
    args = arguments(name)
    outs = memory(name, args)
    label = OPERATORS[name].out_names[0]
    wrong = outs | {label: outs[label][:-1]}
    message = refused(name, args, wrong)

    def moved(values: Any, place: Callable[[Tensor], Tensor]) -> Any:
        if isinstance(values, dict):
            return {key: place(value) for key, value in values.items()}
        return [place(value) if isinstance(value, Tensor) else value for value in values]

    on_meta = partial(torch.Tensor.to, device="meta")
    assert packet(name)(*moved(args, on_meta), **moved(outs, on_meta)) is None
    with pytest.raises(ValueError) as caught:
        packet(name)(*moved(args, on_meta), **moved(wrong, on_meta))
    assert str(caught.value) == message
    with FakeTensorMode() as mode:
        assert packet(name)(*moved(args, mode.from_tensor), **moved(outs, mode.from_tensor)) is None
        with pytest.raises(ValueError) as caught:
            packet(name)(*moved(args, mode.from_tensor), **moved(wrong, mode.from_tensor))
    assert str(caught.value) == message


@each_body
def test_no_rows(body: str) -> None:
    x, one = torch.rand(0, 3), torch.full((1,), 0.1)
    call = dict(ways("pgd_step"))[body]
    args = [x, x, x, one, one, None, None, None, None, INF, 1]
    call(*args, **memory("pgd_step", args))
