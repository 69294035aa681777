"""Models to attack: SmallCNN, trained here on the embedded images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastsal
from fastsal import runs
from fastsal.train import TrainResult

MODEL, EPS, C, SEED = "small-cnn", 0.1, 0.5, 0
SHAPE = {"num_classes": 10, "in_channels": 1, "size": 28}


def settings(method: str, epochs: int) -> dict[str, Any]:
    """What config.json says of a run that ended."""
    given = {"model": MODEL, "data": "fashion-mnist-mini", "method": method, "c": C, "eps": EPS, "norm": "Linf"}
    return {**given, "shape": SHAPE, "epochs": epochs, "seed": SEED}


def train(method: str, epochs: int, **options: Any) -> TrainResult:
    dataset = fastsal.data.load("fashion-mnist-mini")
    torch.manual_seed(SEED)
    model = runs.new_model(MODEL, SHAPE)
    if "lr" in options:
        options["optimizer"] = torch.optim.SGD(model.parameters(), options.pop("lr"), 0.9, 0.0, 5e-4, nesterov=True)
    loader = dataset.train.loader(128, shuffle=True, seed=SEED)
    return fastsal.train(model, loader, method=method, eps=EPS, c=C, epochs=epochs, seed=SEED, **options)


def kept(method: str, epochs: int, out: Path) -> nn.Module:
    """The model of a training run, made now if it is not in a folder of `out`."""
    folder, wanted = out / f"{method}-{epochs}", settings(method, epochs)
    if (folder / runs.CONFIG).is_file() and wanted.items() <= runs.read_config(folder).items():
        return runs.read_model(folder, wanted).eval()
    print(f"training {method}, {epochs} epochs", flush=True)
    result = train(method, epochs)
    if result.interrupted:
        raise KeyboardInterrupt
    write(folder, result, wanted)
    return result.model.eval()


def write(folder: Path, result: TrainResult, config: dict[str, Any]) -> None:
    """The settings last: where they are, the run has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_model(folder, result.model)
    last = result.history[-1]
    learnt = {name: last[name] for name in ("start_accuracy", "live_share_by_step")}
    versions = {"fastsal": fastsal.__version__, "torch": str(torch.__version__)}
    text = json.dumps({**config, "last_epoch": learnt, "versions": versions}, indent=2)
    (folder / runs.CONFIG).write_text(text + "\n", encoding="utf-8")
