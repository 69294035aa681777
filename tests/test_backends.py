"""Which body an operator runs on which device, and how a user chooses another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastsal import backends
from fastsal.operators import OPERATORS

PROGRAM = (
    "import torch, fastsal; from fastsal import backends; x = torch.rand(2, 3); one = torch.ones(1); "
    "torch.ops.fastsal.pgd_step(x, x, x, one, one, None, None, None, None, float('inf')); "
    "print(*(backends.bodies(device)['pgd_step'] for device in ('cpu', 'cuda', 'mps')))"
)


def started_with(backend: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FASTSAL_BACKEND": backend}
    return subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)


def built(monkeypatch: pytest.MonkeyPatch, targets: str | None, triton: bool, requested: str = "auto") -> None:
    """An installation: without the extension, or with CUDA bodies for `targets`; with triton or not."""
    extension = None if targets is None else SimpleNamespace(cuda_targets=lambda: targets)
    monkeypatch.setattr(backends, "EXTENSION", extension)
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setenv("FASTSAL_BACKEND", requested)


@pytest.mark.parametrize(
    ("targets", "triton", "cpu", "gpu"),
    [
        ("sm_80", True, "cpp", "cuda"),
        ("sm_80", False, "cpp", "cuda"),
        ("", True, "cpp", "triton"),
        ("", False, "cpp", "reference"),
        (None, True, "reference", "triton"),
        (None, False, "reference", "reference"),
    ],
)
def test_left_alone_the_quickest_body_that_is_there(
    monkeypatch: pytest.MonkeyPatch, targets: str | None, triton: bool, cpu: str, gpu: str
) -> None:
    built(monkeypatch, targets, triton)
    assert set(backends.bodies("cpu").values()) == {cpu}
    assert set(backends.bodies("cuda").values()) == {gpu}
    assert set(backends.bodies("xpu").values()) == {"reference"}
    assert backends.bodies("cpu").keys() == OPERATORS.keys()


@pytest.mark.parametrize(
    ("requested", "cpu", "gpu"),
    [
        ("reference", "reference", "reference"),
        ("triton", "cpp", "triton"),
        ("cuda", "cpp", "cuda"),
        ("cpp", "cpp", "cuda"),
    ],
)
def test_a_choice_counts_on_the_devices_that_it_is_for(
    monkeypatch: pytest.MonkeyPatch, requested: str, cpu: str, gpu: str
) -> None:
    built(monkeypatch, "sm_80", True, requested)
    assert (backends.bodies("cpu")["retire"], backends.bodies("cuda")["retire"]) == (cpu, gpu)


def test_a_rocm_build_has_no_cuda_bodies_and_runs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its devices are called cuda, but the extension is built without CUDA sources there."""
    built(monkeypatch, "", True)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert backends.bodies("cuda")["pgd_step"] == "triton"


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ("mmx", "FASTSAL_BACKEND: expected 'auto', 'cpp', 'cuda', 'triton', 'reference', got 'mmx'"),
        ("cuda", "FASTSAL_BACKEND=cuda, but the extension was built without CUDA sources"),
    ],
)
def test_a_choice_that_cannot_be_met_is_refused_at_import(requested: str, message: str) -> None:
    if requested == "cuda" and backends.EXTENSION is None:
        message = "FASTSAL_BACKEND=cuda, but the C++ extension is not there"
    elif requested == "cuda" and backends.EXTENSION.cuda_targets():
        pytest.skip("the CUDA bodies are built here")
    outcome = started_with(requested)
    assert outcome.returncode != 0 and message in outcome.stderr


def test_every_operator_has_a_body_of_every_kind() -> None:
    """As the sources bind them: Triton by the name of a file, C++ and CUDA in a list each."""
    top = Path(__file__).parent.parent
    if not (top / "csrc").is_dir():
        pytest.skip("tested without the repository around it: there is no csrc/ beside tests/")
    for source in ("csrc/module.cpp", "csrc/cuda/bindings.cpp"):
        bound = re.findall(r'm\.impl\("(\w+)", TORCH_BOX\(&fastsal::(\w+)\)\)', (top / source).read_text())
        assert sorted(bound) == sorted((name, name) for name in OPERATORS)
    for name in OPERATORS:
        assert "\ndef launch(" in (top / "kernels" / f"{name}.py").read_text()


def test_plain_torch_on_request_is_no_cause_for_a_warning() -> None:
    outcome = started_with("reference")
    assert outcome.stdout.split() == ["reference"] * 3
    assert outcome.stderr == ""


def test_triton_is_imported_with_the_first_call_only() -> None:
    program = PROGRAM + "; import sys; print('triton' in sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert outcome.stdout.split()[-1] == "False"
