"""All mutants of the Triton kernels, tried under Triton's interpreter."""

from __future__ import annotations

import ast
import functools
import importlib
import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.mutants import python, trial
from tools.mutants.libraries import ROOT
from tools.mutants.mutation import Choice, Mutation, Outcome
from tools.mutants.order import Order

Lines = set[tuple[str, int]]  # file and number


@dataclass(eq=False)
class Interpreted:
    """A case of an operator, what it costs without a mutation, and which lines it runs."""

    operator: str
    label: str
    problem: Callable[[Callable[..., Any]], str | None]  # given the kernel's launch
    seconds: float = 0.0
    lines: frozenset[tuple[str, int]] = frozenset()


def sources() -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted(ROOT.glob("kernels/*.py"))}


def operators() -> list[str]:
    """The operators that have kernels."""
    from fastsal.operators import OPERATORS

    return [name for name in OPERATORS if (ROOT / "kernels" / f"{name}.py").exists()]


def _package(into: Path, name: str, texts: dict[str, str]) -> None:
    """The kernels as a package of that name."""
    folder = into / name
    folder.mkdir(parents=True)
    for path, text in texts.items():
        (folder / Path(path).name).write_text(text)


def _launch(package: str, operator: str) -> Callable[..., Any]:
    launch: Callable[..., Any] = importlib.import_module(f"{package}.{operator}").launch
    return launch


def checks(operators: Sequence[str]) -> Iterator[Interpreted]:
    from kernel_calls import real_rows
    from kernel_cases import Case, answer, cases, disagreement, run_reference, wild_cases

    from tools.mutants.memory import fenced_case

    def agreement(case: Case) -> Callable[[Callable[..., Any]], str | None]:
        expected = run_reference(case)
        return lambda launch: disagreement(case, answer(case, launch), expected)

    for name in operators:
        # one call over a thousand rows takes seconds: once is enough
        wild = (case for case in wild_cases(name) if len(real_rows(case)) <= 100)
        for number, bare in enumerate(itertools.chain(cases(name, "quick"), wild)):
            case = fenced_case(bare, in_front=number % 2 == 1)
            yield Interpreted(name, case.label, agreement(case))


def outcomes(
    texts: dict[str, str], operators: Sequence[str], choice: Choice, into: Path, jobs: int, say: Callable[[str], None]
) -> Iterator[Outcome]:
    """What becomes of the chosen mutations of `texts`, files of the kernels; a kernel per operator is run."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("TRITON_INTERPRET=1 has to be set before triton is imported")
    into.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(into))
    all_texts = sources() | texts
    _package(into, "kernels_as_they_are", all_texts)
    measured = [_measured(check, into) for check in checks(operators)]
    say(f"{len(measured)} Triton cases pass without a mutation, in {sum(m.seconds for m in measured):.1f} s")
    mutations = [m for path, text in texts.items() for m in python.mutations(path, text) if m.key in choice]
    order: Order[Interpreted] = Order()
    chosen: dict[Mutation, list[Interpreted]] = {}
    names = {mutation: f"kernels{number}" for number, mutation in enumerate(mutations)}  # of their packages

    def trials() -> Iterator[trial.Trial[Mutation | None]]:
        control = sorted(measured, key=lambda check: check.seconds)[: len(measured) // 4]
        yield trial.Trial(None, [_step(check, "kernels_without_mutation") for check in control],
                          lambda: _package(into, "kernels_without_mutation", all_texts))  # fmt: skip
        for mutation, name in names.items():
            lines = _lines_of(mutation, all_texts[mutation.path])
            reaching = [check for check in measured if lines is None or lines & check.lines]
            chosen[mutation] = order(mutation, reaching)
            changed = all_texts | {mutation.path: mutation.applied(all_texts[mutation.path])}
            yield trial.Trial(mutation, [_step(check, name) for check in chosen[mutation]],
                              functools.partial(_package, into, name, changed))  # fmt: skip

    for tried, verdict in trial.run(trials(), jobs):
        if tried.key is None:
            if verdict.caught:
                raise SystemExit(f"Triton: {verdict.how} without any mutation, in a process of its own")
            continue
        shutil.rmtree(into / names[tried.key], ignore_errors=True)
        if verdict.caught:
            by = chosen[tried.key][verdict.step]
            order.caught(tried.key, by)
            yield Outcome(tried.key, "caught", f"{verdict.how}: {by.label}")
        else:
            yield Outcome.survivor(tried.key, reached=bool(tried.steps))


def _step(check: Interpreted, package: str) -> trial.Step:
    return trial.Step(check.label, lambda: check.problem(_launch(package, check.operator)), check.seconds)


def _measured(check: Interpreted, into: Path) -> Interpreted:
    launch = _launch("kernels_as_they_are", check.operator)
    folder, lines = str(into / "kernels_as_they_are"), set[tuple[str, int]]()

    def local(frame: Any, event: str, argument: Any) -> Any:
        lines.add((f"kernels/{Path(frame.f_code.co_filename).name}", frame.f_lineno))
        return local

    begin = time.perf_counter()
    sys.settrace(lambda frame, *_: local if frame.f_code.co_filename.startswith(folder) else None)
    try:
        problem = check.problem(launch)
    finally:
        sys.settrace(None)
    if problem is not None:
        raise SystemExit(f"Triton: wrong without any mutation: {problem}")
    return Interpreted(check.operator, check.label, check.problem, time.perf_counter() - begin, frozenset(lines))


def _lines_of(mutation: Mutation, text: str) -> Lines | None:
    """The lines of the statement that a mutation changes; None for one that runs when its module is imported."""
    found: ast.stmt | None = None
    inside = False
    body: list[ast.stmt] = ast.parse(text).body
    while True:
        at = next((s for s in body if s.lineno <= mutation.line <= (s.end_lineno or 0)), None)
        if at is None:
            break
        found = at
        blocks = [getattr(at, name, []) for name in ("body", "orelse", "finalbody")]
        if not blocks[0]:
            break
        if isinstance(at, ast.FunctionDef):
            inside = inside or at.body[0].lineno <= mutation.line
        body = [s for block in blocks for s in block]
    if found is None or not inside:
        return None
    nested = getattr(found, "body", [])
    last = nested[0].lineno - 1 if nested else found.end_lineno or found.lineno
    return {(mutation.path, line) for line in range(found.lineno, max(last, found.lineno) + 1)}
