"""What the benchmarks share: how many turns, and the table at the end of a run."""

from __future__ import annotations

import shutil

import pytest

from benchmarks import test_attacks
from benchmarks.alternation import TURNS, machine
from benchmarks.kernel_report import LEGEND, Measured, plain_table

MEASURED = pytest.StashKey[list[Measured]]()
RACED = pytest.StashKey[list[test_attacks.Raced]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--turns", type=int, default=TURNS, help="alternations of a contest (default %(default)s)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MEASURED] = []
    config.stash[RACED] = []


@pytest.fixture
def turns(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--turns"))


@pytest.fixture
def summary(request: pytest.FixtureRequest) -> list[Measured]:
    return request.config.stash[MEASURED]


@pytest.fixture
def attacks(request: pytest.FixtureRequest) -> list[test_attacks.Raced]:
    return request.config.stash[RACED]


@pytest.fixture
def compiler() -> None:
    """For torch.compile, which writes C++ on a CPU."""
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("torch.compile needs a C++ compiler, and none is on the PATH")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    measured = config.stash[MEASURED]
    if measured:
        terminalreporter.section("kernels: GB/s and ratios")
        terminalreporter.write_line(f"{machine()}. {LEGEND}")
        for line in plain_table(measured):
            terminalreporter.write_line(line)
    raced = config.stash[RACED]
    if raced:
        terminalreporter.section("attacks: ratios")
        terminalreporter.write_line(machine())
        for line in test_attacks.table(raced):
            terminalreporter.write_line(line)
