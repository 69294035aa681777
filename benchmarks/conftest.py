"""What the benchmarks share: how many turns, and the table at the end of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import marked, test_attacks, test_sense_attack, where
from benchmarks.alternation import TURNS, machine
from benchmarks.kernel_report import LEGEND, Measured, plain_table

MEASURED = pytest.StashKey[list[Measured]]()
RACED = pytest.StashKey[list[test_attacks.Raced]]()
SENSED = pytest.StashKey[list[test_sense_attack.Sensed]]()
STARTED = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    where.add_option(parser.addoption)
    parser.addoption("--turns", type=int, default=TURNS, help="alternations of a contest (default %(default)s)")
    parser.addoption("--write", type=Path, help="a markdown file whose marked section, of attacks, is replaced")


def pytest_configure(config: pytest.Config) -> None:
    where.choose(config.getoption("--device"))
    config.stash[MEASURED] = []
    config.stash[RACED] = []
    config.stash[SENSED] = []
    config.stash[STARTED] = machine()


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
def sensed(request: pytest.FixtureRequest) -> list[test_sense_attack.Sensed]:
    return request.config.stash[SENSED]


@pytest.fixture
def compiler() -> None:
    """For torch.compile, which writes C++ on a CPU."""
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("torch.compile needs a C++ compiler, and none is on the PATH")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    measured = config.stash[MEASURED]
    if measured:
        terminalreporter.section("kernels: GB/s and ratios")
        terminalreporter.write_line(f"{config.stash[STARTED]}. {LEGEND}")
        for line in plain_table(measured):
            terminalreporter.write_line(line)
    raced, sensed = config.stash[RACED], config.stash[SENSED]
    parts = [f"Machine: {config.stash[STARTED]}. Medians over turns of paired ratios (quartiles)."]
    if raced:
        parts += [test_attacks.table(raced), test_attacks.missed(raced), *test_attacks.beside()]
    for contest in sensed:
        parts += [test_sense_attack.words(contest), test_sense_attack.table(contest), test_sense_attack.missed(contest)]
    if raced or sensed:
        terminalreporter.section("attacks: ratios")
        text = "\n\n".join(parts)
        terminalreporter.write_line(text)
        if config.getoption("--write"):
            marked.write(where.section("attacks"), text, config.getoption("--write"))
