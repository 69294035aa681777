"""The Triton kernels, interpreted in processes of their own, against the reference by the shared cases and rules: in
blocks of several sizes, with operands off any alignment, out of range; and their noise word by word."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastsal.operators import OPERATORS

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

HERE = Path(__file__).parent
LEAST = {"random_start": 40, "pgd_step": 65, "retire": 25}  # calls; fewer would mean that cases went missing


def interpreted(program: str, *arguments: str) -> tuple[int, list[str]]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "FASTSAL_BACKEND": "reference"}
    done = subprocess.run(
        [sys.executable, str(HERE / program), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made, wrong = json.loads(done.stdout)
    return made, wrong


def test_device_functions_by_themselves_make_what_they_should() -> None:
    made, wrong = interpreted("triton_parts.py")
    assert wrong == []
    assert made >= 20


@pytest.mark.parametrize("name", OPERATORS)
def test_interpreted_kernels_agree_with_the_reference(name: str) -> None:
    made, wrong = interpreted("triton_interpreted.py", name, "quick")
    assert wrong == []
    assert made >= LEAST.get(name, 15)


@pytest.mark.device_code
@pytest.mark.parametrize("name", OPERATORS)
def test_interpreted_kernels_agree_with_the_reference_in_full(name: str) -> None:
    made, wrong = interpreted("triton_interpreted.py", name, "full")
    assert wrong == []
    assert made >= 95
