"""Sections of markdown files that a command writes, between two marks: figures are never copied by hand."""

from __future__ import annotations

import re
from pathlib import Path


def write(name: str, text: str, path: Path) -> None:
    """Replaces the section of that name; a file that is not there is written."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{begin}\n{text}\n{end}"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if begin in old and end in old:
        section = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: section, old, flags=re.DOTALL)
    elif old:
        raise SystemExit(f"{path}: expected the lines {begin} and {end}, got neither or one")
    path.write_text(section if old else section + "\n", encoding="utf-8")


def table(head: tuple[str, ...], rows: list[list[str]], words: int = 1) -> str:
    """Markdown; the first `words` columns are to the left, the others, figures, to the right."""
    rule = "|" + "---|" * words + "---:|" * (len(head) - words)
    return "\n".join(["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)])
