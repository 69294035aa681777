"""Wide residual networks; WRN-34-10 is the CIFAR-10 network of TRADES."""

import torch
from torch import Tensor, nn

from fastsal.models.checks import at_least
from fastsal.models.initialise import kaiming_convolutions
from fastsal.models.preact_resnet import preact_stage


class WideResNet(nn.Module):
    """WRN-``depth``-``width``: a pre-activation network with wide stages.

    A 3x3 convolution, three stages of 16, 32, 64 times ``width`` channels, BN, ReLU, the mean over
    pixels, one linear layer. Each stage has ``(depth - 4) / 6`` pre-activation blocks; the second
    and third stage halve the image. No dropout. Convolutions start at N(0, 2 / fan_out); the linear
    layer starts at torch's own weights and zero bias. WRN-34-10 has 46,160,474 parameters with ten
    classes and three channels.

    Args:
        depth: layers with weights, 6 n + 4 with n >= 1.
        width: factor on the channels, >= 1.
        num_classes: logits per image, >= 1.
        in_channels: channels per image, >= 1.
        image_size: pixels, >= 8; only checked, since one network serves every size.

    Shapes: images ``(N, in_channels, H, W)`` in [0, 1] -> logits ``(N, num_classes)``.

    Raises:
        ValueError: an argument is no integer or too small, or ``depth`` is not 6 n + 4.

    Source: Zagoruyko and Komodakis, "Wide Residual Networks" (2016).
    """

    def __init__(
        self,
        depth: int = 34,
        width: int = 10,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        depth = at_least(10, "depth", depth, "WideResNet")
        if depth % 6 != 4:
            raise ValueError(f"depth: WideResNet expected 6 n + 4 (10, 16, 28, 34), got {depth}")
        width = at_least(1, "width", width, "WideResNet")
        num_classes = at_least(1, "num_classes", num_classes, "WideResNet")
        in_channels = at_least(1, "in_channels", in_channels, "WideResNet")
        at_least(8, "image_size", image_size, "WideResNet")
        blocks = (depth - 4) // 6
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.stage1 = preact_stage(16, 16 * width, blocks, stride=1)
        self.stage2 = preact_stage(16 * width, 32 * width, blocks, stride=2)
        self.stage3 = preact_stage(32 * width, 64 * width, blocks, stride=2)
        self.bn = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        kaiming_convolutions(self, "fan_out")
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.conv(images))))
        logits: Tensor = self.fc(torch.relu(self.bn(x)).mean((2, 3)))
        return logits
