"""What rows are made of, compiled by itself: row_parts.cpp held to what row_parts.py knows of it."""

from __future__ import annotations

import ctypes
import sys

import pytest
import row_parts
from compiled import build

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if sys.platform == "win32":
        pytest.skip("the test compiles a shared library with the flags of gcc and clang")
    return ctypes.CDLL(str(build("row_parts.cpp", tmp_path_factory.mktemp("parts"), "-shared", "-fPIC")))


@pytest.mark.parametrize("problem", [pytest.param(problem, id=label) for label, problem in row_parts.checks()])
def test_a_part_makes_what_it_should(problem: row_parts.Problem, parts: ctypes.CDLL) -> None:
    assert problem(parts) is None
