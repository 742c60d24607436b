"""LeNet: the network without feedback, for MNIST (SPIDE, section 5.1)."""
from models.classifier import SpikingClassifier
from models.initial import kaiming
from modules import FeedbackSNN
from modules.synapses import AvgPool2d, Conv2d, Linear


class LeNet(SpikingClassifier):
    """conv5 - pool2 - conv5 - pool2 - fully connected, each followed by a layer of spiking neurons.

    Args:
        widths: channels of the two convolutions and units of the fully connected layer.
        in_channels, image_size: of the square input images.
        num_classes: number of logits; dropout: of the fully connected synapse.
        dynamics: further arguments of :class:`modules.FeedbackSNN`.
    """

    def __init__(self, *, widths: tuple[int, int, int] = (15, 40, 300), in_channels: int = 1, image_size: int = 28,
                 num_classes: int = 10, dropout: float = 0.5, **dynamics) -> None:
        first, second, hidden = widths
        pooled = image_size // 2 // 2
        network = FeedbackSNN(
            input=kaiming(Conv2d(in_channels, first, 5)),
            layers=[AvgPool2d(2), kaiming(Conv2d(first, second, 5)), AvgPool2d(2),
                    kaiming(Linear(second * pooled * pooled, hidden, dropout=dropout))],
            **dynamics)
        super().__init__(network, input_shape=(in_channels, image_size, image_size), num_classes=num_classes)
