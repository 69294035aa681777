"""docs/kernels.md claims nothing that is not there: every test that its table names exists, and no cell is empty."""

from __future__ import annotations

import ast
import functools
import itertools
import re
from pathlib import Path

import pytest

from fastsal.operators import OPERATORS

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PAGE = ROOT / "docs" / "kernels.md"
BACKENDS = ("reference", "C++", "Triton", "CUDA")
LAYERS = ("1", "2", "3", "4", "5", "6", "7", "9", "10")
COMMANDS = ("pytest -m gpu", "fastsal doctor", "pytest benchmarks/ --benchmark-only", "python -m tools.budgets --check")

if not PAGE.is_file():
    pytest.skip("tested without the repository around it: there is no docs/ beside tests/", allow_module_level=True)

Cells = dict[tuple[str, str, str], str]  # by operator, layer and backend


def cells(text: str) -> Cells:
    found: Cells = {}
    head, _, *rows = (line for line in text.splitlines() if line.startswith("|"))
    assert [word.strip() for word in head.strip("|").split("|")] == ["operator", "layer", *BACKENDS]
    for row in rows:
        operator, layer, *proofs = (cell.strip() for cell in row.strip("|").split("|"))
        for backend, proof in zip(BACKENDS, proofs, strict=True):
            place = (operator.strip("`"), layer.split()[0], backend)
            assert place not in found, f"{place} stands there twice"
            found[place] = proof
    return found


@functools.cache
def functions_of(file: str) -> set[str]:
    path = TESTS / file
    names = ast.parse(path.read_text()).body if path.is_file() else []
    return {node.name for node in names if isinstance(node, ast.FunctionDef)}


def problem(proof: str) -> str | None:
    """What is wrong with a cell."""
    named = re.findall(r"`([^`]+)`", proof)
    if proof.startswith("n/a:"):
        missing = [name for name in named if "/" in name and not (ROOT / name).exists()]
        return f"there is no {missing}" if missing else None if proof.removeprefix("n/a:").strip() else "no reason"
    if not named:
        return "neither a test nor a reason"
    for name in named:
        file, _, test = name.partition("::")
        if name not in COMMANDS and not (test.startswith("test_") and test in functions_of(file)):
            return f"there is no {name}"
    return None


def test_every_cell_names_a_test_that_exists_or_a_reason() -> None:
    table = cells(PAGE.read_text())
    assert set(table) == set(itertools.product(OPERATORS, LAYERS, BACKENDS))
    assert {place: found for place, proof in table.items() if (found := problem(proof))} == {}


PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_or_names_is_there(page: str) -> None:
    text, folder = (ROOT / page).read_text(), (ROOT / page).parent
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (folder / link).exists()] == []
    paths = re.findall(r"`((?:tests|tools|docs|csrc|kernels|benchmarks|fastsal|examples)/[\w./]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_each_layer_proves_something_of_each_operator() -> None:
    table = cells(PAGE.read_text())
    for operator, layer in itertools.product(OPERATORS, LAYERS):
        proofs = [table[operator, layer, backend] for backend in BACKENDS]
        assert not all(proof.startswith("n/a:") for proof in proofs), (operator, layer)


@pytest.mark.parametrize(
    ("proof", "said"),
    [
        ("", "neither"),
        ("n/a:", "no reason"),
        ("tested", "neither"),
        ("`test_noise.py::test_nothing`", "there is no test_noise.py::test_nothing"),
        ("`test_none.py::test_opcheck`", "there is no test_none.py"),
        ("`test_operators.py::test_opcheck`<br>`make coffee`", "there is no make coffee"),
        ("n/a: see `tools/none`", "there is no"),
    ],
)
def test_a_cell_that_proves_nothing_is_noticed(proof: str, said: str) -> None:
    assert said in (problem(proof) or "")
