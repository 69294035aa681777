"""Networks by name."""

import difflib
import re
from collections.abc import Callable
from functools import partial

from torch import nn

from fastsal.models.cifar_resnet import CifarResNet
from fastsal.models.preact_resnet import PreActResNet18
from fastsal.models.small_cnn import SmallCNN
from fastsal.models.tiny_cnn import TinyCNN
from fastsal.models.wide_resnet import WideResNet

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "small-cnn": SmallCNN,
    "tiny-cnn-62k": partial(TinyCNN, (120, 84)),
    "tiny-cnn-16k": partial(TinyCNN, (30, 21)),
    "resnet20": partial(CifarResNet, 20),
    "resnet32": partial(CifarResNet, 32),
    "resnet44": partial(CifarResNet, 44),
    "resnet56": partial(CifarResNet, 56),
    "preactresnet18": PreActResNet18,
    "wrn-34-10": partial(WideResNet, 34, 10),
}


def names() -> list[str]:
    """The names that ``get`` knows, in their canonical spelling."""
    return list(_BUILDERS)


def get(name: str, num_classes: int = 10, in_channels: int = 3, image_size: int | None = None) -> nn.Module:
    """A freshly initialised network in train mode, with torch's default dtype and device.

    Args:
        name: one of ``names()``; case, spaces, ``-``, ``_`` do not matter, and ``wideresnet`` may
            stand for ``wrn``.
        num_classes: logits per image, >= 1.
        in_channels: channels per image, >= 1 (1 for MNIST).
        image_size: height and width in pixels. ``small-cnn`` (default 28) and the tiny CNNs
            (default 32) are built for this one size, >= 16; the residual networks run at every size
            >= 8.

    Returns:
        A module from images ``(N, in_channels, H, W)`` in [0, 1] to logits ``(N, num_classes)``.

    Raises:
        ValueError: ``name`` is unknown, or a number is too small for the network.
    """
    spellings = {_squeeze(known): known for known in _BUILDERS}
    squeezed = _squeeze(str(name)).replace("wideresnet", "wrn")
    if squeezed not in spellings:
        nearest = difflib.get_close_matches(squeezed, spellings, n=1)
        hint = f"; did you mean {spellings[nearest[0]]!r}?" if nearest else ""
        raise ValueError(f"name: expected one of {', '.join(_BUILDERS)}; got {name!r}{hint}")
    size = {} if image_size is None else {"image_size": image_size}
    builder = _BUILDERS[spellings[squeezed]]
    return builder(num_classes=num_classes, in_channels=in_channels, **size)


def _squeeze(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()
