"""What a mutation is: a small change of the text of one file, and the same change behind a switch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Mutation:
    """`path`, with the text between `start` and `end` replaced by `text`.

    `code` is the line it stands on, and `nth` tells apart those that read the same; `rule` is what made it. `alike`:
    all it can change is which of two equal numbers is taken.
    """

    path: str
    start: int
    end: int
    text: str
    rule: str
    what: str  # "< to <="
    line: int
    code: str
    nth: int = 1
    alike: bool = False

    @property
    def key(self) -> str:
        """Names the mutation wherever its line stands in the file."""
        again = f" #{self.nth}" if self.nth > 1 else ""
        return f"{self.path}: {self.code} [{self.what}]{again}"

    @property
    def place(self) -> str:
        return f"{self.path}:{self.line}: {self.what}: {self.code}"

    def applied(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.end :]


@dataclass(frozen=True)
class Site:
    """The mutations of one place in a C++ file, and the text that holds them all behind a switch.

    A site either replaces the text between `start` and `end` by `before`, or keeps it and stands around it; ``{id}`` in
    both is the number of its first mutation. A site without `before` cannot be switched.
    """

    start: int
    end: int
    mutations: tuple[Mutation, ...]
    before: str = ""
    after: str = ""

    @property
    def replaces(self) -> bool:
        return not self.after


class Switched:
    """A source text with the mutations of its sites in it; each site comes with the number of its first mutation."""

    def __init__(self, source: str, sites: Sequence[tuple[int, Site]]) -> None:
        # position, what comes first at one position, site
        pieces: list[tuple[int, int, int, str, Site]] = []
        for first, site in sites:
            before, after = site.before.replace("{id}", str(first)), site.after.replace("{id}", str(first))
            if site.replaces:
                pieces.append((site.start, 2, 0, before, site))
            else:  # of two that begin together the longer opens first, of two that end together it closes last
                pieces.append((site.start, 1, -site.end, before, site))
                pieces.append((site.end, 0, -site.start, after, site))
        self._spans: dict[Site, list[int]] = {}
        out: list[str] = []
        at = length = 0
        for position, order, _, text, site in sorted(pieces, key=lambda piece: piece[:3]):
            out += [source[at:position], text]
            length += position - at
            self._spans.setdefault(site, [length, length])
            length += len(text)
            self._spans[site][1] = length
            at = site.end if order == 2 else position
        self.text = "".join([*out, source[at:]])

    def _bounds(self, line: int) -> tuple[int, int]:
        rows = self.text.split("\n")
        begin = sum(len(row) + 1 for row in rows[: line - 1])
        return begin, begin + len(rows[line - 1])

    def around(self, line: int, column: int) -> Site | None:
        """The innermost site around a place of the switched text."""
        place = self._bounds(line)[0] + column - 1
        inside = [(last - first, site) for site, (first, last) in self._spans.items() if first <= place < last]
        return min(inside, key=lambda pair: pair[0])[1] if inside else None

    def line(self, line: int) -> set[Site]:
        """All sites on a line of the switched text."""
        begin, end = self._bounds(line)
        return {site for site, (first, last) in self._spans.items() if first < end and last > begin}


def numbered(mutations: Iterable[Mutation]) -> list[Mutation]:
    """The same mutations; those of equal key get a number each."""
    seen: dict[str, int] = {}
    out = []
    for mutation in mutations:
        count = seen[mutation.key] = seen.get(mutation.key, 0) + 1
        out.append(mutation if count == 1 else replace(mutation, nth=count))
    return out


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: "caught", "survived", or "invalid" where no compiler takes it; "alike": it survived, and
    nothing else can come of it."""

    mutation: Mutation
    state: str
    by: str = ""  # what caught it
    reached: bool = True  # whether any check runs its place at all

    @classmethod
    def survivor(cls, mutation: Mutation, reached: bool = True) -> Outcome:
        return cls(mutation, "alike" if mutation.alike and reached else "survived", reached=reached)


@dataclass(frozen=True)
class Choice:
    """Which mutations are tried: a share of all by the hash of their key, or those that are named.

    The hash makes the sample the same on every machine, and a change of one line leaves the rest of it as it was.
    """

    share: float = 1.0
    named: frozenset[str] | None = None

    def __contains__(self, key: str) -> bool:
        if self.named is not None and key not in self.named:
            return False
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") < self.share * 2**64


EVERY = Choice()
