"""What an operator remembers of its calls: one description of the operands, one answer of the checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operands import INF, LAYOUTS, arguments, same_bits

from fastsal import backends, calls
from fastsal.operators import OPERATORS


def implementation(name: str) -> tuple[Any, list[int]]:
    """The operator with its reference body, and how often its checks ran."""
    operator = OPERATORS[name]
    plans: list[int] = []

    def plan(*args: Any) -> Any:
        plans.append(1)
        return operator.plan(*args)

    counted = type(operator)(
        operator.name, operator.arguments, operator.returns, plan, operator.values, operator.dense
    )  # fmt: skip
    return calls.implementation(counted, backends.body_of(name, "reference"), check_values=True), plans


@pytest.mark.parametrize("name", OPERATORS)
def test_the_checks_run_once_for_calls_of_one_description(name: str) -> None:
    run, plans = implementation(name)
    for seed in range(3):
        torch.manual_seed(seed)
        run(*arguments(name))
    assert len(plans) == 1


@pytest.mark.parametrize("change", ["dtype", "shape", "strides", "norm", "absent"])
def test_another_description_is_checked_again(change: str) -> None:
    run, plans = implementation("pgd_step")
    args = arguments("pgd_step", variant=2.0)
    run(*args)
    if change == "dtype":
        args[2] = args[2].double()
    elif change == "shape":
        args[1], args[2] = args[1][:5].repeat(2, 1, 1, 1), args[2][:5].repeat(2, 1, 1, 1)
    elif change == "strides":
        args[2] = args[2].contiguous(memory_format=torch.channels_last)
    elif change == "norm":
        args[9] = INF
    else:
        args[5] = None
    run(*args)
    assert len(plans) == 2


def test_a_refused_call_is_refused_again_and_spoils_nothing() -> None:
    run, _ = implementation("pgd_step")
    good, bad = arguments("pgd_step"), arguments("pgd_step")
    bad[3] = bad[3].double()
    expected = run(*good)[0]
    for _ in range(2):
        with pytest.raises(TypeError, match=r"fastsal\.pgd_step: eps: expected torch\.float32, got torch\.float64"):
            run(*bad)
        assert same_bits(run(*good)[0][[0, 2, 3]], expected[[0, 2, 3]])


def test_every_layout_is_laid_out_for_itself() -> None:
    """A remembered call that needed copies does not lend them to one that does not, nor the other way round."""
    run, _ = implementation("pgd_step")
    outcomes = []
    for layout in (*LAYOUTS, *LAYOUTS):
        torch.manual_seed(1)
        outcomes.append(run(*arguments("pgd_step", layout=layout, padding=2))[0])
    assert all(same_bits(outcomes[0], other) for other in outcomes[1:])


def test_values_are_looked_at_in_every_call() -> None:
    run, _ = implementation("pgd_step")
    args = arguments("pgd_step")
    run(*args)
    args[8] = torch.full_like(args[8], 77)
    with pytest.raises(ValueError, match=r"fastsal\.pgd_step: ids: expected values in \[-1, 6\), got 77"):
        run(*args)


def test_memory_for_an_output_is_compared_with_the_arguments_of_this_call() -> None:
    run, _ = implementation("pgd_step")
    x, grad, one = torch.rand(4, 3), torch.randn(4, 3), torch.ones(1)
    args = [x, x.clone(), grad, one, one, None, None, None, None, INF, 1]
    out, flags = torch.empty_like(x), torch.empty(4, dtype=torch.bool)
    run(*args, next_out=out, nonfinite_out=flags)
    args[1] = out
    with pytest.raises(ValueError, match="next_out: expected memory apart from that of x_adv"):
        run(*args, next_out=out, nonfinite_out=flags)


def test_what_is_remembered_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "REMEMBERED", 3)
    run, plans = implementation("retire")
    for step in [*range(8), 7]:
        args = arguments("retire")
        args[8] = step
        run(*args)
    assert len(plans) == 8
