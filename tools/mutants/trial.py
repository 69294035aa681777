"""Trials of mutants, each in a process of its own: a crash or an endless loop is noticed as well as a wrong number."""

from __future__ import annotations

import faulthandler
import os
import resource
import select
import signal
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

Key = TypeVar("Key")
STILL = 120  # seconds after which a process that does nothing is given up
ROOM = 4 << 30  # bytes that a mutant may allocate


@dataclass(frozen=True)
class Step:
    """One check of a trial: `problem()` says what is wrong; `seconds` is what it takes without a mutation."""

    label: str
    problem: Callable[[], object]
    seconds: float


@dataclass(frozen=True)
class Trial(Generic[Key]):
    """A mutant and the checks that it must survive, the likeliest to catch it first."""

    key: Key
    steps: Sequence[Step]
    prepare: Callable[[], None] = lambda: None  # switches the mutation on


@dataclass(frozen=True)
class Verdict:
    caught: bool
    step: int  # the check that caught it, or the last one
    how: str  # "disagrees", "crash", "endless"


def run(trials: Iterable[Trial[Key]], jobs: int) -> Iterator[tuple[Trial[Key], Verdict]]:
    """The verdicts, as they come."""
    running: dict[int, tuple[Trial[Key], int, int]] = {}  # by the reading end: trial, process
    waiting = iter(trials)
    exhausted = False
    while True:
        while not exhausted and len(running) < jobs:
            trial = next(waiting, None)
            if trial is None:
                exhausted = True
            elif trial.steps:
                reading, process = _start(trial)
                running[reading] = (trial, process, 0)
            else:
                yield trial, Verdict(False, -1, "")
        if not running:
            return
        for reading in select.select(list(running), [], [])[0]:
            trial, process, last = running[reading]
            said = os.read(reading, 4096)
            if said:
                running[reading] = (trial, process, struct.unpack("i", said[-4:])[0])
                continue
            del running[reading]
            os.close(reading)
            yield trial, _verdict(os.waitpid(process, 0)[1], last)


def _verdict(status: int, last: int) -> Verdict:
    if os.WIFSIGNALED(status):
        endless = os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM)
        return Verdict(True, last, "endless" if endless else "crash")
    return Verdict(os.WEXITSTATUS(status) != 0, last, "disagrees" if os.WEXITSTATUS(status) else "")


def _start(trial: Trial[Key]) -> tuple[int, int]:
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return reading, process
    status = 1
    try:
        os.close(reading)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        faulthandler.disable()  # a crash is a result, not news
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
        signal.alarm(STILL)
        trial.prepare()
        status = int(_wrong(trial.steps, writing))
    finally:
        os._exit(status)  # whatever was raised: caught


def _wrong(steps: Sequence[Step], writing: int) -> bool:
    for number, step in enumerate(steps):
        os.write(writing, struct.pack("i", number))
        signal.setitimer(signal.ITIMER_PROF, 0.4 + 20 * step.seconds)  # of this process: others do not count
        if step.problem() is not None:
            return True
    return False
