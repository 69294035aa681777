"""All mutants of the Triton kernels, tried under Triton's interpreter."""

from __future__ import annotations

import ast
import functools
import gc
import importlib
import importlib.util
import itertools
import os
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

PACKAGE = "kernels_as_they_are"  # until a trial changes a file of it


@dataclass(eq=False)
class Interpreted:
    """A case of an operator, or a check of device functions by themselves; what it costs without a mutation, and which
    statements it runs."""

    label: str
    problem: Callable[[str], str | None]  # given the package of the kernels
    seconds: float = 0.0
    places: frozenset[tuple[str, int]] = frozenset()  # file and line of each statement


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


def _ready(package: str, texts: dict[str, str]) -> None:
    """Imports the package and lets the interpreter rewrite its kernels, so that no trial has to."""
    from triton.runtime.interpreter import InterpretedFunction

    for path in texts:
        module = importlib.import_module(f"{package}.{Path(path).stem}".removesuffix(".__init__"))
        for value in list(vars(module).values()):
            if isinstance(value, InterpretedFunction):
                value.rewrite()


def _imports(text: str) -> Iterator[tuple[str, str, str]]:
    """(module, name there, name here) of everything that a kernel's file takes from others of the package; the name
    there is empty for a module as a whole."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            for alias in node.names:
                here = alias.asname or alias.name
                yield (node.module, alias.name, here) if node.module else (alias.name, "", here)


def _read(texts: dict[str, str], operator: str) -> set[str]:
    """The files that an operator's kernel is made of."""
    found, waiting = set[str](), [f"kernels/{operator}.py"]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [f"kernels/{module}.py" for module, _, _ in _imports(texts[path])]
    return found


def _exchange(package: str, texts: dict[str, str], path: str, text: str, folder: Path) -> None:
    """Puts a file's changed text into the imported package: the other modules stay as they are, compiled already, but
    for the names that they have from it."""
    stem = Path(path).stem
    folder.mkdir()
    changed = folder / f"{stem}.py"
    changed.write_text(text)
    spec = importlib.util.spec_from_file_location(f"{package}.{stem}", changed)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[module.__name__] = module
    for other, its_text in texts.items():
        importer = sys.modules.get(f"{package}.{Path(other).stem}")
        for source, name, here in _imports(its_text):
            if source == stem and importer is not None:
                setattr(importer, here, getattr(module, name) if name else module)


def checks(operators: Sequence[str]) -> Iterator[Interpreted]:
    import triton_parts
    from kernel_calls import real_rows
    from kernel_cases import Case, answer, cases, disagreement, run_reference, wild_cases
    from triton_interpreted import blocks, in_other_blocks

    from tools.mutants.memory import fenced_case

    def agreement(case: Case, sizes: dict[str, int]) -> Callable[[str], str | None]:
        expected = run_reference(case)

        def problem(package: str) -> str | None:
            with blocks(sizes, package):
                return disagreement(case, answer(case, _launch(package, case.name)), expected)

        return problem

    yield from itertools.starmap(Interpreted, triton_parts.checks())
    for name in operators:
        # one call over a thousand rows takes seconds: once is enough
        wild = (case for case in wild_cases(name) if len(real_rows(case)) <= 100)
        usual = (({}, case) for case in itertools.chain(cases(name, "quick"), wild))
        for number, (sizes, bare) in enumerate(itertools.chain(usual, in_other_blocks(name, "quick"))):
            case = fenced_case(bare, in_front=number % 2 == 1)
            yield Interpreted(case.label + ("-other-blocks" if sizes else ""), agreement(case, sizes))


def outcomes(
    texts: dict[str, str], operators: Sequence[str], choice: Choice, into: Path, jobs: int, say: Callable[[str], None]
) -> Iterator[Outcome]:
    """What becomes of the chosen mutations of `texts`, files of the kernels; a kernel per operator is run."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("TRITON_INTERPRET=1 has to be set before triton is imported")
    from triton_interpreted import keep_language

    into.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(into))
    keep_language()
    all_texts = sources() | texts
    marked = {path: _marked(path, text) for path, text in all_texts.items()}
    _package(into, "kernels_with_marks", marked | {"marks.py": "MARKS = set()\n"})
    _package(into, PACKAGE, all_texts)
    operators = [name for name in operators if _read(all_texts, name) & set(texts)]
    measured = [_measured(check) for check in checks(operators)]
    _ready(PACKAGE, all_texts)
    gc.freeze()  # the trials need not look through all of it
    say(f"{len(measured)} Triton cases pass without a mutation, in {sum(m.seconds for m in measured):.1f} s")
    mutations = [m for path, text in texts.items() for m in python.mutations(path, text) if m.key in choice]
    order: Order[Interpreted] = Order()
    chosen: dict[Mutation, list[Interpreted]] = {}

    def trials() -> Iterator[trial.Trial[Mutation | None]]:
        quickest = sorted(measured, key=lambda check: check.seconds)[: len(measured) // 4]
        yield trial.Trial(None, [_step(check) for check in quickest])
        for number, mutation in enumerate(mutations):
            text = all_texts[mutation.path]
            place = _place_of(mutation, text)
            reaching = [check for check in measured if place is None or place in check.places]
            chosen[mutation] = order(mutation, reaching)
            exchange = functools.partial(
                _exchange, PACKAGE, all_texts, mutation.path, mutation.applied(text), into / f"mutant{number}"
            )
            yield trial.Trial(mutation, [_step(check) for check in chosen[mutation]], exchange)

    for tried, verdict in trial.run(trials(), jobs):
        if tried.key is None:
            if verdict.caught:
                raise SystemExit(f"Triton: {verdict.how} without any mutation, in a process of its own")
            continue
        if verdict.caught:
            by = chosen[tried.key][verdict.step]
            order.caught(tried.key, by)
            yield Outcome(tried.key, "caught", f"{verdict.how}: {by.label}")
        else:
            yield Outcome.survivor(tried.key, reached=bool(tried.steps))


def _step(check: Interpreted) -> trial.Step:
    return trial.Step(check.label, lambda: check.problem(PACKAGE), check.seconds)


def _measured(check: Interpreted) -> Interpreted:
    """The same check, after it ran on a copy of the kernels with marks."""
    marks = importlib.import_module("kernels_with_marks.marks").MARKS
    marks.clear()
    begin = time.process_time()
    problem = check.problem("kernels_with_marks")
    if problem is not None:
        raise SystemExit(f"Triton: wrong without any mutation: {problem}")
    return Interpreted(check.label, check.problem, time.process_time() - begin, frozenset(marks))


class _Marks(ast.NodeTransformer):
    """Each statement of a function, with one in front of it that tells that it is run."""

    def __init__(self, path: str) -> None:
        self.path = path

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self._mark(node)
        return node

    def _mark(self, parent: ast.stmt) -> None:
        for name in ("body", "orelse", "finalbody"):
            block: list[ast.stmt] = []
            for statement in getattr(parent, name, []):
                self._mark(statement)
                block += [*ast.parse(f"MARKS.add(({self.path!r}, {statement.lineno}))").body, statement]
            if block:
                setattr(parent, name, block)


def _marked(path: str, text: str) -> str:
    future, tree = "from __future__ import annotations", _Marks(path).visit(ast.parse(text))
    return f"{future}\nfrom .marks import MARKS\n{ast.unparse(tree).replace(future, '')}\n"


def _place_of(mutation: Mutation, text: str) -> tuple[str, int] | None:
    """File and line of the statement that a mutation changes; None for one that runs when its module is imported."""
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
    return (mutation.path, found.lineno) if found is not None and inside else None
