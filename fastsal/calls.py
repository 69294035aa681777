"""One call of an operator on real tensors: checks, memory, body.

The checks see shapes, dtypes, devices and strides, never values, so what they found out is remembered: a call that is
described by the same words as one before is as valid, gets the same outputs and needs the same copies. An attack
makes the same few calls at every step, and a check costs as much as the arithmetic of a small batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastsal import checks as check
from fastsal.operators import Operator, Out, memory_format

REMEMBERED = 1024  # kinds of call per operator; then they are forgotten all at once


@dataclass(frozen=True)
class Accepted:
    """What is known about every call of one description."""

    allocations: tuple[Callable[[], Tensor], ...]  # of the outputs, in order
    copies: tuple[tuple[int, torch.memory_format], ...]  # operands to lay out anew: position, format
    spans: tuple[tuple[int, int], ...]  # operands that have memory: position, bytes from first element to last


def _describe(operands: Sequence[Any]) -> tuple[Any, ...]:
    return tuple([(a.dtype, a.shape, a.stride(), a.device) if isinstance(a, Tensor) else a for a in operands])


def _copies(operator: Operator, args: Sequence[Any]) -> tuple[tuple[int, torch.memory_format], ...]:
    """What brings operands into one memory format, the first of ``operator.dense`` says which; indices contiguous."""
    operands = dict(zip(operator.argument_names, args, strict=True))
    chosen = memory_format(operands[operator.dense[0]])
    copies = []
    for at, (name, operand) in enumerate(operands.items()):
        if isinstance(operand, Tensor) and name not in ("result", "stop"):  # those are written in place
            target = chosen if name in operator.dense else torch.contiguous_format
            if not operand.is_contiguous(memory_format=target):
                copies.append((at, target))
    return tuple(copies)


def _allocation(out: Out) -> Callable[[], Tensor]:
    """Memory for one output, each time it is called. By strides, since torch.empty takes half as long again."""
    strides = torch.empty(out.shape, device="meta", memory_format=out.format).stride()
    return partial(torch.empty_strided, out.shape, strides, dtype=out.dtype, device=out.device)


def _spans(operands: Sequence[Any]) -> tuple[tuple[int, int], ...]:
    spans = []
    for at, operand in enumerate(operands):
        if isinstance(operand, Tensor) and operand.numel():
            last = sum((n - 1) * step for n, step in zip(operand.shape, operand.stride(), strict=True))
            spans.append((at, (1 + last) * operand.element_size()))
    return tuple(spans)


def _refuse_written(
    operator: Operator, operands: Sequence[Any], spans: Sequence[tuple[int, int]], to: set[int]
) -> None:
    """Refuses memory that is written to, the operands `to`, where it overlaps that of another operand (rows are
    gathered, so one would overwrite another), or where autograd or inference mode would not hear of it."""
    names = (*operator.argument_names, *operator.out_names)
    taken: list[tuple[int, int, int]] = []
    for at, span in spans:
        begin = operands[at].data_ptr()
        end = begin + span
        for first, last, other in taken:
            if first < end and begin < last and (at in to or other in to):
                written, apart = (at, other) if at in to else (other, at)
                what = f"memory apart from that of {names[apart]}"
                check.fail(ValueError, operator.name, names[written], what, "the same")
        taken.append((begin, end, at))
    for at in to:
        if operands[at].requires_grad and torch.is_grad_enabled():
            what = "a tensor that does not require grad, since it is written to"
            check.fail(ValueError, operator.name, names[at], what, "one that does")
        if operands[at].is_inference() and not torch.is_inference_mode_enabled():
            what = "no inference tensor outside of inference mode, since it is written to"
            check.fail(ValueError, operator.name, names[at], what, "one")


def _refuse_layouts(operator: Operator, operands: Sequence[Any]) -> None:
    for name, operand in zip((*operator.argument_names, *operator.out_names), operands, strict=False):
        if isinstance(operand, Tensor) and operand.layout != torch.strided:
            check.fail(TypeError, operator.name, name, "a dense tensor (torch.strided)", operand.layout)


def implementation(operator: Operator, body: Callable[..., int], check_values: bool) -> Callable[..., Any]:
    """The operator on one device. `check_values`: look before, not after, the body runs."""
    arity, names = len(operator.argument_names), operator.out_names
    mutated = [i for i, text in enumerate(operator.arguments.split(", ")) if "!)" in text]
    written = {*mutated, *range(arity, arity + len(names))}
    known: dict[tuple[Any, ...], Accepted] = {}

    def examine(args: tuple[Any, ...], outs: dict[str, Tensor]) -> Accepted:
        _refuse_layouts(operator, args)
        plan = operator.planned(args)
        given = operator.accept(plan, outs) if outs else ()
        return Accepted(tuple(map(_allocation, plan)), _copies(operator, args), _spans((*args, *given)))

    def run(*given: Any, **outs: Tensor) -> Any:
        args = given if len(given) == arity else operator.complete(given)
        outputs = tuple([outs[name] for name in names]) if outs else ()
        operands = args + outputs
        try:
            description = _describe(operands)
        except RuntimeError:  # sparse tensors have no strides
            _refuse_layouts(operator, operands)
            raise
        call = known.get(description)
        if call is None:
            call = examine(args, outs)
            if len(known) >= REMEMBERED:
                known.clear()
            known[description] = call
        if outs:
            _refuse_written(operator, operands, call.spans, written)
        else:
            if mutated:
                _refuse_written(operator, operands, call.spans, set(mutated))
            outputs = tuple([allocate() for allocate in call.allocations])
            operands = args + outputs
        if check_values:
            operator.values(*args)
        if call.copies:
            laid_out = list(operands)
            for at, target in call.copies:
                laid_out[at] = laid_out[at].contiguous(memory_format=target)
            operands = tuple(laid_out)
        if body(*operands):
            operator.values(*args)
            raise RuntimeError(f"fastsal.{operator.name}: its body refused a value that the contract accepts")
        for i in mutated:
            torch.autograd.graph.increment_version(args[i])
        if outs:
            torch.autograd.graph.increment_version(outputs)
            return None
        return outputs if len(outputs) > 1 else outputs[0]

    return run
