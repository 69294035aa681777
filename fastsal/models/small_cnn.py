"""SmallCNN, the MNIST network of TRADES."""

from torch import Tensor, nn

from fastsal.models.checks import at_least
from fastsal.models.initialise import kaiming_convolutions


class SmallCNN(nn.Module):
    """Four convolutions and three linear layers.

    The convolutions are 3x3 without padding and have 32, 32, 64, 64 channels, with a 2x2 max-pool
    after each pair; the linear layers have 200, 200, ``num_classes`` outputs. ReLU after every
    layer but the last; dropout 0.5 after the first linear layer's ReLU. 312,202 parameters for
    MNIST (``in_channels=1``, ``image_size=28``, ten classes).

    Convolutions start at N(0, 2 / fan_in) with zero bias, linear layers at torch's own start. The
    last layer does not start at zero: the gradient at the input would be zero too, and an attack on
    the fresh network would have nothing to follow.

    Args:
        num_classes: logits per image, >= 1.
        in_channels: channels per image, >= 1; the same default as the other networks, so give 1 for
            MNIST.
        image_size: height and width of the images in pixels, >= 16; fixes the width of the first
            linear layer.

    Shapes: images ``(N, in_channels, image_size, image_size)`` in [0, 1]
    -> logits ``(N, num_classes)``.

    Raises:
        ValueError: an argument is no integer or too small.

    Source: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy"
    (TRADES, 2019), after Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks"
    (2017).
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, image_size: int = 28) -> None:
        super().__init__()
        num_classes = at_least(1, "num_classes", num_classes, "SmallCNN")
        in_channels = at_least(1, "in_channels", in_channels, "SmallCNN")
        image_size = at_least(16, "image_size", image_size, "SmallCNN")
        # A pair of unpadded 3x3 convolutions takes 4 pixels off a side; the pool halves the rest.
        side = ((image_size - 4) // 2 - 4) // 2
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(64 * side * side, 200),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(200, 200),
            nn.ReLU(),
            nn.Linear(200, num_classes),
        )
        kaiming_convolutions(self, "fan_in")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
