"""Pairwise covering arrays: few combinations of settings in which any two values of two settings meet."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

Cell = dict[str, Any]
Pair = tuple[str, Any, str, Any]


def pairs_of(cell: Cell) -> Iterator[Pair]:
    for (a, value), (b, other) in itertools.combinations(cell.items(), 2):
        yield a, value, b, other


def possible_pairs(settings: dict[str, list[Any]], allowed: Callable[[Cell], bool]) -> set[Pair]:
    """All pairs but those that are not allowed by themselves."""
    every = set()
    for a, b in itertools.combinations(settings, 2):
        for value, other in itertools.product(settings[a], settings[b]):
            if allowed({a: value, b: other}):
                every.add((a, value, b, other))
    return every


def covering(settings: dict[str, list[Any]], allowed: Callable[[Cell], bool]) -> list[Cell]:
    """Cells that hold every possible pair; each begins with a pair that is still missing, and takes for one setting
    after the other the value that makes most missing pairs. `allowed` looks at partial cells too, where what is not
    there is no obstacle. Always the same cells for the same settings."""
    missing = dict.fromkeys(sorted(possible_pairs(settings, allowed), key=repr))
    cells = []
    while missing:
        a, value, b, other = next(iter(missing))
        cell = _completed({a: value, b: other}, settings, allowed, missing)
        for pair in pairs_of(cell):
            missing.pop(pair, None)
        cells.append(cell)
    return cells


def _completed(
    begun: Cell, settings: dict[str, list[Any]], allowed: Callable[[Cell], bool], missing: dict[Pair, None]
) -> Cell:
    cell = dict(begun)
    for name, values in settings.items():
        if name in cell:
            continue
        fitting = [value for value in values if allowed({**cell, name: value})]
        if not fitting:
            raise ValueError(f"{name}: expected a value that goes with {cell}, got none")
        gains = [sum(pair in missing for pair in pairs_of(_ordered({**cell, name: v}, settings))) for v in fitting]
        cell[name] = fitting[gains.index(max(gains))]
    return _ordered(cell, settings)


def _ordered(cell: Cell, settings: dict[str, list[Any]]) -> Cell:
    return {name: cell[name] for name in settings if name in cell}
