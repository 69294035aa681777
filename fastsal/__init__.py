"""fastsal: sensible adversarial training, PGD and their evaluation, at the speed of the machine."""

from fastsal import functional
from fastsal.attack import PGD, SENSE, perturb
from fastsal.live import AttackInfo
from fastsal.version import __version__


__all__ = ["PGD", "SENSE", "AttackInfo", "__version__", "functional", "perturb"]
