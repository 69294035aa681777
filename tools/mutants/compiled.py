"""All mutants of the C++ and CUDA files, tried."""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools.mutants import libraries, trial
from tools.mutants.calls import Check, checks
from tools.mutants.libraries import Build, Library, Target, Tree
from tools.mutants.mutation import Choice, Mutation, Outcome
from tools.mutants.order import Order

NONE = -1  # the number of no mutation
Say = Callable[[str], None]


@dataclass(eq=False)
class Measured:
    """A check, what it costs without a mutation, and which places it reaches."""

    library: Library
    check: Check
    seconds: float
    places: bytearray

    def step(self, loaded: ctypes.CDLL) -> trial.Step:
        return trial.Step(self.check.label, lambda: self.check.problem(loaded), self.seconds)


def outcomes(
    texts: dict[str, str], wanted: Sequence[Target], choice: Choice, into: Path, jobs: int, say: Say
) -> Iterator[Outcome]:
    """What becomes of the chosen mutations of `texts`; the checks are those of the targets."""
    begin = time.monotonic()
    made = libraries.build(into / "switched", wanted, texts, choice, jobs)
    built = time.monotonic() - begin
    say(
        f"{len(made.switched)} mutants in {len(made.libraries)} libraries behind a switch, {len(made.apart)} to be "
        f"compiled by themselves ({built:.0f} s)"
    )
    measured = _measured(made)
    say(f"{len(measured)} checks pass without a mutation, in {sum(m.seconds for m in measured):.1f} s")
    order: Order[Measured] = Order()
    yield from _switched(made, measured, order, jobs)
    yield from _apart(made, measured, order, texts, into, jobs)


def _measured(made: Build) -> list[Measured]:
    found = []
    for library in made.libraries:
        for check in checks(library.target):
            library.reached(len(made.first))
            begin = time.perf_counter()
            problem = check.problem(library.loaded)
            seconds = time.perf_counter() - begin
            if problem is not None:
                raise SystemExit(f"{library.target}: wrong without any mutation: {problem}")
            found.append(Measured(library, check, seconds, library.reached(len(made.first))))
    return found


def _switched(made: Build, measured: list[Measured], order: Order[Measured], jobs: int) -> Iterator[Outcome]:
    chosen: dict[int, list[Measured]] = {NONE: measured}

    def trials() -> Iterator[trial.Trial[int]]:
        yield trial.Trial(NONE, [m.step(m.library.loaded) for m in measured])
        for number, mutation in made.switched.items():
            reaching = [m for m in measured if m.places[made.first[number]]]
            chosen[number] = order(mutation, reaching)
            steps = [m.step(m.library.loaded) for m in chosen[number]]
            yield trial.Trial(number, steps, functools.partial(_switch, made, number))

    for tried, verdict in trial.run(trials(), jobs):
        by = chosen[tried.key][verdict.step] if tried.steps else None
        if tried.key == NONE:
            if verdict.caught:
                label = by.check.label if by is not None else ""
                raise SystemExit(f"{verdict.how} without any mutation, in a process of its own: {label}")
            continue
        mutation = made.switched[tried.key]
        if verdict.caught and by is not None:
            order.caught(mutation, by)
            yield Outcome(mutation, "caught", f"{verdict.how}: {by.check.label}")
        else:
            yield Outcome.survivor(mutation, reached=bool(tried.steps))


def _switch(made: Build, number: int) -> None:
    for library in made.libraries:
        library.switch(number)


def _apart(
    made: Build, measured: list[Measured], order: Order[Measured], texts: dict[str, str], into: Path, jobs: int
) -> Iterator[Outcome]:
    """One compilation per mutant and target, until one of the targets catches it; the steps compile the longest."""
    trees = [Tree(into / f"apart{job}") for job in range(jobs)]
    quickest_first = sorted((lib.target for lib in made.libraries), key=lambda target: target.name == "pgd_step")
    left = {m: [target for target in quickest_first if m.path in made.reads[target]] for m in made.apart}
    yield from (Outcome.survivor(m, reached=False) for m, targets in left.items() if not targets)
    left = {m: targets for m, targets in left.items() if targets}
    stage = 0
    while left:
        stage += 1
        compiled = _compile([(m, targets[0]) for m, targets in left.items()], trees, texts, stage)
        tried: dict[Mutation, list[Measured]] = {}

        def trials(compiled=compiled, tried=tried) -> Iterator[trial.Trial[Mutation]]:  # type: ignore[no-untyped-def]
            for mutation, path in compiled.items():
                if path is None:
                    continue
                target = left[mutation][0]
                tried[mutation] = order(mutation, [m for m in measured if m.library.target == target])
                loaded = libraries.load(target, path)
                yield trial.Trial(mutation, [m.step(loaded) for m in tried[mutation]])

        for done, verdict in trial.run(trials(), jobs):
            mutation = done.key
            if verdict.caught:
                by = tried[mutation][verdict.step]
                order.caught(mutation, by)
                yield Outcome(mutation, "caught", f"{verdict.how}: {by.check.label}")
                del left[mutation]
            elif len(left[mutation]) == 1:
                yield Outcome.survivor(mutation)
                del left[mutation]
            else:
                left[mutation] = left[mutation][1:]
        for mutation, path in compiled.items():
            if path is None:
                yield Outcome(mutation, "invalid")
                del left[mutation]


def _compile(
    wanted: list[tuple[Mutation, Target]], trees: list[Tree], texts: dict[str, str], stage: int
) -> dict[Mutation, Path | None]:
    """The library of each mutant, one job per tree; None where it does not compile."""

    def work(job: int) -> dict[Mutation, Path | None]:
        tree, out = trees[job], dict[Mutation, Path | None]()
        for number in range(job, len(wanted), len(trees)):
            mutation, target = wanted[number]
            tree.write(mutation.path, mutation.applied(texts[mutation.path]))
            out[mutation] = tree.library(target, False, f"{stage}-{number}")[0]
            tree.write(mutation.path, texts[mutation.path])
        return out

    with ThreadPoolExecutor(len(trees)) as pool:
        parts = list(pool.map(work, range(len(trees))))
    return {mutation: path for part in parts for mutation, path in part.items()}
