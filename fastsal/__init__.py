"""fastsal: sensible adversarial training, PGD and their evaluation, at the speed of the machine."""

from fastsal import functional
from fastsal.attack import PGD, SENSE, perturb
from fastsal.live import AttackInfo

__version__ = "0.1.0"
__all__ = ["PGD", "SENSE", "AttackInfo", "__version__", "functional", "perturb"]
