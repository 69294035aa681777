"""The ways to make one PGD step that are timed against each other, each as a function of one batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import eager_steps
from benchmarks.step_inputs import ALPHA, EPS, StepInputs
from fastsal import backends

Contender = Callable[[StepInputs], Tensor]
NORMS = {"Linf": math.inf, "L2": 2.0}


def step_contenders(norm: str) -> dict[str, Contender]:
    """By name: the operator, its bare body, two eager statements, and the first of them compiled."""
    p = NORMS[norm]
    eps, alpha = torch.tensor([EPS]), torch.tensor([ALPHA])
    low, high = torch.zeros(1), torch.ones(1)
    operator = torch.ops.fastsal.pgd_step.default
    body = backends.body_of("pgd_step", backends.bodies("cpu")["pgd_step"])
    with_temporaries = getattr(eager_steps, f"{norm.lower()}_with_temporaries")
    in_place = getattr(eager_steps, f"{norm.lower()}_in_place")
    compiled = torch.compile(with_temporaries, dynamic=False)

    def run_body(b: StepInputs) -> Tensor:
        body(b.x, b.x_adv, b.grad, eps, alpha, low, high, None, None, p, b.out, b.flags)
        return b.out

    return {
        "fastsal operator": lambda b: operator(b.x, b.x_adv, b.grad, eps, alpha, low, high, None, None, p)[0],
        "fastsal body, no allocation": run_body,
        "eager, one temporary per operation": lambda b: with_temporaries(b.x, b.x_adv, b.grad, EPS, ALPHA),
        "eager, in place": lambda b: in_place(b.x, b.x_adv, b.grad, EPS, ALPHA, b.out),
        "torch.compile of the first": lambda b: compiled(b.x, b.x_adv, b.grad, EPS, ALPHA),
    }


def agree(contenders: dict[str, Contender], batch: StepInputs) -> None:
    """Refuses to time statements that compute different things. Four units in the last place of 1 are rounding."""
    first, *others = contenders.items()
    expected = first[1](batch).clone()
    for name, contender in others:
        apart = float((contender(batch) - expected).abs().max())
        if not apart <= 2.0**-22:
            raise RuntimeError(f"{name} and {first[0]} differ by {apart:.3g}: not the same step, so not timed")
