"""Arithmetic of the CUDA kernels that no row of a test is long enough for: cuda_parts.cpp on the emulator."""

from __future__ import annotations

import ctypes

import cuda_parts
import pytest
from emulated import build


@pytest.fixture(scope="module")
def parts() -> ctypes.CDLL:
    return ctypes.CDLL(str(build(cuda_parts.SOURCE)))


@pytest.mark.parametrize("problem", [pytest.param(problem, id=label) for label, problem in cuda_parts.checks()])
def test_a_part_makes_what_it_should(problem: cuda_parts.Problem, parts: ctypes.CDLL) -> None:
    assert problem(parts) is None
