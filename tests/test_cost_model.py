"""The cost model: a case by hand, the direction of each input, and that a prediction is called one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("tested without the repository: there is no benchmarks/ beside tests/", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks.cost_model import PEERS, Cost, Peer, fastsal_costs, fastsal_steps, main, table  # noqa: E402

# Per row: 100 bytes of step, 10 of loss, 4 of flags and indices, 60 for a row that leaves.
COUNTED = {
    "pgd_step": Cost(1, 100),
    "truncated_cross_entropy": Cost(1, 10),
    "retire": Cost(1, 4),
    "copy": Cost(0, 60),
}


def test_a_case_by_hand() -> None:
    """1,000 rows: a PGD step is one launch and 100,000 bytes; SENSE three launches and 100 + 10 + 4 + 60 / 10 a row."""
    steps = fastsal_steps(COUNTED, 1000, 10)
    assert steps["fastsal PGD step"] == Cost(1, 100_000)
    assert steps["fastsal SENSE step"] == Cost(3, 120_000)
    # 2 GB/s are 2,000 bytes a microsecond
    assert steps["fastsal PGD step"].microseconds(2.0, 7.0) == 7 + 50
    assert steps["fastsal SENSE step"].microseconds(2.0, 7.0) == 21 + 60


def test_a_peer_by_hand() -> None:
    """36 passes over 128x3x32x32 floats are 56.6 MB: 27.8 us at 2,039 GB/s, and 75 us of launches."""
    authors = next(peer for peer in PEERS if peer.name == "SENSE authors")
    cost = authors.cost("Linf", 4 * 128 * 3 * 32 * 32)
    assert cost == Cost(15, 36 * 1_572_864)
    assert cost.microseconds(2039, 5) == pytest.approx(75 + 27.77, abs=0.01)
    # passes that nobody counted: at least one tensor read and one written
    assert Peer("another", {"Linf": 5}, {}, "0").cost("Linf", 100) == Cost(5, 1000)


def test_more_bandwidth_and_less_latency_never_cost_more() -> None:
    cost = Cost(3, 1e6)
    times = [cost.microseconds(bandwidth, 5.0) for bandwidth in (100, 1000, 2039, 3350, 8000)]
    assert times == sorted(times, reverse=True) and len(set(times)) == len(times)
    assert cost.microseconds(1000, 2.0) < cost.microseconds(1000, 5.0)


def test_every_table_says_that_it_is_a_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--bandwidth", "A100=1000", "--latency", "2"], counted=lambda norm, shape, classes: COUNTED)
    printed = capsys.readouterr().out
    parts = printed.split("\n\n")
    assert parts[0].startswith("Predictions: microseconds = launches * latency + bytes / bandwidth")
    assert "latency 2 us" in parts[0] and "A100 1000 GB/s" in parts[0]
    assert len(parts[1:]) == 8  # two devices, two sizes, two norms
    for part in parts[1:]:
        assert "prediction, not a measurement" in part.splitlines()[0]
        assert "fastsal PGD step" in part and "fastsal SENSE step" in part and "SENSE authors" in part


def test_a_bound_from_below_is_marked() -> None:
    text = table("A100", 2039.0, 5.0, "CIFAR 128x3x32x32", "Linf", fastsal_steps(COUNTED, 128, 10))
    rows = {line[2:28].strip(): line for line in text.splitlines()}
    assert ">=" in rows["adv-lib pgd_linf"] and ">=" not in rows["SENSE authors"]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_counts_come_from_the_kernels(norm: str) -> None:
    """A small row: read x, x_adv and grad, write next and a flag, in one launch; a row that leaves is read and written
    once. A loss writes its value and two flags, `retire` two indices a row and the live count, here of two rows."""
    costs = fastsal_costs(norm, (128, 3, 32, 32), 10)
    row = 4 * 3 * 32 * 32
    assert costs["pgd_step"] == Cost(1, 4 * row + 1)
    assert costs["truncated_cross_entropy"] == Cost(1, 2 * 4 * 10 + 4 + 2)
    assert costs["retire"] == Cost(1, 8 + 8 + 8 / 2)
    assert costs["copy"] == Cost(0, 2 * row)


def test_a_large_row_takes_three_launches_in_l2() -> None:
    """It is read for the norm of the gradient, for that of the displacement, and for the step: 8 passes, and what the
    first two leave in the workspace, about a hundredth."""
    cost, passes = fastsal_costs("L2", (64, 3, 224, 224), 10)["pgd_step"], 8 * 4 * 3 * 224 * 224
    assert cost.launches == 3
    assert passes <= cost.bytes <= 1.01 * passes
