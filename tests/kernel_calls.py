"""One call of an operator as its body gets it: poisoned outputs, a way to run it, and what the reference answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastsal import reference
from fastsal.operators import OPERATORS


@dataclass(frozen=True)
class Case:
    """One call of an operator: all its arguments, dense and in one memory format, as a body gets them."""

    name: str
    label: str
    args: tuple[Any, ...]
    offset: int = 0  # elements by which the outputs miss their natural alignment

    @property
    def named(self) -> dict[str, Any]:
        return dict(zip(OPERATORS[self.name].argument_names, self.args, strict=True))

    def __getitem__(self, argument: str) -> Any:
        return self.named[argument]

    @property
    def mutated(self) -> list[int]:
        """Positions of the arguments that the operator writes."""
        return [i for i, text in enumerate(OPERATORS[self.name].arguments.split(", ")) if "!)" in text]

    def limits(self) -> dict[str, int]:
        """The index vectors and labels of this call, each with what its values must stay below."""
        samples = {"retire": "result", "kl_divergence": "clean", "random_start": "x", "pgd_step": "x"}
        slots = {"retire": "previous", "pgd_step": "x_adv"}
        named = self.named
        classes = named["logits"].shape[1] if "logits" in named else 0
        all_limits = {
            "ids": named[samples.get(self.name, "target")].shape[0],
            "rows": named[slots[self.name]].shape[0] if self.name in slots else 0,
            "target": classes,
            "other": classes,
        }
        return {name: limit for name, limit in all_limits.items() if named.get(name) is not None}


# -------------------------------------------------------------------------------------------------- memory

POISON = {
    torch.float32: 0x7FE5A5A5,
    torch.float64: 0x7FFCA5A5A5A5A5A5,
    torch.bfloat16: 0x7FE5,
    torch.float16: 0x7EA5,
    torch.int64: 0x5A5A5A5A5A5A5A5A,
}
GUARD = 128  # bytes of poison on either side of an output


def raw(memory: Tensor) -> Tensor:
    """The same memory as integers."""
    memory = memory.contiguous()
    return memory.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[memory.element_size()])


def poison_like(memory: Tensor) -> Tensor:
    """One NaN, whose bits no arithmetic makes; True; or a large integer."""
    value = torch.empty(memory.shape, dtype=memory.dtype, device=memory.device)
    if memory.dtype == torch.bool:
        return value.fill_(True)
    raw(value).fill_(POISON[memory.dtype])
    return value


def _guarded(like: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """Poisoned memory of the shape and strides of `like`, and the larger buffer that it lies in."""
    aside = GUARD // like.element_size()
    around_it = poison_like(torch.empty(2 * aside + offset + like.numel(), dtype=like.dtype, device=like.device))
    return around_it.as_strided(like.shape, like.stride(), aside + offset), around_it


def _intact(memory: Tensor, buffer: Tensor) -> bool:
    before = memory.storage_offset()
    edges = torch.cat((buffer[:before], buffer[before + memory.numel() :]))
    return torch.equal(raw(edges), raw(poison_like(edges)))


def poisoned_outputs(case: Case) -> tuple[Tensor, ...]:
    """Memory for each output, in which whatever is not written shows."""
    return tuple(_guarded(out, case.offset)[0] for out in OPERATORS[case.name].outputs(*case.args))


def answer(case: Case, body: Callable[..., Any], device: str = "cpu") -> tuple[Tensor, ...]:
    """What a body makes of a case: its outputs, then the arguments that it writes. Fails if it wrote beside them."""
    args = [a.to(device) if isinstance(a, Tensor) else a for a in case.args]
    pairs = [_guarded(out.to(device), case.offset) for out in OPERATORS[case.name].outputs(*case.args)]
    for at in case.mutated:
        pairs.append(_guarded(args[at], case.offset))
        args[at] = pairs[-1][0].copy_(args[at])
    outs = [memory for memory, _ in pairs]
    refused = body(*args, *outs[: len(outs) - len(case.mutated)])
    assert not refused, f"{case.label}: the body refused the call"
    assert all(itertools.starmap(_intact, pairs)), f"{case.label}: written beside the output"
    return tuple(memory.cpu() for memory in outs)


def tamed(case: Case) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments with 0 for what is out of range (ids: padding), and per vector which of its values were."""
    named, wrong = case.named, {}
    for name, limit in case.limits().items():
        wrong[name] = (named[name] < 0) | (named[name] >= limit)
        # `other` has to differ from `target`
        stand_in = {"ids": -1, "other": (named["target"] == 0).to(torch.int64) if name == "other" else 0}.get(name, 0)
        named[name] = torch.where(wrong[name], stand_in, named[name])
    return named, wrong


def real_rows(case: Case) -> Tensor:
    """Which rows of the result are no padding: neither by their id nor by a slot that is not there."""
    named, wrong = tamed(case)
    leading = {"random_start": "x", "pgd_step": "x_adv", "retire": "current", "kl_divergence": "adv"}
    count = named[leading.get(case.name, "logits")].shape[0]
    for vector in ("ids", "rows"):
        count = count if named.get(vector) is None else len(named[vector])
    real = torch.ones(count, dtype=torch.bool) if named["ids"] is None else named["ids"] >= 0
    return real & ~wrong["rows"] if case.name == "pgd_step" and "rows" in wrong else real


def run_reference(case: Case) -> tuple[Tensor, ...]:
    """What the contract asks for, in the order of `answer`.

    Out of range: an id is padding, and so is a slot of a step; a row with such a label has loss NaN, gradient 0, is not
    right and over the cut; a row of `retire` with such a slot copies nothing from there.
    """
    named, wrong = tamed(case)
    real = real_rows(case)
    if case.name == "pgd_step" and "rows" in wrong:
        numbers = torch.arange(len(real)) if named["ids"] is None else named["ids"]
        named["ids"] = torch.where(real, numbers, -1)
    before = named["result"].clone() if case.name == "retire" else None
    args = [a.clone() if at in case.mutated else a for at, a in enumerate(named.values())]
    outputs = getattr(reference, case.name)(*args)
    for label in ("target", "other"):
        if label in wrong:
            lost = real & (wrong[label] if named["ids"] is None else wrong[label][named["ids"].clamp(min=0)])
            outputs[0][lost], outputs[1][lost] = math.nan, 0
            for flag, value in zip(outputs[2:], (False, True), strict=False):
                flag[lost] = value
    written = [args[at] for at in case.mutated]
    if before is not None and "rows" in wrong:
        nowhere = crossed(case) & wrong["rows"] & real
        samples = torch.arange(len(real)) if named["ids"] is None else named["ids"]
        written[0][samples[nowhere]] = before[samples[nowhere]]
    return (*outputs, *written)


def crossed(case: Case) -> Tensor:
    """Which rows of a `retire` leave with their previous point."""
    named = case.named
    nothing = torch.zeros(named["current"].shape[0], dtype=torch.bool)
    over = nothing if named["over"] is None else named["over"]
    return over if named["right"] is None else over | ~named["right"]
