"""When what a body computes agrees with the reference, operator by operator.

Bit for bit: the Linf start and step, the margin and its gradient, retire, the flags (`over` but for losses within
rounding of the cut). Within 1e-6 * eps: the L2 and L1 starts and steps. To rounding: cross-entropy, KL, DLR. And
whatever the reference says: the ball and the box hold, in float64, and padding stays as it was.
"""

from __future__ import annotations

import math

import torch
from kernel_calls import Case, poison_like, raw, real_rows, tamed
from operands import bits, same_bits
from torch import Tensor

from fastsal.checks import channel_view
from fastsal.operators import OPERATORS
from fastsal.reference import DLR_FLOOR

LOSSES = ("truncated_cross_entropy", "margin_loss", "kl_divergence")  # these write every element, padding too


def disagreement(case: Case, got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> str | None:
    """What is wrong with the outputs of a body, which were poisoned before it ran; None where they agree.

    Both tuples hold the outputs and then the arguments that the operator writes.
    """
    names = [*OPERATORS[case.name].out_names, *(OPERATORS[case.name].argument_names[at] for at in case.mutated)]
    for name, mine, theirs in zip(names, got, expected, strict=True):
        if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
            return f"{case.label}: {name}: expected {theirs.dtype} {tuple(theirs.shape)}, got {mine.dtype} {mine.shape}"
        if case.name in LOSSES and mine.is_floating_point() and (raw(mine) == raw(poison_like(mine))).any():
            return f"{case.label}: {name}: not all of it was written"
    problem = _RULES[case.name](case, got, expected)
    return None if problem is None else f"{case.label}: {problem}"


def _points(case: Case, value: Tensor, theirs: Tensor) -> str | None:
    """A start or a step: poison where there is padding; else as close as its norm asks for, in the ball and the box."""
    real, named = real_rows(case), tamed(case)[0]
    if not torch.equal(raw(value[~real]), raw(poison_like(value[~real]))):
        return "a padding row was written"
    ids = torch.arange(len(real)) if named["ids"] is None else named["ids"]
    ids, value, theirs = ids[real], value[real], theirs[real]
    x, each = named["x"][ids], (-1, *[1] * (value.dim() - 1))
    eps = (named["eps"] if len(named["eps"]) == 1 else named["eps"][ids]).expand(len(ids))
    if case["p"] == math.inf:
        if not same_bits(value, theirs):
            return _first("not the same bits", value, theirs, bits(value) != bits(theirs))
    else:
        near = 1e-6 * eps.double().view(each) + _lost_in_the_shrinkage(case, x, real).view(each)
        apart = ~((value.double() - theirs.double()).abs() <= near)
        # both round one real number towards x: now and then it falls to either side of a number of the dtype
        if not same_bits(value[apart].nextafter(theirs[apart]), theirs[apart]):
            return _first("further apart than 1e-6 eps", value, theirs, apart)
        if int(apart.sum()) > 1 + value.numel() / 1000:
            return f"{int(apart.sum())} of {value.numel()} elements are not rounded as in the reference"
    return _outside(case, value, x, eps)


def _lost_in_the_shrinkage(case: Case, x: Tensor, real: Tensor) -> Tensor:
    """An L1 step shrinks by a float64 lambda, which is no finer than the displacement it shortens: (rows,)."""
    if case.name != "pgd_step" or case["p"] != 1.0:
        return torch.zeros(len(x), dtype=torch.float64)
    named = tamed(case)[0]
    here = (named["x_adv"] if named["rows"] is None else named["x_adv"][named["rows"]])[real]
    reach = flat(here.double() - x.double()).abs().sum(1)
    return 2.0**-50 * (reach + named["alpha"].double().abs().sum())


def flat(values: Tensor) -> Tensor:
    """Each row in one dimension, also where there are no rows or no elements."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _length(values: list[float]) -> float:
    return math.sqrt(math.fsum(value * value for value in values))


def _outside(case: Case, value: Tensor, x: Tensor, eps: Tensor) -> str | None:
    """Whether a row left the ball or the box, in float64 on the stored values."""
    for bound, beyond in ((case["clip_min"], torch.lt), (case["clip_max"], torch.gt)):
        if bound is not None and beyond(value, channel_view(bound, case["x"])).any():
            return "outside of the box"
    if not value.isfinite().all():
        return "not finite"
    for row, (moved, radius) in enumerate(zip(flat(value.double() - x.double()), eps.tolist(), strict=True)):
        sizes = moved.abs()
        largest = sizes.max().item() if len(sizes) else 0.0
        length = {
            math.inf: lambda sizes=sizes, largest=largest: largest,
            2.0: lambda sizes=sizes, largest=largest: largest and _length((sizes / largest).tolist()) * largest,
            1.0: lambda sizes=sizes, largest=largest: math.fsum(sizes.tolist()),
        }[case["p"]]()
        if length > radius:
            return f"row {row}: {length} away from x, eps is {radius}"
    return None


def _start(case: Case, got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> str | None:
    return _points(case, got[0], expected[0])


def _step(case: Case, got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> str | None:
    if not torch.equal(got[1], expected[1]):
        return f"nonfinite: expected {expected[1].tolist()}, got {got[1].tolist()}"
    return _points(case, got[0], expected[0])


# -------------------------------------------------------------------------------------------- losses


def accuracy(dtype: torch.dtype, classes: int) -> float:
    """What arithmetic in the loss dtype can hold of a sum over the classes."""
    return 1e-13 if dtype == torch.float64 else 4e-7 + 2e-8 * math.sqrt(classes)


def _close(name: str, mine: Tensor, theirs: Tensor, allowed: Tensor) -> str | None:
    """Within `allowed`, or the same infinity, or both NaN."""
    near = (mine.double() - theirs.double()).abs() <= allowed.double()
    fine = near | (mine == theirs) | (mine.isnan() & theirs.isnan())
    return None if fine.all() else _first(f"{name} differs", mine, theirs, ~fine)


def _slope_room(theirs: Tensor, room: Tensor) -> Tensor:
    """`room`, and one rounding into the dtype of the gradient."""
    info = torch.finfo(theirs.dtype)
    return room + info.eps * theirs.double().abs().nan_to_num(0, 0, 0) + info.smallest_normal * info.eps


def _cross_entropy(case: Case, got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> str | None:
    loss, slope, right, _ = expected
    room = accuracy(case["logits"].dtype, case["logits"].shape[1])
    if not torch.equal(got[2], right):
        return f"right: expected {right.tolist()}, got {got[2].tolist()}"
    cut = torch.tensor(case["cut"], dtype=loss.dtype)
    own = torch.where(real_rows(case), ~(got[0] <= cut), True)
    if not torch.equal(got[3], own):
        return f"over: expected {own.tolist()} by its own losses, got {got[3].tolist()}"
    return _close("loss", got[0], loss, room * (1 + loss.abs())) or _close(
        "grad", got[1], slope, _slope_room(slope, torch.full((), room))
    )


def _margin(case: Case, got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> str | None:
    loss, slope = expected
    if not case["dlr"]:
        for name, mine, theirs in zip(("loss", "grad"), got, expected, strict=True):
            if not same_bits(mine, theirs):
                return _first(f"{name}: not the same bits", mine, theirs, bits(mine) != bits(theirs))
        return None
    room = 4e-15 if loss.dtype == torch.float64 else 2e-6
    top = case["logits"].to(loss.dtype).sort(dim=1, descending=True).values
    third = top[:, 2] if case["other"] is None else (top[:, 2] + top[:, 3]) / 2
    spread = (top[:, 0] - third + DLR_FLOOR).double().abs().nan_to_num(1, 1, 1)
    of_row = room * (2 + loss.double().abs().nan_to_num(0, 0, 0)) / spread
    return _close("loss", got[0], loss, room * loss.abs()) or _close(
        "grad", got[1], slope, _slope_room(slope, of_row.unsqueeze(1))
    )


def _divergence(case: Case, got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> str | None:
    loss, of_adv, of_clean = expected
    classes = case["adv"].shape[1]
    room = 2 * accuracy(case["adv"].dtype, classes)
    of_row = room * (1 + math.log(classes) + loss.double().abs().nan_to_num(0, 0, 0))
    problem = _close("loss", got[0], loss, of_row)
    problem = problem or _close("adv_grad", got[1], of_adv, _slope_room(of_adv, torch.full((), room)))
    return problem or _close("clean_grad", got[2], of_clean, _slope_room(of_clean, of_row[: len(of_clean), None]))


# -------------------------------------------------------------------------------------------- retire


def _retire(case: Case, got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> str | None:
    names = ("rows", "ids", "live", "result", "stop")
    for name, mine, theirs in zip(names, got, expected, strict=True):
        if not torch.equal(raw(mine), raw(theirs)):
            return _first(f"{name}: not the same bits", mine, theirs, raw(mine) != raw(theirs))
    return None


def _first(what: str, mine: Tensor, theirs: Tensor, wrong: Tensor) -> str:
    at = tuple(wrong.nonzero()[0].tolist())
    return f"{what}, first at {at}: expected {theirs[at].item()!r}, got {mine[at].item()!r} ({int(wrong.sum())} in all)"


_RULES = {
    "random_start": _start,
    "pgd_step": _step,
    "truncated_cross_entropy": _cross_entropy,
    "margin_loss": _margin,
    "kl_divergence": _divergence,
    "retire": _retire,
}
