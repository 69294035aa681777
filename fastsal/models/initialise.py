"""How the convolutions start."""

from typing import Literal

from torch import nn


def kaiming_convolutions(model: nn.Module, mode: Literal["fan_in", "fan_out"]) -> None:
    """Draw every convolution of ``model`` from N(0, 2 / fan) and set its bias to zero, in place.

    ``fan`` is kernel area times input channels (``"fan_in"``) or output channels (``"fan_out"``).
    Other layers keep torch's own start: batch norms at scale 1 and shift 0, linear layers uniform
    within 1 / sqrt(inputs).

    Source: He et al., "Delving Deep into Rectifiers: Surpassing Human-Level Performance on ImageNet
    Classification" (2015).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
