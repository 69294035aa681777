"""C++ as tokens: enough to tell an operator from a template bracket, and code from comments, strings and directives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<comment>//[^\n]*|/\*.*?\*/)
  | (?P<directive>(?:(?<=\n)|\A)[ \t]*\#(?:\\\n|[^\n])*)
  | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
  | (?P<number>0[xX][0-9a-fA-F']*\.?[0-9a-fA-F]*(?:[pP][+-]?\d+)?[a-zA-Z]*
             |(?:\d[\d']*)?\.?\d[\d']*\.?(?:[eE][+-]?\d+)?[a-zA-Z]*)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<operator><<=|>>=|->|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||::|\+=|-=|\*=|/=|%=|&=|\|=|\^=|\.\.\.|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_CLOSING = {"(": ")", "[": "]", "{": "}"}
# what can stand before a binary operator; a keyword cannot
_KEYWORDS = {"return", "case", "else", "do", "throw", "goto", "operator", "template"}


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    start: int
    end: int


class Tokens:
    """The code of a source file, without space and comments; each bracket knows its partner."""

    def __init__(self, source: str) -> None:
        self.source = source
        found = [Token(str(m.lastgroup), m.group(), m.start(), m.end()) for m in _TOKEN.finditer(source)]
        self.list = [token for token in found if token.kind not in ("space", "comment", "directive")]
        self.partner: dict[int, int] = {}
        open_: list[int] = []
        for at, token in enumerate(self.list):
            if token.kind != "operator":
                continue
            if token.text in _CLOSING:
                open_.append(at)
            elif token.text in _CLOSING.values():
                begin = open_.pop()
                if _CLOSING[self.list[begin].text] != token.text:
                    raise ValueError(f"unmatched {token.text!r} at offset {token.start}")
                self.partner[begin], self.partner[at] = at, begin

    def __len__(self) -> int:
        return len(self.list)

    def __getitem__(self, at: int) -> Token:
        return self.list[at]

    def text(self, at: int) -> str:
        """The token at a position, or nothing beyond either end."""
        return self.list[at].text if 0 <= at < len(self.list) else ""

    def ends_operand(self, at: int) -> bool:
        """Whether an operator after the token at `at` is a binary one."""
        if not 0 <= at < len(self.list):
            return False
        token = self.list[at]
        return (
            token.kind in ("number", "string")
            or (token.kind == "name" and token.text not in _KEYWORDS)
            or token.text in (")", "]")
        )

    def spaced(self, at: int) -> bool:
        """Space on both sides: how the formatter writes binary operators, and never brackets of templates."""
        token = self.list[at]
        around = self.source[token.start - 1 : token.start] + self.source[token.end : token.end + 1]
        return len(around) == 2 and around.isspace()

    def binary(self, at: int) -> bool:
        return self.list[at].kind == "operator" and self.spaced(at) and self.ends_operand(at - 1)

    def back(self, at: int, stops: frozenset[str]) -> int:
        """The first token of the operand that ends before the operator at `at`: what stands behind one of `stops`."""
        while at > 0:
            before = at - 1
            text = self.list[before].text
            if text in (")", "]", "}"):
                at = self.partner[before]
                continue
            if text in ("(", "[", "{", ";") or text in stops:
                return at
            at = before
        return at

    def forth(self, at: int, stops: frozenset[str]) -> int:
        """One past the last token of the operand that begins behind the operator at `at`."""
        at += 1
        while at < len(self.list):
            text = self.list[at].text
            if text in _CLOSING:
                at = self.partner[at]
            elif text in (")", "]", "}", ";") or text in stops:
                return at
            at += 1
        return at

    def types(self) -> Iterator[tuple[int, int]]:
        """Where only the type of an expression counts: decltype(...)."""
        for at, token in enumerate(self.list):
            if token.text == "decltype":
                yield token.start, self.list[self.partner[at + 1]].end

    def of_nvcc(self) -> Iterator[tuple[int, int]]:
        """What stands between `#if defined(__CUDA_ARCH__)` and its #else or #endif: no compiler but nvcc sees it."""
        begin, depth = -1, 0
        for match in re.finditer(
            r"^[ \t]*#[ \t]*(if|ifdef|ifndef|else|elif|endif)\b([^\n]*)", self.source, re.MULTILINE
        ):
            if match[1].startswith("if"):
                depth += begin >= 0
                if begin < 0 and match[2].split("//")[0].strip() == "defined(__CUDA_ARCH__)":
                    begin, depth = match.end(), 0
            elif begin >= 0 and depth == 0:
                yield begin, match.start()
                begin = -1
            elif match[1] == "endif":
                depth -= begin >= 0

    def constants(self) -> Iterator[tuple[int, int]]:
        """Where the compiler must know a value: static_assert, and what a constexpr variable begins as."""
        for at, token in enumerate(self.list):
            if token.text in ("constexpr", "static_assert"):
                ends = (other.end for other in self.list[at:] if other.text in (";", "{"))
                yield token.start, next(ends, len(self.source))

    @cached_property
    def _regions(self) -> list[tuple[int, set[str]]]:
        """One past the last token of each function or struct, with the names in it."""
        found, names, at = [], set[str](), 0
        while at < len(self.list):
            token = self.list[at]
            if token.text == "namespace":
                at = next(i for i in range(at, len(self.list)) if self.list[i].text == "{") + 1
                continue
            last = self.partner[at] if token.text == "{" else at
            names |= {part.text for part in self.list[at : last + 1] if part.kind == "name"}
            at = last + 1
            if token.text in ("{", ";", "}"):
                found.append((at, names))
                names = set()
        return found

    def nearby(self, at: int, name: str) -> bool:
        """Whether a name stands in the function or struct around a token."""
        return next((name in names for end, names in self._regions if at < end), False)
