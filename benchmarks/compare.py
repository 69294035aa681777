"""``make compare``: natural, PGD and SENSE training over three seeds on the embedded data, side by side.

Each run is one ``fastsal train``; a run that ended, with a report of these settings, is not made again, so the command
resumes when stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks import marked

METHODS = ("natural", "pgd", "sense")
SEEDS = (0, 1, 2)
OPTIONS = {"--data": "fashion-mnist-mini", "--model": "small-cnn", "--eps": "0.1", "--c": "0.5", "--epochs": "6"}
SAMPLES = 2000  # test images of the embedded data
ATTACKS = ("FGSM", "PGD-40", "margin-T")
COLUMNS = ("natural", *ATTACKS, "worst")


def run(method: str, seed: int, out: Path) -> dict[str, Any]:
    """The report of one training run, made now if it is not there."""
    folder = out / f"{method}-{seed}"
    options = {**OPTIONS, "--method": method, "--seed": str(seed)}
    wanted = {name.removeprefix("--"): value for name, value in options.items()}
    if not _same(folder, wanted):
        words = [word for pair in options.items() for word in pair]
        command = [sys.executable, "-m", "fastsal.cli", "train", *words, "--out", str(folder), "--overwrite"]
        print("\n$ fastsal " + " ".join(command[3:]), flush=True)
        subprocess.run(command, check=True)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def _same(folder: Path, wanted: dict[str, str]) -> bool:
    """Whether the folder holds a run of these settings that was trained to its end, and the report of it."""
    try:
        config, report = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "report"))
    except (OSError, ValueError):  # not there, or cut off when it was written
        return False
    if not config.get("completed", True):  # runs made before there was the mark have none
        return False
    reported = (report.get("eps"), report.get("norm"), report.get("samples"), tuple(report.get("attacks", ())))
    if reported != (float(wanted["eps"]), config.get("norm"), SAMPLES, ATTACKS):
        return False
    return all(name in config and str(config[name]) == str(type(config[name])(value)) for name, value in wanted.items())


def accuracies(report: dict[str, Any]) -> dict[str, float]:
    return {"natural": report["natural_accuracy"], **report["robust_accuracy"]}


def table(reports: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: mean over seeds, each seed listed below it."""
    lines = ["| training | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    names = {"natural": "natural", "pgd": "PGD-AT", "sense": "SENSE (c = 0.5)"}
    for method, of_seed in reports.items():
        rows = [accuracies(report) for report in of_seed]
        cells = []
        for column in COLUMNS:
            shares = [100 * row[column] for row in rows]
            cells.append(f"**{mean(shares):.1f}**<br>" + " / ".join(f"{share:.1f}" for share in shares))
        lines.append(f"| {names[method]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def section(reports: dict[str, list[dict[str, Any]]]) -> str:
    means = {
        method: {column: mean(100 * accuracies(report)[column] for report in of_seed) for column in COLUMNS}
        for method, of_seed in reports.items()
    }
    report = reports["sense"][0]
    return "\n".join(
        [
            table(reports),
            "",
            f"Accuracy in % on {report['samples']:,} test images, Linf eps = {report['eps']:g}: mean of seeds "
            f"{', '.join(map(str, SEEDS))} in bold, each seed below. *worst*: rows that survive every attack; this is "
            "**not AutoAttack**, the targeted margin attack is the strongest here.",
            f"SENSE stands {means['sense']['natural'] - means['pgd']['natural']:+.1f} points from PGD-AT in natural "
            f"accuracy, and {means['sense']['worst'] - means['natural']['worst']:+.1f} points from natural training "
            "in the worst case.",
            f"Made by `make compare` ({platform.machine()}, torch {torch.__version__}).",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder of the nine runs")
    parser.add_argument("--readme", type=Path, help="file whose marked section is rewritten")
    args = parser.parse_args()
    reports = {method: [run(method, seed, args.out) for seed in SEEDS] for method in METHODS}
    text = section(reports)
    print("\n" + text)
    if args.readme:
        marked.write("compare", text, args.readme)


if __name__ == "__main__":
    main()
