"""What an attack allocates at most, beside the plain fp32 loop: the bounds of docs/performance.md."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("tested without the repository: there is no benchmarks/ beside tests/", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks import where  # noqa: E402
from benchmarks.attack_memory import LOOP, broken, peak, peaks, report  # noqa: E402
from benchmarks.test_attacks import FP32, NETS  # noqa: E402

where.choose("cpu")
SHARES = {name: 1 if name.startswith("PreAct") else 1 / 8 for name in NETS}  # there weights are most of it


@pytest.mark.parametrize("name", NETS)
def test_the_bounds_are_kept(name: str) -> None:
    """In two steps: the first forward is watched, the second has folded batch norms and other weights."""
    found = peaks(name, SHARES[name], steps=2, bounded=True)
    assert broken(name, found) == []


def test_a_peak_is_counted() -> None:
    def call() -> None:
        a = torch.zeros(1000)
        b = torch.zeros(2000)
        del a, b
        torch.zeros(500)

    assert peak(call) == pytest.approx(12000, abs=256)  # blocks are rounded up


def test_a_broken_bound_is_named() -> None:
    assert broken("net", {LOOP: 100, FP32: 105}) == []
    (text,) = broken("net", {LOOP: 100, FP32: 106})
    assert text == "net: fastsal, fp32 at 1.060 of the plain loop, expected at most 1.05"


def test_the_report_has_a_row_for_each_contender() -> None:
    numbers = dict.fromkeys((LOOP, "fastsal, fast=False", FP32), 2**20)
    numbers |= {f"{FP32}, without {lever}": 2**21 for lever in ("channels_last", "fold_batch_norm", "lean_batch_norm")}
    text = report({"net": numbers}, "somewhere", 10)
    assert "| fastsal, fp32 | 1.05 | 1.000 |" in text and "without lean_batch_norm |  | 2.000 |" in text
