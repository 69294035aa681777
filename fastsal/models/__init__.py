"""The networks of the recipes, by name: ``get("resnet20")``; ``names()`` lists them.

Every network maps images ``(N, in_channels, H, W)`` with values in [0, 1] to logits
``(N, num_classes)``; there is no normalisation inside. All of them take contiguous and
channels_last input, float32 and float64, and an empty batch in eval mode, and
``torch.fx.symbolic_trace`` can trace them.

To add a network: write ``fastsal/models/FAMILY.py`` with its class, add one line to
``registry.py``, export the class here, and add its parameter count to ``tests/test_models.py``.
"""

from fastsal.models.cifar_resnet import CifarResNet
from fastsal.models.preact_resnet import PreActResNet18
from fastsal.models.registry import get, names
from fastsal.models.small_cnn import SmallCNN
from fastsal.models.tiny_cnn import TinyCNN
from fastsal.models.wide_resnet import WideResNet

__all__ = [
    "CifarResNet",
    "PreActResNet18",
    "SmallCNN",
    "TinyCNN",
    "WideResNet",
    "get",
    "names",
]
