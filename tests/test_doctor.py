"""`fastsal doctor`: it says what runs where, and finds a body that is wrong."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastsal
from fastsal import backends, doctor
from fastsal.cli import main
from fastsal.operators import OPERATORS


def examine(speed: bool = False) -> tuple[bool, str]:
    out = io.StringIO()
    return doctor.examine(out, speed), out.getvalue()


def line_of(operator: str, text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(operator))


def spoil(monkeypatch: pytest.MonkeyPatch, operator: str, harm: Callable[[tuple[Any, ...]], None]) -> None:
    """The body that `operator` runs does its work, and then harm to its operands and outputs."""
    honest = backends.body_of

    def body_of(name: str, kind: str) -> Any:
        body = honest(name, "reference")

        def spoiled(*operands: Any) -> int:
            status = body(*operands)
            harm(operands)
            return status

        return spoiled if name == operator and kind == "cpp" else body

    monkeypatch.setattr(backends, "body_of", body_of)
    monkeypatch.setattr(backends, "bodies", lambda device: dict.fromkeys(OPERATORS, "cpp"))


def test_it_says_versions_processor_and_devices() -> None:
    healthy, text = examine()
    assert healthy
    for part in (
        f"fastsal {fastsal.__version__}",
        f"torch {torch.__version__}",
        "torch threads",
        "C++ extension:",
        "CUDA bodies:",
        "Triton bodies:",
        "FASTSAL_BACKEND:",
        "CUDA device:",
    ):
        assert part in text


def test_every_operator_is_checked_in_every_norm_on_the_body_that_it_runs() -> None:
    text = examine()[1]
    for operator, body in backends.bodies("cpu").items():
        lines = [line for line in text.splitlines() if line.startswith(operator)]
        assert lines and all(line.endswith(" ok") and f" {body} " in line for line in lines)
    for operator in ("random_start", "pgd_step"):
        for norm in ("Linf", "L2", "L1"):
            assert f"{operator} {norm} " in text


def test_speeds_stand_beside_a_copy_of_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_copy_speed", lambda device, shape: 50.0)
    monkeypatch.setattr(doctor, "_speed", lambda case, body, device: 10.0 if case.name == "retire" else 5.0)
    monkeypatch.setattr(backends, "bodies", lambda device: dict.fromkeys(OPERATORS, "cpp"))
    monkeypatch.setattr(backends, "body_of", lambda name, kind, honest=backends.body_of: honest(name, "reference"))
    text = examine(speed=True)[1]
    assert "floats on cpu: 50.0 GB/s" in text
    assert line_of("retire", text).split()[-3:-1] == ["10.00", "20%"]
    assert line_of("pgd_step", text).split()[-3:-1] == ["5.00", "10%"]


def test_a_speed_is_bytes_by_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(3, 4)
    arguments = (x, x.clone(), None, torch.ones(3).bool(), None, None, x.clone(), torch.zeros(3).long(), 1, False)
    monkeypatch.setattr(doctor, "_seconds", lambda call, device: (call(), 2e-6)[1])
    case = doctor.Case("retire", "", arguments, 0.0, 96)
    assert doctor._speed(case, "reference", torch.device("cpu")) == pytest.approx(96 / 2e-6 / 1e9)


def test_the_extension_is_named_with_its_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    if backends.EXTENSION is not None:
        assert backends.EXTENSION.cpu_tier() in line_of("C++ extension", examine()[1])
    monkeypatch.setattr(backends, "EXTENSION", None)
    monkeypatch.setattr(backends, "EXTENSION_MISSING", "it was never built")
    healthy, text = examine()
    assert healthy and "it was never built" in line_of("C++ extension", text) and "plain torch" in text
    assert " reference " in line_of("pgd_step", text) and " cpp " not in text


def test_a_body_that_is_a_little_off_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def harm(operands: tuple[Any, ...]) -> None:
        operands[-1 - len(OPERATORS["random_start"].returns) + 1].view(-1)[5].add_(1e-3)

    spoil(monkeypatch, "random_start", harm)
    assert main(["doctor", "--no-speed"]) == 1
    text = capsys.readouterr().out
    assert line_of("random_start", text).endswith("FAILED") and line_of("pgd_step", text).endswith("ok")
    assert "DISAGREES" in text


@pytest.mark.parametrize("place", range(4))
def test_a_nan_in_any_output_is_found(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """Loss, gradient, right, over: in the two that are floats a NaN, in the other two one wrong flag."""

    def harm(operands: tuple[Any, ...]) -> None:
        out = operands[len(OPERATORS["truncated_cross_entropy"].argument_names) + place].view(-1)
        out[3] = math.nan if out.is_floating_point() else not out[3]

    spoil(monkeypatch, "truncated_cross_entropy", harm)
    healthy, text = examine()
    assert not healthy and line_of("truncated_cross_entropy", text).endswith("FAILED")


def test_an_argument_written_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    result = OPERATORS["retire"].argument_names.index("result")

    def harm(operands: tuple[Any, ...]) -> None:
        operands[result].view(-1)[0] += 1

    spoil(monkeypatch, "retire", harm)
    healthy, text = examine()
    assert not healthy and line_of("retire", text).endswith("FAILED")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([math.nan, 1.0], [math.nan, 1.0], 0.0),
        ([math.nan, 1.0], [0.0, 1.0], math.inf),
        ([0.0, 1.0], [math.nan, 1.0], math.inf),
        ([math.inf, -math.inf], [math.inf, -math.inf], 0.0),
        ([math.inf], [-math.inf], math.inf),
        ([1.0, 1.0], [1.0], math.inf),
    ],
)
def test_differences_know_nan_infinity_and_shape(a: list[float], b: list[float], expected: float) -> None:
    def tensor(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    assert doctor._farthest(tensor(a), tensor(b)) == expected
