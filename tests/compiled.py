"""Compiles a test program against the row bodies in csrc/rows: headers only, no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# The flags of setup.py on which rounding depends, and every warning.
FLAGS = [
    "-std=c++17",
    "-O2",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Werror",
]


def build(source: str, into: Path, *extra: str) -> Path:
    """The compiled `source`; skips where there is no csrc/ or no C++ compiler."""
    if not (HERE.parent / "csrc").is_dir():
        pytest.skip("tested without the repository around it: there is no csrc/ beside tests/")
    compiler = next(filter(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")), None)
    if compiler is None:
        pytest.skip("no C++ compiler: none of $CXX, c++, g++ and clang++ is on the PATH")
    program = into / Path(source).stem
    command = [compiler, *FLAGS, *extra, "-I", str(HERE.parent / "csrc"), str(HERE / source), "-o", str(program)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return program
