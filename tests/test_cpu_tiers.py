"""Every instruction set gives the same bits: baseline, AVX2, AVX-512, each forced in a process of its own.

A tier is chosen once, when the library loads. Run as a program, this file prints the tier that it got and a SHA-256
of every output of every operator on fixed inputs.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from operands import (
    BODIES,
    INF,
    LAYOUTS,
    arguments,
    around,
    box,
    clean,
    dtypes,
    gradients,
    run,
    scores,
    variants,
)
from torch import Tensor

from fastsal.backends import EXTENSION
from fastsal.checks import FLOATS, GRADIENTS, NORMS
from fastsal.operators import OPERATORS

pytestmark = pytest.mark.usefixtures("one_thread")
TIERS = ("baseline", "avx2", "avx512")


def calls() -> Iterator[tuple[str, list[Any]]]:
    """Operator and arguments: the small awkward calls in each layout and dtype, then rows of odd lengths."""
    for name in OPERATORS:
        for dtype, grad in dtypes(name):
            for layout in LAYOUTS:
                for variant in variants(name):
                    yield name, arguments(name, dtype, grad, layout, variant, padding=2)
    for dtype in FLOATS:
        for shape in ((1,), (63,), (1000,), (3, 33, 31), (16_389,)):
            x, radius = clean(4, shape, dtype), torch.full((1,), 8 / 255, dtype=dtype)
            edges = box("unit", 1, dtype)
            for p in NORMS:
                yield "random_start", [x, radius, torch.tensor(11), None, *edges, None, p]
                for grad in GRADIENTS:
                    slope, here = gradients(4, shape, grad, finite=p != INF), around(x, radius, p != INF)
                    yield "pgd_step", [x, here, slope, radius, radius, *edges, None, None, p, 1 + shape[-1] // 20]
    for dtype in GRADIENTS:
        for classes in (2, 10, 17, 1000, 100_000):
            logits, target = scores(3, classes, dtype), torch.tensor([0, 1, classes - 1])
            yield "truncated_cross_entropy", [logits, target, None, 0.7]
            yield "margin_loss", [logits, target, None, None, False]
            yield "kl_divergence", [logits, logits.flip(1), None, True]
            if classes > 2:
                yield "margin_loss", [logits, target, None, None, True]


def digests() -> list[str]:
    torch.manual_seed(5)
    lines = []
    for at, (name, args) in enumerate(calls()):
        digest = hashlib.sha256()
        changed = [
            a for a, label in zip(args, OPERATORS[name].argument_names, strict=True) if label in ("result", "stop")
        ]
        for out in (*run("cpp", name, *args), *changed):
            out = out.contiguous()
            digest.update(out.view(torch.uint8).numpy().tobytes() if out.numel() else b"")
        labels = [f"{tuple(a.shape)} {a.dtype}" for a in args if isinstance(a, Tensor)]
        lines.append(f"{at} {name} {' '.join(labels)} {digest.hexdigest()}")
    return lines


Outcome = tuple[int, str, str]  # exit status, stdout, stderr


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """One process per tier, and one that is asked for a tier that does not exist."""
    if "cpp" not in BODIES:
        pytest.skip("the C++ extension is not built")
    running = {
        tier: subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | {"FASTSAL_CPU_TIER": tier, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for tier in (*TIERS, "mmx")
    }
    found = {}
    for tier, process in running.items():
        out, err = process.communicate()
        found[tier] = (process.returncode, out, err)
    return found


def report(outcome: Outcome) -> tuple[str, list[str]]:
    status, out, err = outcome
    assert status == 0, err
    tier, lines = json.loads(out)
    return tier, lines


@pytest.mark.parametrize("tier", TIERS)
def test_every_tier_gives_the_bits_of_the_baseline(tier: str, outcomes: dict[str, Outcome]) -> None:
    if "expected a tier that this processor has" in outcomes[tier][2] and tier != "baseline":
        pytest.skip(f"this processor has no {tier}")
    ran, lines = report(outcomes[tier])
    assert ran == tier
    _, expected = report(outcomes["baseline"])
    assert len(lines) == len(expected) > 150
    assert [a for a, b in zip(lines, expected, strict=True) if a != b] == []
    assert len({line.split()[-1] for line in lines}) > 0.9 * len(lines)  # the digests do see the outputs


def test_left_alone_the_best_tier_of_the_processor_runs(outcomes: dict[str, Outcome]) -> None:
    had = [tier for tier in TIERS if outcomes[tier][0] == 0]
    assert had == list(TIERS[: len(had)])
    if not os.environ.get("FASTSAL_CPU_TIER"):
        assert EXTENSION.cpu_tier() == had[-1]
    assert digests() == report(outcomes["baseline"])[1]


def test_a_tier_that_does_not_exist_is_refused_at_import(outcomes: dict[str, Outcome]) -> None:
    status, _, err = outcomes["mmx"]
    assert status != 0
    assert "ValueError: FASTSAL_CPU_TIER: expected baseline, avx2 or avx512, got mmx" in err


if __name__ == "__main__":
    print(json.dumps([EXTENSION.cpu_tier(), digests()]))


@pytest.mark.skipif(EXTENSION is None, reason="the C++ extension is not built")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump to read machine code with")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks for instructions of x86-64")
def test_no_tier_fuses_a_multiplication_and_an_addition() -> None:
    """Else an instruction set that has FMA would give other bits."""
    command = ["objdump", "-d", "--no-show-raw-insn", EXTENSION.__file__]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "%zmm" in code and "vmulps" in code and "vaddpd" in code  # the vector code of every tier was read
    assert re.findall(r"vfn?m(?:add|sub)\w*", code) == []
