"""A run on disk: config.json, history.csv, report.json, model.pt and two pictures in one folder."""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastsal import models
from fastsal.version import __version__

CONFIG, HISTORY, REPORT, MODEL = "config.json", "history.csv", "report.json", "model.pt"
CURVES, EXAMPLES = "curves.png", "examples.png"
EVAL_STEPS = 40  # k of PGD-k in the report, if a run says nothing else


class RunError(ValueError):
    """A folder that is not a run, or holds a damaged one; says what was looked for and where."""


def named(path: Path, words: Sequence[str]) -> Path:
    """`path` with words after its stem, joined by hyphens: report.json and ["eps-0.2"] give report-eps-0.2.json."""
    return path.with_name("-".join([path.stem, *words]) + path.suffix)


def clear(folder: Path) -> None:
    """Removes the files of a run, and the reports and pictures of its other evaluations."""
    for name in (HISTORY, REPORT, MODEL, CURVES, EXAMPLES):
        (folder / name).unlink(missing_ok=True)
    for name in (REPORT, EXAMPLES):
        for path in folder.glob(named(Path(name), ["*"]).name):
            path.unlink()


def write_config(folder: Path, config: dict[str, Any]) -> None:
    versions = {
        "fastsal": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    (folder / CONFIG).write_text(json.dumps({**config, "versions": versions}, indent=2) + "\n", encoding="utf-8")


def write_history(folder: Path, history: Sequence[dict[str, Any]]) -> None:
    """One line per epoch; the live share by step gets one column per step."""
    flat = []
    for row in history:
        line = {key: value for key, value in row.items() if key != "live_share_by_step"}
        line |= {f"live_share_step_{k + 1}": share for k, share in enumerate(row["live_share_by_step"])}
        flat.append(line)
    columns = list(dict.fromkeys(key for line in flat for key in line))
    with (folder / HISTORY).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(flat)


def new_model(name: str, shape: dict[str, int]) -> nn.Module:
    """A fresh model for images of `shape`: num_classes, in_channels, and size, height and width in pixels."""
    return models.get(
        name, num_classes=shape["num_classes"], in_channels=shape["in_channels"], image_size=shape["size"]
    )


def write_model(folder: Path, model: nn.Module) -> None:
    unfinished = folder / (MODEL + ".part")
    torch.save(model.state_dict(), unfinished)
    unfinished.replace(folder / MODEL)


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise RunError(f"expected a run, a folder with {CONFIG} and {MODEL}, at {folder}, got no {CONFIG} there")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text at all
        raise RunError(f"{path}: expected JSON, got {error}") from error
    wanted = {"model", "data", "method", "c", "eps", "norm", "shape"}
    if not isinstance(config, dict) or not wanted <= config.keys():
        raise RunError(f"{path}: expected the settings of a run ({', '.join(sorted(wanted))}), got others")
    config.setdefault("eval_steps", EVAL_STEPS)
    _check_config(path, config)
    return config


def _check_config(path: Path, config: dict[str, Any]) -> None:
    """Names the key that was changed by hand into what no run writes."""

    def is_number(value: object, kinds: type | tuple[type, ...]) -> bool:
        return isinstance(value, kinds) and not isinstance(value, bool)

    def check(name: str, value: object, good: bool, expected: str) -> None:
        if not good:
            raise RunError(f"{path}: {name}: expected {expected}, got {value!r}")

    for name in ("model", "data", "method"):
        check(name, config[name], isinstance(config[name], str), "a text")
    check("norm", config["norm"], config["norm"] in ("Linf", "L2", "L1"), "Linf, L2 or L1")
    for name, top in (("eps", math.inf), ("c", 1.0)):
        value = config[name]
        good = is_number(value, (int, float)) and 0 <= value <= top and math.isfinite(value)
        check(name, value, good, "a finite number >= 0" if top == math.inf else "a probability in [0, 1]")
    steps = config["eval_steps"]
    check("eval_steps", steps, is_number(steps, int) and steps >= 1, "a whole number >= 1")
    shape = config["shape"]
    keys = {"num_classes", "in_channels", "size"}
    check("shape", shape, isinstance(shape, dict) and shape.keys() == keys, f"an object of {', '.join(sorted(keys))}")
    for name, value in shape.items():
        check(f"shape.{name}", value, is_number(value, int) and value >= 1, "a whole number >= 1")


def read_model(folder: Path, config: dict[str, Any]) -> nn.Module:
    """The trained model; weights only, nothing is unpickled that could run code."""
    path = folder / MODEL
    if not path.is_file():
        raise RunError(f"expected trained weights at {path}, got no such file")
    try:
        model = new_model(config["model"], config["shape"])
    except ValueError as error:
        raise RunError(f"{folder / CONFIG}: model, shape: {error}") from error
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # whatever a damaged file makes of the reader
        first = str(error).strip().partition("\n")[0]
        raise RunError(f"{path}: expected weights of {config['model']}, got {type(error).__name__}: {first}") from error
    return model
