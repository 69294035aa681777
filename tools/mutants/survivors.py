"""The survivors that are known, each with the reason why nothing catches it: survivors.txt.

A line that begins with ``=`` is a reason; the lines under it name the mutants that it is about, as Mutation.key does.
With ``==`` the reason is why no input can tell the mutant from the original: it is equivalent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tools.mutants.mutation import EVERY, Choice, Outcome

KNOWN = Path(__file__).parent / "survivors.txt"
LEAST = 95.0  # per cent of the mutants that a compiler takes and that are not equivalent
EQUIVALENT = "no input tells it: "  # how such a reason begins


def read(text: str) -> dict[str, str]:
    """Reason by the key of the mutant."""
    reasons: dict[str, str] = {}
    reason = ""
    for row in filter(None, map(str.strip, text.splitlines())):
        if row.startswith("=="):
            reason = EQUIVALENT + row[2:].strip()
        elif row.startswith("="):
            reason = row[1:].strip()
        elif not row.startswith("#"):
            if not reason:
                raise ValueError(f"survivors: expected a reason above {row}")
            if row in reasons:
                raise ValueError(f"survivors: named twice: {row}")
            reasons[row] = reason
    return reasons


@dataclass
class Tally:
    """Mutants of one file, or of all."""

    caught: int = 0
    survived: int = 0
    alike: int = 0
    invalid: int = 0
    equivalent: int = 0  # of those that survived

    @property
    def score(self) -> float:
        """Caught, of those that an input could tell from the original."""
        valid = self.caught + self.survived - self.equivalent
        return 100 * self.caught / valid if valid else 100.0

    @property
    def share(self) -> float:
        valid = self.caught + self.survived
        return 100 * self.caught / valid if valid else 100.0


@dataclass
class Report:
    """What came of a run, held against the known survivors."""

    files: dict[str, Tally] = field(default_factory=dict)
    survivors: list[Outcome] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)  # of what was run

    @classmethod
    def of(
        cls, outcomes: Iterable[Outcome], files: Iterable[str], reasons: dict[str, str], choice: Choice = EVERY
    ) -> Report:
        report = cls({path: Tally() for path in sorted(files)})
        report.reasons = {
            key: why for key, why in reasons.items() if key.split(": ", 1)[0] in report.files and key in choice
        }
        for outcome in outcomes:
            tally = report.files[outcome.mutation.path]
            setattr(tally, outcome.state, getattr(tally, outcome.state) + 1)
            if outcome.state == "survived":
                report.survivors.append(outcome)
                tally.equivalent += report.reasons.get(outcome.mutation.key, "").startswith(EQUIVALENT)
        report.survivors.sort(
            key=lambda outcome: (outcome.mutation.path, outcome.mutation.start, outcome.mutation.what)
        )
        return report

    @property
    def total(self) -> Tally:
        tallies = self.files.values()
        return Tally(
            *(
                sum(getattr(tally, name) for tally in tallies)
                for name in ("caught", "survived", "alike", "invalid", "equivalent")
            )
        )

    @property
    def unlisted(self) -> list[Outcome]:
        return [outcome for outcome in self.survivors if outcome.mutation.key not in self.reasons]

    @property
    def stale(self) -> list[str]:
        """Listed, but caught now, or no longer there."""
        return sorted(set(self.reasons) - {outcome.mutation.key for outcome in self.survivors})

    def faults(self) -> list[str]:
        found = [f"{len(self.unlisted)} survivors are not listed"] if self.unlisted else []
        found += [f"listed as a survivor, but caught or no longer there: {key}" for key in self.stale]
        if self.total.score < LEAST:
            found.append(f"{self.total.score:.1f} % caught of those that are not equivalent, {LEAST:g} % expected")
        return found

    def table(self) -> str:
        rows = [*self.files.items(), ("all", self.total)]
        width = max(len(path) for path, _ in rows)
        lines = [f"{'file':{width}}  mutants  caught     %  survive  equivalent  without them %  alike  refused"]
        for path, tally in rows:
            valid = tally.caught + tally.survived
            caught = f"{valid:7}  {tally.caught:6}  {tally.share:4.1f}"
            apart = f"{tally.equivalent:10}  {tally.score:14.1f}  {tally.alike:5}  {tally.invalid:7}"
            lines.append(f"{path:{width}}  {caught}  {tally.survived:7}  {apart}")
        return "\n".join(lines)

    def listing(self) -> str:
        """Every survivor with its place, the mutation and the reason, those of one reason together."""
        by_reason: dict[str, list[Outcome]] = {}
        for outcome in self.survivors:
            by_reason.setdefault(self.reasons.get(outcome.mutation.key, "NOT LISTED"), []).append(outcome)
        lines = []
        for reason, outcomes in by_reason.items():
            lines.append(f"\n{reason}")
            lines += [f"  {o.mutation.place}{'' if o.reached else ' (no check runs it)'}" for o in outcomes]
        return "\n".join(lines)
