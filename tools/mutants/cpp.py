"""The mutation operators for C++ and CUDA: each rule goes over all tokens of a file and mutates every match.

Comments, strings, preprocessor lines, the brackets of templates, decltype(...), launch bounds (they tell nvcc how many
registers a thread may have; the budgets are about that) and what only nvcc compiles are not code to a rule. `switch.h`
holds what the switched form of a site is made of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tools.mutants.cpp_tokens import Tokens
from tools.mutants.mutation import Mutation, Site, numbered

COMPARISONS = {
    "<": ("<=", ">"),
    "<=": ("<", ">="),
    ">": (">=", "<"),
    ">=": (">", "<="),
    "==": ("!=",),
    "!=": ("==",),
}
SIGNS = {"+": "-", "-": "+", "+=": "-=", "-=": "+="}
_NAMES = {  # of the types in switch.h
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
    "==": "equal",
    "!=": "unequal",
    "+": "plus",
    "-": "minus",
    "+=": "add",
    "-=": "subtract",
    "&": "bits",
}
_PAIRS = (
    ("min", "max"),
    ("fmin", "fmax"),
    ("fminf", "fmaxf"),
    ("atomicMin", "atomicMax"),
    ("floor", "ceiling"),
    ("low", "high"),
    ("lows", "highs"),
    ("up", "down"),
    ("below", "above"),
    ("next_below", "next_above"),
    ("round_down_sum", "round_up_sum"),
    ("rows", "ids"),
    ("slot", "sample"),
    ("right", "over"),
)
SWAPS = dict(_PAIRS) | {b: a for a, b in _PAIRS}
BARRIERS = {"__syncthreads", "__syncwarp", "__threadfence"}
# Where an operand of && ends, one of ||, and a condition in front of a question mark.
_AND_ENDS = frozenset({"&&", "||", "?", ":", ",", "=", "return", "+=", "-=", "|=", "&=", "^=", "<<", "else"})
_OR_ENDS = _AND_ENDS - {"&&"}
_CONDITION_ENDS = _OR_ENDS - {"||"}
_BIT_ENDS = frozenset({"&", "|", "^", "&&", "||", "?", ":", ",", "==", "!=", "<", ">", "="})


@dataclass(frozen=True)
class Match:
    """A place that a rule mutates: its text is replaced by each of `options`, which say what they do."""

    start: int
    end: int
    options: list[tuple[str, str]]
    before: str = ""  # the switched form, see Site
    after: str = ""
    switch_end: int | None = None  # where the switched form ends, if not at `end`
    alike: str = ""  # the option that can do no more than take the other of two equal numbers


def _infix(t: Tokens, at: int, texts: tuple[str, ...], alike: str = "") -> Match:
    token = t[at]
    before = f"{token.text} ::mutants::{_NAMES[token.text]}<{{id}}>{{}} {token.text}"
    options = [(text, f"{token.text} to {text}") for text in texts]
    return Match(token.start, token.end, options, before, alike=alike)


def comparison(t: Tokens) -> Iterator[Match]:
    """Every comparison: the boundary moved, and the direction turned. The larger (smaller) of two, `a > b ? a : b`, is
    the same number wherever the boundary is; should a zero of the other sign matter, a check may still notice."""
    for at, token in enumerate(t.list):
        if token.text in COMPARISONS and t.binary(at):
            moved = COMPARISONS[token.text][0] if len(COMPARISONS[token.text]) > 1 and _picks(t, at) else ""
            yield _infix(t, at, COMPARISONS[token.text], moved)


def _picks(t: Tokens, at: int) -> bool:
    """Whether the comparison at `at` decides between its own two sides, and nothing else."""
    question = t.forth(at, _CONDITION_ENDS | {"&&", "||"})
    if t.text(question) != "?":
        return False
    colon = t.forth(question, frozenset({":", "?"}))
    if t.text(colon) != ":":
        return False
    end = t.forth(colon, _CONDITION_ENDS)
    left = t.back(at, _CONDITION_ENDS | {"&&", "||"})
    if t.text(left - 1) in ("&&", "||"):
        return False
    sides = [tuple(part.text for part in t.list[first:last])
             for first, last in ((left, at), (at + 1, question), (question + 1, colon), (colon + 1, end))]  # fmt: skip
    return {sides[0], sides[1]} == {sides[2], sides[3]}


def sign(t: Tokens) -> Iterator[Match]:
    """+ and -, += and -= exchanged; a minus in front dropped."""
    for at, token in enumerate(t.list):
        if token.text not in SIGNS:
            continue
        if t.binary(at):
            yield _infix(t, at, (SIGNS[token.text],))
        elif token.text == "-" and not t.ends_operand(at - 1):
            switched = "" if t.text(at - 1) in ("*", "/", "%") else "::mutants::negative<{id}>{} % "
            yield Match(token.start, token.end, [(" ", "minus dropped")], switched)


def integer(t: Tokens) -> Iterator[Match]:
    """Every integer one more and one less."""
    for token in t.list:
        match = re.fullmatch(r"(0[xX][0-9a-fA-F']+|\d[\d']*)([uUlL]*)", token.text)
        if token.kind != "number" or match is None:
            continue
        digits, suffix = match[1].replace("'", ""), match[2]
        value = int(digits, 16 if digits[:2] in ("0x", "0X") else 10)
        more, less = f"{value + 1}{suffix}", f"{value - 1}{suffix}" if value else f"(0{suffix} - 1)"
        options = [(more, f"{token.text} to {token.text} + 1"), (less, f"{token.text} to {token.text} - 1")]
        yield Match(token.start, token.end, options, "::mutants::number<{id}>(", ")")


def index(t: Tokens) -> Iterator[Match]:
    """Every index one more and one less. A constant between brackets is left to the rule of integers, or a size."""
    for at, token in enumerate(t.list):
        if token.text != "[" or not t.ends_operand(at - 1):
            continue
        inside = t.list[at + 1 : t.partner[at]]
        if not any(part.kind == "name" and not re.fullmatch(r"k[A-Z]\w*", part.text) for part in inside):
            continue
        start, end = inside[0].start, inside[-1].end
        text = t.source[start:end]
        options = [(f"({text}) {by} 1", f"[{text}] to [{text} {by} 1]") for by in "+-"]
        yield Match(start, end, options, "::mutants::number<{id}>(", ")")


def condition(t: Tokens) -> Iterator[Match]:
    """A part of a condition dropped; a condition decided beforehand; a bit mask dropped."""
    for operator, ends, neutral, held in (
        ("&&", _AND_ENDS, "true", "(::mutants::on({id}) || ("),
        ("||", _OR_ENDS, "false", "(!::mutants::on({id}) && ("),
    ):
        for first, last in sorted(_operands(t, operator, ends)):
            start, end = t[first].start, t[last - 1].end
            yield Match(start, end, [(neutral, f"{_flat(t, start, end)} dropped from {operator}")], held, "))")
    for at, token in enumerate(t.list):
        if token.text == "if" and t.text(at + 1) == "(":
            yield _decided(t, at + 2, t.partner[at + 1])
        elif token.text == "?":
            yield _decided(t, t.back(at, _CONDITION_ENDS), at)
        elif token.text == "&" and t.binary(at):
            end = t[t.forth(at, _BIT_ENDS) - 1].end
            what = f"{_flat(t, token.start, end)} dropped"
            yield Match(token.start, end, [("", what)], "& ::mutants::bits<{id}>{} &", switch_end=token.end)


def _operands(t: Tokens, operator: str, ends: frozenset[str]) -> set[tuple[int, int]]:
    """First token and one past the last of each operand of && or ||."""
    found = set()
    for at, token in enumerate(t.list):
        if token.text == operator and t.binary(at):
            found |= {(t.back(at, ends), at), (at + 1, t.forth(at, ends))}
    return found


def _flat(t: Tokens, start: int, end: int) -> str:
    return re.sub(r"\s+", " ", t.source[start:end])


def _decided(t: Tokens, first: int, last: int) -> Match:
    start, end = t[first].start, t[last - 1].end
    options = [(value, f"{_flat(t, start, end)} to {value}") for value in ("true", "false")]
    return Match(start, end, options, "::mutants::condition<{id}>(", ")")


def negation(t: Tokens) -> Iterator[Match]:
    """A ! dropped; true and false exchanged."""
    for token in t.list:
        if token.text == "!":
            yield Match(token.start, token.end, [(" ", "! dropped")], "::mutants::negation<{id}>{} % ")
        elif token.text in ("true", "false"):
            other = "false" if token.text == "true" else "true"
            yield Match(token.start, token.end, [(other, f"{token.text} to {other}")], "::mutants::flipped<{id}>(", ")")


def barrier(t: Tokens) -> Iterator[Match]:
    """A barrier removed."""
    for at, token in enumerate(t.list):
        if token.text in BARRIERS and t.text(at + 1) == "(":
            end = t[t.partner[at + 1]].end
            yield Match(token.start, end, [("", f"{token.text} removed")], "if (!::mutants::on({id})) ", " ")


def swap(t: Tokens) -> Iterator[Match]:
    """Minimum and maximum, lower and upper bound, rows and ids: one of a pair for the other."""
    for at, token in enumerate(t.list):
        if token.text not in SWAPS or (t.text(at + 1) == "=" and t.text(at - 1) == ","):
            continue
        first = at
        while first >= 2 and t.text(first - 1) in (".", "->", "::"):
            first -= 2
        if t.ends_operand(first - 1) or (t.text(first - 1) in ("*", "&", ">") and not t.binary(first - 1)):
            continue  # a declaration
        start, stem = t[first].start, t.source[t[first].start : token.start]
        mine, other = stem + token.text, stem + SWAPS[token.text]
        if not stem and t.text(at + 1) != "(" and not t.nearby(at, SWAPS[token.text]):
            continue
        if t.text(at + 1) == "(":
            function = "[&](auto... v) {{ return {}(v...); }}"
            mine, other = function.format(mine), function.format(other)
        options = [(stem + SWAPS[token.text], f"{token.text} to {SWAPS[token.text]}")]
        yield Match(start, token.end, options, f"::mutants::either<{{id}}>({mine}, {other})")


RULES: tuple[Callable[[Tokens], Iterator[Match]], ...] = (
    comparison,
    sign,
    integer,
    index,
    condition,
    negation,
    barrier,
    swap,
)


def _launch_bounds(t: Tokens) -> Iterator[tuple[int, int]]:
    for at, token in enumerate(t.list):
        if token.text == "__launch_bounds__" and t.text(at + 1) == "(":
            yield token.start, t[t.partner[at + 1]].end


def sites(path: str, source: str) -> list[Site]:
    """All mutations of a file, by place."""
    tokens = Tokens(source)
    fixed = list(tokens.constants())
    never = [*_launch_bounds(tokens), *tokens.types(), *tokens.of_nvcc()]
    found: list[tuple[str, Match]] = [
        (rule.__name__, match)
        for rule in RULES
        for match in rule(tokens)
        if not any(first <= match.start < last for first, last in never)
    ]
    mutations = numbered(
        Mutation(path, m.start, m.end, text, rule, what, *_line(source, m.start), alike=text == m.alike != "")
        for rule, m in found for text, what in m.options
    )  # fmt: skip
    out, at = [], 0
    for _, m in found:
        group = tuple(mutations[at : at + len(m.options)])
        at += len(group)
        end = m.end if m.switch_end is None else m.switch_end
        switchable = not any(first <= m.start < last for first, last in fixed)
        out.append(Site(m.start, end, group, *((m.before, m.after) if switchable else ("", ""))))
    return out


def _line(source: str, offset: int) -> tuple[int, str]:
    """Number and text of a line."""
    begin = source.rfind("\n", 0, offset) + 1
    end = source.find("\n", offset)
    return source.count("\n", 0, offset) + 1, source[begin : end if end >= 0 else None].strip()
