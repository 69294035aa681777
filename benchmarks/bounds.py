"""What bounds an operator besides memory: its arithmetic alone, timed on operands in the cache (bounds.cpp)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from fastsal import backends

SOURCE = Path(__file__).with_name("bounds.cpp")
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
TIERS = {
    "baseline": [],
    "avx2": ["-mavx2"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512cd", "-mprefer-vector-width=512"],
}


@cache
def _program() -> Path | None:
    """bounds.cpp, compiled for the instruction set that the bodies run on; None without a compiler or an extension."""
    compiler = next(filter(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")), None)
    if compiler is None or backends.EXTENSION is None:
        return None
    program = Path(tempfile.mkdtemp(prefix="fastsal-bounds-")) / "bounds"
    include = ["-I", str(SOURCE.parent.parent / "csrc")]
    tier = TIERS[backends.EXTENSION.cpu_tier()]
    subprocess.run([compiler, *FLAGS, *tier, *include, str(SOURCE), "-o", str(program)], check=True)
    return program


@cache
def nanoseconds(elements: int) -> dict[str, float]:
    """Per element of a row of this length, on one thread, by kind of arithmetic; empty where nothing can be timed."""
    program = _program()
    if program is None:
        return {}
    lines = subprocess.run([program, str(elements)], capture_output=True, text=True, check=True).stdout.splitlines()
    return {kind: float(value) for kind, value in map(str.split, lines)}
