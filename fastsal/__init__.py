"""fastsal: sensible adversarial training, PGD and their evaluation, at the speed of the machine."""

from fastsal import data, functional, models
from fastsal.attacks import APGD, FAT, PGD, SENSE, perturb
from fastsal.evaluate import Report, evaluate
from fastsal.heap import kept_memory
from fastsal.levers import Levers
from fastsal.live import AttackInfo
from fastsal.said import FallbackWarning
from fastsal.train import TrainingDiverged, TrainingStopped, TrainResult, train
from fastsal.version import __version__

__all__ = [
    "APGD",
    "FAT",
    "PGD",
    "SENSE",
    "AttackInfo",
    "FallbackWarning",
    "Levers",
    "Report",
    "TrainResult",
    "TrainingDiverged",
    "TrainingStopped",
    "__version__",
    "data",
    "evaluate",
    "functional",
    "kept_memory",
    "models",
    "perturb",
    "train",
]
