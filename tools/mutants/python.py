"""The mutation operators for Triton kernels: the rules of `cpp`, over the syntax tree of a Python file.

Docstrings, comments, strings and annotations are not mutated.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from tools.mutants.cpp import COMPARISONS, SIGNS, SWAPS
from tools.mutants.mutation import Mutation, numbered

SWAPPED = SWAPS | {"minimum": "maximum", "maximum": "minimum", "atomic_min": "atomic_max", "atomic_max": "atomic_min"}
_IDENTITY = {"is": ("is not",), "is not": ("is",)}
_OPERATORS: dict[type[ast.AST], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.Add: "+",
    ast.Sub: "-",
}
_FRONT: dict[type[ast.AST], str] = {ast.USub: "-", ast.Not: "not", ast.Invert: "~"}
MEMORY = ("load", "store", "atomic_add", "atomic_max", "atomic_min", "atomic_or", "atomic_xchg", "atomic_cas")


@dataclass(frozen=True)
class Change:
    start: int
    end: int
    text: str
    rule: str
    what: str
    alike: bool = False


class _Source:
    """A file as text and tree, with offsets for places."""

    def __init__(self, text: str) -> None:
        self.text, self.tree = text, ast.parse(text)
        rows = text.encode().split(b"\n")
        self._begin = [0]
        for row in rows:
            self._begin.append(self._begin[-1] + len(row.decode()) + 1)
        self._rows = rows
        self.picking = {id(test) for test in self._picking()}

    def _offset(self, line: int, column: int) -> int:  # columns of a tree count bytes
        return self._begin[line - 1] + len(self._rows[line - 1][:column].decode())

    def span(self, node: ast.AST) -> tuple[int, int]:
        assert isinstance(node, ast.expr | ast.stmt | ast.keyword)
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self._offset(node.lineno, node.col_offset), self._offset(node.end_lineno, node.end_col_offset)

    def code(self, node: ast.AST) -> str:
        return " ".join(self.text[slice(*self.span(node))].split())

    def _picking(self) -> Iterator[ast.Compare]:
        """The comparisons that decide between their own two sides, and nothing else: the larger or smaller of two."""
        for node in ast.walk(self.tree):
            parts: list[ast.expr] = []
            if isinstance(node, ast.IfExp):
                parts = [node.test, node.body, node.orelse]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.where" and len(node.args) == 3:
                parts = node.args
            if parts and isinstance(parts[0], ast.Compare) and len(parts[0].ops) == 1:
                sides = {ast.unparse(parts[0].left), ast.unparse(parts[0].comparators[0])}
                if sides == {ast.unparse(part) for part in parts[1:]}:
                    yield parts[0]

    def between(self, left: ast.AST, right: ast.AST, token: str) -> tuple[int, int]:
        """Where an operator stands between its operands; a bracket or a comment may stand there too."""
        start, end = self.span(left)[1], self.span(right)[0]
        gap = "".join(" " * len(part) if part.startswith("#") else part for part in _comments(self.text[start:end]))
        at = start + gap.index(token)
        return at, at + len(token)

    def nodes(self) -> Iterator[ast.AST]:
        """Every node that is code: no annotations, and no strings, which are ast.Constant."""
        waiting: list[ast.AST] = [self.tree]
        while waiting:
            node = waiting.pop()
            yield node
            for name, value in ast.iter_fields(node):
                if name in ("annotation", "returns", "decorator_list"):
                    continue
                waiting += [child for child in (value if isinstance(value, list) else [value])
                            if isinstance(child, ast.AST)]  # fmt: skip


def _comments(text: str) -> Iterator[str]:
    for row in text.splitlines(keepends=True):
        code, hash_, comment = row.partition("#")
        yield code
        yield hash_ + comment


def _changes(source: _Source) -> Iterator[Change]:
    for node in source.nodes():
        if isinstance(node, ast.Compare):
            for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
                token = _OPERATORS.get(type(operator), "")
                others = (COMPARISONS | _IDENTITY).get(token, ())
                for number, other in enumerate(others):
                    alike = number == 0 and len(others) > 1 and id(node) in source.picking
                    place = source.between(left, right, token)
                    yield Change(*place, other, "comparison", f"{token} to {other}", alike)
        elif isinstance(node, ast.BinOp):
            token = _OPERATORS.get(type(node.op), "")
            if token in SIGNS:
                place = source.between(node.left, node.right, token)
                yield Change(*place, SIGNS[token], "sign", f"{token} to {SIGNS[token]}")
            if isinstance(node.op, ast.BitAnd | ast.BitOr):
                yield from _dropped(
                    source, node, [node.left, node.right], "&" if isinstance(node.op, ast.BitAnd) else "|"
                )
        elif isinstance(node, ast.AugAssign):
            token = _OPERATORS.get(type(node.op), "") + "="
            if token in SIGNS:
                place = source.between(node.target, node.value, token)
                yield Change(*place, SIGNS[token], "sign", f"{token} to {SIGNS[token]}")
        elif isinstance(node, ast.UnaryOp) and type(node.op) in _FRONT:
            start, token = source.span(node)[0], _FRONT[type(node.op)]
            rule = "sign" if token == "-" else "negation"
            yield Change(start, start + len(token), " " * len(token), rule, f"{token} of {source.code(node)} dropped")
        elif isinstance(node, ast.BoolOp):
            yield from _dropped(source, node, node.values, "and" if isinstance(node.op, ast.And) else "or")
        elif isinstance(node, ast.If | ast.IfExp):
            yield from _decided(source, node.test, "True", "False")
        elif isinstance(node, ast.Constant) and type(node.value) is bool:
            yield Change(*source.span(node), str(not node.value), "negation", f"{node.value} to {not node.value}")
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            text = source.code(node)
            for by, sign in ((1, "+"), (-1, "-")):
                value = node.value + by
                other = str(value) if value >= 0 else f"({value})"
                yield Change(*source.span(node), other, "integer", f"{text} to {text} {sign} 1")
        elif isinstance(node, ast.Call):
            yield from _call(source, node)
        elif isinstance(node, ast.Expr) and "debug_barrier" in source.code(node)[:20]:
            yield Change(*source.span(node), "pass", "barrier", "debug_barrier removed")
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            yield from _index(source, node)
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            name = node.id if isinstance(node, ast.Name) else node.attr
            end = source.span(node)[1]
            if name in SWAPPED and (isinstance(node, ast.Attribute) or SWAPPED[name] in source.text):
                yield Change(end - len(name), end, SWAPPED[name], "swap", f"{name} to {SWAPPED[name]}")


def _dropped(source: _Source, node: ast.AST, operands: list[ast.expr], operator: str) -> Iterator[Change]:
    """An operand taken out."""
    for operand in operands:
        kept = [source.text[slice(*source.span(other))] for other in operands if other is not operand]
        text = f" {operator} ".join(f"({part})" for part in kept)
        yield Change(*source.span(node), text, "condition", f"{source.code(operand)} dropped from {operator}")


def _decided(source: _Source, test: ast.expr, yes: str, no: str) -> Iterator[Change]:
    for text, what in ((yes, "true"), (no, "false")):
        yield Change(*source.span(test), text, "condition", f"{source.code(test)} to {what}")


def _call(source: _Source, node: ast.Call) -> Iterator[Change]:
    if not isinstance(node.func, ast.Attribute):
        return
    if node.func.attr == "where" and len(node.args) == 3:
        code = source.text[slice(*source.span(node.args[0]))]
        # a comparison of the condition with itself keeps its shape and type
        yield from _decided(source, node.args[0], f"(({code}) == ({code}))", f"(({code}) != ({code}))")
    if node.func.attr in MEMORY:
        for keyword in node.keywords:
            if keyword.arg == "mask":
                yield Change(
                    *source.span(keyword.value), "None", "condition", f"mask {source.code(keyword.value)} dropped"
                )
        start, end = source.span(node.args[0])
        text = source.text[start:end]
        for sign in "+-":
            what = f"{source.code(node.args[0])} to {source.code(node.args[0])} {sign} 1"
            yield Change(start, end, f"({text}) {sign} 1", "index", what)


def _index(source: _Source, node: ast.Subscript) -> Iterator[Change]:
    if isinstance(node.slice, ast.Name):
        name = node.slice.id
        for sign in "+-":
            yield Change(*source.span(node.slice), f"{name} {sign} 1", "index", f"[{name}] to [{name} {sign} 1]")


def mutations(path: str, text: str) -> list[Mutation]:
    """All mutations of a file, in the order of their places."""
    rows = text.split("\n")
    found = []
    for change in sorted(set(_changes(_Source(text))), key=lambda c: (c.start, c.end, c.what)):
        line = text.count("\n", 0, change.start) + 1
        found.append(Mutation(path, change.start, change.end, change.text, change.rule, change.what, line,
                              rows[line - 1].strip(), alike=change.alike))  # fmt: skip
    return numbered(found)
