"""C++ bodies and emulated CUDA kernels read and write nothing beside their operands, whatever these hold: under the
address sanitizer, with every operand in memory of exactly its size."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from emulated import CSRC, EmulatorError, compiler, source
from kernel_cases import Case, answer, cases, disagreement, run_reference, wild_cases
from sanitized import sanitized
from torch import Tensor
from torch.utils import cpp_extension

from fastsal.operators import OPERATORS

PROGRAM = Path(__file__).parent / "address_sanitizer.py"
# Rounding is not looked at here, so the lowest optimisation does, which compiles quickest.
FLAGS = ["-std=c++17", "-O0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fsanitize=address", "-g1"]
FLAGS += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030a0000"]
TIERS = ("baseline", "avx2", "avx512")
# An overrun for each way in which bodies walk: a row too far by an element, and by what memcpy is told.
PLANTED = {
    "margin_loss": (
        "rows/margin_loss.h",
        "largest_of<T>(classes - after, later)",
        "largest_of<T>(classes - after + 1, later)",
    ),
    "retire": ("cpu/retire.cpp", "copies[i].from, bytes)", "copies[i].from, bytes + 1)"),
}

# --------------------------------------------------------------------------------------------- the C++ bodies


def tools() -> tuple[str, str]:
    """g++ and its sanitizer; skips where one of them, or what they need, is not there."""
    compiler()  # skips where there are no sources
    found = shutil.which("g++")
    if found is None:
        pytest.skip("g++ is not on the PATH")
    library = subprocess.run([found, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    if not Path(library.stdout.strip()).is_file():
        pytest.skip("g++ has no address sanitizer")
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        pytest.skip("Python's headers are not installed")
    return found, library.stdout.strip()


def built(*options: str, planted: str = "") -> Path:
    """The extension under the sanitizer; kept in the temporary directory under the hash of all that goes into it."""
    sources = sorted(path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp") and path.parent.name != "cuda")
    texts = {path.relative_to(CSRC): path.read_text() for path in sources}
    if planted:
        name, before, after = PLANTED[planted]
        assert texts[Path(name)].count(before) == 1, f"{before!r} is no longer in {name}"
        texts[Path(name)] = texts[Path(name)].replace(before, after)
    flags = [*FLAGS, *options]
    key = hashlib.sha256(repr((texts, flags, torch.__version__, sys.version, tools())).encode()).hexdigest()[:24]
    room = Path(tempfile.gettempdir()) / f"fastsal-sanitized-{os.getuid()}"
    room.mkdir(mode=0o700, exist_ok=True)
    extension = room / f"{key}.so"
    with open(room / f"{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one test process builds, another that wants the same waits
        if not extension.exists():
            with tempfile.TemporaryDirectory(dir=room) as work:
                compile_and_link(texts, flags, Path(work)).replace(extension)
    return extension


def compile_and_link(texts: dict[Path, str], flags: list[str], work: Path) -> Path:
    for name, text in texts.items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text(text)
    includes = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    isystem = [word for folder in includes for word in ("-isystem", folder)]

    def run(*command: str | Path) -> None:
        outcome = subprocess.run([tools()[0], *command], capture_output=True, text=True, check=False)
        assert outcome.returncode == 0, outcome.stderr

    units = [work / name for name in texts if name.suffix == ".cpp"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda unit: run(*flags, *isystem, "-c", unit, "-o", unit.with_suffix(".o")), units))
    folders = [f"-L{folder}" for folder in cpp_extension.library_paths()]
    objects = [unit.with_suffix(".o") for unit in units]
    run("-shared", "-fsanitize=address", *objects, *folders, "-ltorch", "-ltorch_cpu", "-lc10", "-o", work / "_C.so")
    return work / "_C.so"


def drive(extension: Path, size: str, **environment: str) -> subprocess.CompletedProcess[str]:
    preloaded = {"LD_PRELOAD": tools()[1], "ASAN_OPTIONS": "detect_leaks=0", "FASTSAL_BACKEND": "auto"}
    command = [sys.executable, str(PROGRAM), str(extension), size]
    return subprocess.run(
        command, env=os.environ | preloaded | environment, capture_output=True, text=True, check=False
    )


def stays_within(extension: Path, size: str, **environment: str) -> None:
    outcome = drive(extension, size, **environment)
    assert outcome.returncode == 0, outcome.stderr
    for line in outcome.stdout.splitlines():
        made = json.loads(line)
        assert set(made) == set(OPERATORS) and min(made.values()) > 20  # else cases went missing
    assert len(outcome.stdout.splitlines()) == 2


def test_cpp_bodies_stay_within_their_operands() -> None:
    stays_within(built("-DFASTSAL_ONE_TIER"), "quick")


@pytest.mark.device_code
@pytest.mark.parametrize("tier", TIERS)
def test_cpp_bodies_of_every_tier_stay_within_their_operands(tier: str) -> None:
    # by the usual extension: under the sanitizer an exception that nothing catches ends in a report of its own
    command = [sys.executable, "-c", "import torch, fastsal._C"]
    environment = os.environ | {"FASTSAL_CPU_TIER": tier}
    usual = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "expected a tier that this processor has" in usual.stderr:
        pytest.skip(f"this processor has no {tier}")
    assert usual.returncode == 0, usual.stderr
    stays_within(built(), "full", FASTSAL_CPU_TIER=tier)


@pytest.mark.device_code
@pytest.mark.parametrize("name", PLANTED)
def test_an_overrun_of_a_cpp_body_is_caught(name: str) -> None:
    outcome = drive(built("-DFASTSAL_ONE_TIER", planted=name), "quick")
    assert outcome.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in outcome.stderr and f"{name}.cpp" in outcome.stderr


# --------------------------------------------------------------------------------- the emulated CUDA kernels

BLOCKS = (0, 32, 96)  # at most so many threads in a block; 0: the usual


def small(case: Case) -> bool:
    return sum(a.numel() for a in case.args if isinstance(a, Tensor)) < 3000


def kernels_stay_within(name: str, size: str) -> None:
    tools()  # skips where there are no sources, no compiler or no sanitizer
    for seed, case in enumerate(filter(small, itertools.chain(cases(name, size), wild_cases(name)))):
        how = {"seed": seed, "threads": BLOCKS[seed % 3]}
        problem = disagreement(case, answer(case, functools.partial(sanitized, name, **how)), run_reference(case))
        assert problem is None, f"{how}: {problem}"


@pytest.mark.parametrize("name", OPERATORS)
def test_emulated_kernels_stay_within_their_operands(name: str, one_thread: None) -> None:
    kernels_stay_within(name, "quick")


@pytest.mark.device_code
@pytest.mark.parametrize("name", OPERATORS)
def test_emulated_kernels_stay_within_their_operands_in_full(name: str, one_thread: None) -> None:
    kernels_stay_within(name, "full")


def test_an_overrun_of_an_emulated_kernel_is_caught(one_thread: None) -> None:
    """A copy that goes on for one element more."""
    compiler()
    kernels = (CSRC / "cuda" / "retire.cuh").read_text().replace("#pragma once", "")
    before = "if (i < units)"
    assert kernels.count(before) == 2, f"{before!r} is no longer in retire.cuh"
    kernels = kernels.replace('#include "', '#include "cuda/')
    launches = (CSRC / "cuda" / "retire.cu").read_text().replace('#include "retire.cuh"', "")

    def texts(body: str) -> str:
        return source("retire").replace('#include "cuda/retire.cu"', body + launches)

    case = next(case for case in cases("retire", "quick") if case["last"] and case["ids"] is None)  # every row leaves
    answer(case, functools.partial(sanitized, "retire", text=texts(kernels)))
    with pytest.raises(EmulatorError, match=r"AddressSanitizer: heap-buffer-overflow[^$]*retire_kernel"):
        answer(case, functools.partial(sanitized, "retire", text=texts(kernels.replace(before, "if (i <= units)"))))
