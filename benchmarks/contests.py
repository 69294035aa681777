"""What takes part: one contest per operator and size, in which every contender computes the same thing.

The contenders of a contest: the operator in its functional form, which allocates its results; its ``.out`` form, into
memory that the caller owns, as an attack loop calls it; one or more eager statements (:mod:`benchmarks.eager_steps`);
the operator's function of :mod:`fastsal.reference` under torch.compile; and a plain copy, as the yardstick.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import eager_steps
from benchmarks.batches import CUT, LOGITS, PIXELS, REACH, Batch, Pixels, Rotation, pixels, turns_past_cache
from benchmarks.where import here
from fastsal import reference
from fastsal.operators import OPERATORS

FUNCTIONAL, OUT, COMPILED, COPY = "functional", ".out", "torch.compile", "copy"
TEMPORARIES, IN_PLACE = "eager, one temporary per operation", "eager, in place"
FORWARD_BACKWARD, EAGER, EAGER_REFERENCE = "eager forward + backward", "eager", "eager fastsal.reference"
Results = dict[str, Tensor]
Eager = Mapping[str, tuple[Callable[[Batch], Any], tuple[str, ...]]]  # the statement, and what it computes


@dataclass(frozen=True)
class Contest:
    operator: str  # its name in the contract
    label: str
    size: str
    moved: int  # bytes that have to move: each operand read or written once
    copied: int  # bytes that the copy moves
    elements: int  # of one operand
    row: int  # elements of a row
    batches: Rotation
    calls: Mapping[str, Callable[[Batch], Results]]

    @property
    def in_cache(self) -> bool:
        return len(self.batches.batches) == 1

    @property
    def eager(self) -> list[str]:
        return [name for name in self.calls if name not in (FUNCTIONAL, OUT, COMPILED, COPY)]

    def timed(self) -> dict[str, Callable[[], object]]:
        """The contenders, each taking the next batch with every call."""
        return {name: partial(lambda call: call(self.batches.next()), call) for name, call in self.calls.items()}

    def check(self) -> None:
        """Refuses to time what computes different things: all agree with the operator's functional form."""
        batch = self.batches.batches[0]
        expected = {name: value.clone() for name, value in self._run(FUNCTIONAL, batch).items()}
        if self.operator == "random_start":
            _check_noise(batch, expected["start"])
        for name in self.calls:
            if name == COPY:
                continue
            got = self._run(name, batch)
            if self.operator == "random_start" and name in self.eager:
                _check_noise(batch, got["start"])
                continue
            for key in got:
                # the same arithmetic up to rounding, in a ball that is rounded another way, on numbers about 1
                exact = name == OUT or not got[key].is_floating_point()
                tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 2.0**-20}
                torch.testing.assert_close(
                    got[key],
                    expected[key],
                    **tolerance,
                    msg=lambda text, n=name, k=key: f"{self.label}, {n}, {k}: {text}",
                )

    def _run(self, name: str, batch: Batch) -> Results:
        for memory in (*batch.outs, batch.target):  # what an earlier contender left must not pass for a result
            memory.fill_(math.nan if memory.is_floating_point() else 1)
        results = self.calls[name](batch)
        if self.operator == "retire":  # it also writes to two arguments; and only the first rows are anyone's
            names = OPERATORS["retire"].argument_names
            live = int((~batch.arguments[names.index("over")]).sum())
            results = {key: value[:live] for key, value in results.items()}
            results |= {"result": batch.arguments[names.index("result")].nan_to_num(9)}
        return results


def _check_noise(batch: Batch, start: Tensor) -> None:
    """Inside ball and box, and spread out in it: the noise of two generators has one distribution and no equal bits."""
    x, p = batch.arguments[0], batch.arguments[-1]
    eps, delta = REACH[p][0], (start - batch.arguments[0]).flatten(1).double()
    length = torch.linalg.vector_norm(delta, p, dim=1)
    if not (length.max() <= eps * (1 + 1e-4) and length.median() > eps / 2 and start.min() >= 0 and start.max() <= 1):
        raise RuntimeError(f"a start in L{p:g} that is not in the ball of radius {eps}, or not spread out in it")
    assert x.shape == start.shape


def _contest(
    label: str,
    operator: str,
    size: str,
    batches: list[Batch],
    moved: int,
    eager: Eager,
) -> Contest:
    contract = OPERATORS[operator]
    packet = getattr(torch.ops.fastsal, operator)
    functional, out = packet.default, packet.out
    torch.compiler.reset()  # one code object serves every contest, and what was compiled for others costs guards
    compiled = torch.compile(getattr(reference, operator), dynamic=False, fullgraph=True)

    def named(values: Any, names: tuple[str, ...] = contract.returns) -> Results:
        return dict(zip(names, (values,) if isinstance(values, Tensor) else values, strict=True))

    def into(batch: Batch) -> Results:
        results = dict(zip(contract.out_names, batch.outs, strict=True))
        out(*batch.arguments, **results)
        return named(batch.outs)

    calls: dict[str, Callable[[Batch], Results]] = {
        FUNCTIONAL: lambda batch: named(functional(*batch.arguments)),
        OUT: into,
    }
    for name, (statement, returns) in eager.items():
        calls[name] = partial(lambda run, names, batch: named(run(batch), names), statement, returns)
    calls[COMPILED] = lambda batch: named(compiled(*batch.arguments))
    calls[COPY] = lambda batch: {"copy": batch.target.copy_(batch.source)}
    first = batches[0].source
    return Contest(
        operator=operator,
        label=label,
        size=size,
        moved=moved,
        copied=2 * first.numel() * first.element_size(),
        elements=first.numel(),
        row=first[0].numel(),
        batches=Rotation(batches),
        calls=calls,
    )


def _box() -> tuple[Tensor, Tensor]:
    return here(torch.zeros(1)), here(torch.ones(1))


def _given(batch: Batch) -> Pixels:
    assert batch.pixels is not None
    return batch.pixels


def _step(label: str, p: float, size: str) -> Contest:
    shape = PIXELS[size]
    topk = max(1, math.prod(shape[1:]) // 20) if p == 1 else 1
    numbers = REACH[p]
    eps, alpha = (here(torch.tensor([value])) for value in numbers)
    batches = []
    for b in pixels(shape, p):
        arguments = (b.x, b.x_adv, b.grad, eps, alpha, *_box(), None, None, p, topk)
        batches.append(Batch(arguments, (b.out, here(torch.zeros(shape[0], dtype=torch.bool))), b.x, b.out, b))
    norm = label.split()[0].lower()
    if p == 1:
        eager: Eager = {EAGER_REFERENCE: (lambda b: reference.pgd_step(*b.arguments), ("next", "nonfinite"))}
    else:
        temporaries, in_place = (getattr(eager_steps, f"{norm}_{way}") for way in ("with_temporaries", "in_place"))

        def with_temporaries(batch: Batch) -> Tensor:
            b = _given(batch)
            return temporaries(b.x, b.x_adv, b.grad, *numbers)

        def in_one_buffer(batch: Batch) -> Tensor:
            b = _given(batch)
            return in_place(b.x, b.x_adv, b.grad, *numbers, b.out)

        eager = {TEMPORARIES: (with_temporaries, ("next",)), IN_PLACE: (in_one_buffer, ("next",))}
    return _contest(label, "pgd_step", size, batches, 4 * 4 * math.prod(shape), eager)


def _start(label: str, p: float, size: str) -> Contest:
    shape = PIXELS[size]
    eps, seed = here(torch.tensor([REACH[p][0]])), here(torch.tensor(1))
    batches = [
        Batch((b.x, eps, seed, None, *_box(), None, p), (b.out,), b.x, b.out, b) for b in pixels(shape, math.inf)
    ]
    statement = getattr(eager_steps, f"{label.split()[0].lower()}_start")
    eager: Eager = {EAGER: (lambda b: statement(b.arguments[0], REACH[p][0]), ("start",))}
    return _contest(label, "random_start", size, batches, 2 * 4 * math.prod(shape), eager)


def _retire(label: str, size: str) -> Contest:
    """Every other row leaves."""
    shape = PIXELS[size]
    count = shape[0]
    over, ids = here(torch.arange(count) % 2 == 1), here(torch.arange(count).flip(0))
    batches = []
    for b in pixels(shape, math.inf):
        stop = here(torch.full((count,), -1))
        arguments = (b.x, b.x_adv, None, over, None, ids, b.out, stop, 1, False)
        outs = (torch.zeros_like(ids), torch.zeros_like(ids), here(torch.zeros(1, dtype=torch.int64)))
        batches.append(Batch(arguments, outs, b.x, b.out, b))

    def boolean_indexing(batch: Batch) -> Any:
        b = _given(batch)
        return eager_steps.retire(b.x, b.x_adv, over, ids, b.out)

    moved = int(over.sum()) * 2 * 4 * math.prod(shape[1:])
    return _contest(label, "retire", size, batches, moved, {EAGER: (boolean_indexing, ("rows", "ids"))})


def _loss(label: str, operator: str, size: str) -> Contest:
    shape, kl = LOGITS[size.removesuffix(PAST_CACHE)], operator == "kl_divergence"
    moved = (4 if kl else 2) * 4 * math.prod(shape)
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(turns_past_cache(moved) if size.endswith(PAST_CACHE) else 1):
        logits, clean = (here(2 * torch.randn(shape, generator=generator)) for _ in range(2))
        target = here(torch.randint(shape[1], (shape[0],), generator=generator))
        rest: tuple[Any, ...] = {
            "truncated_cross_entropy": (target, None, CUT),
            "margin_loss": (target, None, None, label == "DLR"),
            "kl_divergence": (logits, None, True),
        }[operator]
        arguments = (clean if kl else logits, *rest)
        outs = tuple(out.allocate() for out in OPERATORS[operator].plan(*arguments))
        batches.append(Batch(arguments, outs, logits, outs[1]))
    statement = {
        "cross-entropy": eager_steps.cross_entropy,
        "margin": eager_steps.margin,
        "DLR": eager_steps.dlr,
        "KL": eager_steps.kl_divergence,
    }[label]
    returns = ("adv_grad", "clean_grad") if kl else ("grad",)

    def forward_backward(batch: Batch) -> Any:
        first, second = batch.arguments[:2]
        leaves = [t.detach().requires_grad_() for t in (first, second) if t.is_floating_point()]
        return statement(*leaves) if kl else statement(*leaves, second)

    return _contest(label, operator, size, batches, moved, {FORWARD_BACKWARD: (forward_backward, returns)})


PAST_CACHE = " rotated"  # as many batches of these logits as the cache does not hold
NORMS = {"Linf": math.inf, "L2": 2.0, "L1": 1.0}
LOSSES = {
    "cross-entropy": "truncated_cross_entropy",
    "margin": "margin_loss",
    "DLR": "margin_loss",
    "KL": "kl_divergence",
}


def contests() -> dict[str, Callable[[], Contest]]:
    """By name, what makes each of them; one at a time, since the large ones take half a gigabyte."""
    made: dict[str, Callable[[], Contest]] = {}
    for norm, p in NORMS.items():
        made |= {f"{norm} step, {size}": partial(_step, f"{norm} step", p, size) for size in PIXELS}
    for norm, p in NORMS.items():
        made |= {f"{norm} start, {size}": partial(_start, f"{norm} start", p, size) for size in PIXELS}
    made |= {f"retire, {size}": partial(_retire, "retire", size) for size in PIXELS}
    sizes = [*LOGITS, [*LOGITS][-1] + PAST_CACHE]
    for label, operator in LOSSES.items():
        made |= {f"{label}, {size}": partial(_loss, label, operator, size) for size in sizes}
    return made
