"""The two tiny CNNs: 62 thousand and 16 thousand parameters."""

from torch import Tensor, nn

from fastsal.models.checks import at_least


class TinyCNN(nn.Module):
    """Two convolutions and three linear layers.

    The convolutions are 5x5 without padding and have 6 and 16 channels, each with ReLU and a 2x2
    max-pool. With ten classes at 3x32x32, ``hidden=(120, 84)`` has 62,006 parameters and
    ``hidden=(30, 21)`` has 15,773. All layers start at torch's own start.

    Args:
        hidden: widths of the first and second linear layer, each >= 1; ReLU follows both.
        num_classes: logits per image, >= 1.
        in_channels: channels per image, >= 1.
        image_size: height and width of the images in pixels, >= 16; fixes the width of the first
            linear layer.

    Shapes: images ``(N, in_channels, image_size, image_size)`` in [0, 1]
    -> logits ``(N, num_classes)``.

    Raises:
        ValueError: an argument is no integer or too small.

    Source: the plan of LeNet-5 with ReLU and max-pooling; LeCun et al., "Gradient-Based Learning
    Applied to Document Recognition" (1998).
    """

    def __init__(
        self,
        hidden: tuple[int, int] = (120, 84),
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        first, second = (at_least(1, "hidden", width, "TinyCNN") for width in hidden)
        num_classes = at_least(1, "num_classes", num_classes, "TinyCNN")
        in_channels = at_least(1, "in_channels", in_channels, "TinyCNN")
        image_size = at_least(16, "image_size", image_size, "TinyCNN")
        # An unpadded 5x5 convolution takes 4 pixels off a side; the pool halves the rest.
        side = ((image_size - 4) // 2 - 4) // 2
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * side * side, first),
            nn.ReLU(),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.Linear(second, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
