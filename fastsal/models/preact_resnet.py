"""Residual networks with pre-activation: the block, and PreActResNet-18."""

import torch
from torch import Tensor, nn

from fastsal.models.checks import at_least
from fastsal.models.initialise import kaiming_convolutions


class PreActBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv plus a shortcut.

    The shortcut is the untouched input where shapes agree, else a 1x1 convolution of the activated
    input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = stride == 1 and inputs == outputs
        self.projection = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu(self.bn1(x))
        shortcut = x if self.projection is None else self.projection(activated)
        y: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(activated))))
        return y + shortcut


def preact_stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    """``blocks`` blocks; the first one changes the channels and the resolution."""
    first = PreActBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(PreActBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


class PreActResNet18(nn.Module):
    """PreActResNet-18 for small images.

    A 3x3 convolution, then four stages of two blocks with 64, 128, 256, 512 channels; stages two to
    four halve the image. After the last block come BN and ReLU, as in the paper (some public
    versions leave them out and have 1,024 parameters fewer), then the mean over pixels and one
    linear layer. Convolutions start at N(0, 2 / fan_out), the linear layer at torch's own start.
    11,172,170 parameters with ten classes and three channels.

    Args:
        num_classes: logits per image, >= 1.
        in_channels: channels per image, >= 1.
        image_size: pixels, >= 8; only checked, since one network serves every size.

    Shapes: images ``(N, in_channels, H, W)`` in [0, 1] -> logits ``(N, num_classes)``.

    Raises:
        ValueError: an argument is no integer or too small.

    Source: He et al., "Identity Mappings in Deep Residual Networks" (2016), for the block and the
    end; the 18-layer plan is from "Deep Residual Learning for Image Recognition" (2016).
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        num_classes = at_least(1, "num_classes", num_classes, "PreActResNet18")
        in_channels = at_least(1, "in_channels", in_channels, "PreActResNet18")
        at_least(8, "image_size", image_size, "PreActResNet18")
        self.conv = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.stage1 = preact_stage(64, 64, 2, stride=1)
        self.stage2 = preact_stage(64, 128, 2, stride=2)
        self.stage3 = preact_stage(128, 256, 2, stride=2)
        self.stage4 = preact_stage(256, 512, 2, stride=2)
        self.bn = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512, num_classes)
        kaiming_convolutions(self, "fan_out")

    def forward(self, images: Tensor) -> Tensor:
        x = self.stage2(self.stage1(self.conv(images)))
        x = self.stage4(self.stage3(x))
        logits: Tensor = self.fc(torch.relu(self.bn(x)).mean((2, 3)))
        return logits
