"""Progress bars: lively on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

LOG_SECONDS = 15.0


def bar(iterable: Iterable[Any], total: int | None, description: str, shown: bool) -> Any:
    """A tqdm bar over `iterable` on stderr."""
    watched = "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
    pause = 0.1 if watched else LOG_SECONDS
    return tqdm(iterable, total=total, desc=description, disable=not shown, mininterval=pause)
