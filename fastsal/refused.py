"""Levers that a model turned out not to take: remembered by model, and said once."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from torch import nn

from fastsal import said
from fastsal.model_view import module_of, unwrapped

_refused: weakref.WeakKeyDictionary[nn.Module, dict[str, str]] = weakref.WeakKeyDictionary()
INSTEAD = {
    "channels_last": "its images stay contiguous instead of channels_last, which is faster; .flatten or .reshape in "
    "place of .view takes both",
    "precision": "it is attacked in fp32",
    "fold_batch_norm": "its batch norms are not folded",
    "clones": "each of its inputs is a copy, which costs time and memory",
}


class Refused(Exception):
    """A model does not take a lever: the attack begins again without it."""

    def __init__(self, lever: str, why: str) -> None:
        super().__init__(f"{lever}: {why}")
        self.lever, self.why = lever, why


def known(module: nn.Module | None) -> Mapping[str, str]:
    """Per lever that this model is attacked without, why."""
    return {} if module is None else _refused.get(module, {})


def remember(model: Any, without: dict[str, str]) -> None:
    """From now on this model is attacked without these levers; said once."""
    module = module_of(unwrapped(model))
    for lever, why in without.items():
        if module is not None and lever not in _refused.setdefault(module, {}):
            _refused[module][lever] = why
            said.warn(f"{type(module).__name__}: {why}: {INSTEAD[lever]}", said.FallbackWarning)
