"""Warnings that point at the user's line, not at one of ours."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

HERE = os.path.join(str(Path(__file__).parent), "")


class FallbackWarning(UserWarning):
    """Something slower runs than what was asked for; the text says what, and why."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning at the innermost frame outside of this package."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(HERE):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth)
