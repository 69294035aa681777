"""The CIFAR residual networks: ResNet-20, 32, 44, 56."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsal.models.checks import at_least
from fastsal.models.initialise import kaiming_convolutions


class PadShortcut(nn.Module):
    """Option A, parameter-free: every ``stride``-th pixel, then ``extra`` channels of zeros."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra = extra
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


class ResidualBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus the shortcut, then ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else PadShortcut(outputs - inputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """The residual network for small images, of ``depth`` layers.

    A 3x3 convolution, three stages of 16, 32, 64 channels, the mean over pixels, one linear layer.
    Each stage has ``(depth - 2) / 6`` blocks of two 3x3 convolutions; the second and third stage
    halve the image. Shortcuts are option A of the paper (subsampling, zero-padded channels). Every
    batch norm directly follows a convolution. Convolutions start at N(0, 2 / fan_in), the linear
    layer at torch's own start.

    With ten classes and three channels, depth 20 has 269,722 parameters, 32 has 464,154, 44 has
    658,586, and 56 has 853,018.

    Args:
        depth: layers with weights, 6 n + 2 with n >= 1.
        num_classes: logits per image, >= 1.
        in_channels: channels per image, >= 1.
        image_size: pixels, >= 8; only checked, since one network serves every size.

    Shapes: images ``(N, in_channels, H, W)`` in [0, 1] -> logits ``(N, num_classes)``.

    Raises:
        ValueError: an argument is no integer or too small, or ``depth`` is not 6 n + 2.

    Source: He et al., "Deep Residual Learning for Image Recognition" (2016), section 4.2.
    """

    def __init__(self, depth: int = 20, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        depth = at_least(8, "depth", depth, "CifarResNet")
        if depth % 6 != 2:
            raise ValueError(f"depth: CifarResNet expected 6 n + 2 (20, 32, 44, 56), got {depth}")
        num_classes = at_least(1, "num_classes", num_classes, "CifarResNet")
        in_channels = at_least(1, "in_channels", in_channels, "CifarResNet")
        at_least(8, "image_size", image_size, "CifarResNet")
        blocks = (depth - 2) // 6
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.stage1 = _stage(16, 16, blocks, stride=1)
        self.stage2 = _stage(16, 32, blocks, stride=2)
        self.stage3 = _stage(32, 64, blocks, stride=2)
        self.fc = nn.Linear(64, num_classes)
        kaiming_convolutions(self, "fan_in")

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(images)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = ResidualBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(ResidualBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
