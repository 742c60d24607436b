"""AlexNet-F and CIFARNet-F: five convolutional layers with feedback, in two widths (SPIDE, section 5.1)."""
from models.classifier import SpikingClassifier
from models.initial import unit_norm_rows
from modules import FeedbackSNN
from modules.synapses import Conv2d, ConvTranspose2d

ALEXNET_WIDTHS = (96, 256, 384, 384, 256)
CIFARNET_WIDTHS = (128, 256, 512, 1024, 512)


class AlexNetF(SpikingClassifier):
    """Five layers of 3x3 convolutions, the first and third of stride 2, and feedback from the last to the first.

    Args:
        widths: channels of the five layers; in_channels, image_size: of the square input images.
        num_classes: number of logits; dropout: of every synapse.
        feedback_norm: largest Frobenius norm of the feedback weight.
        dynamics: further arguments of :class:`modules.FeedbackSNN`.
    """

    def __init__(self, *, widths: tuple[int, int, int, int, int] = ALEXNET_WIDTHS, in_channels: int = 3,
                 image_size: int = 32, num_classes: int = 10, dropout: float = 0.2, feedback_norm: float = 2.0,
                 **dynamics) -> None:
        def convolution(source: int, target: int, stride: int = 1) -> Conv2d:
            return unit_norm_rows(Conv2d(source, target, 3, stride=stride, dropout=dropout))

        w0, w1, w2, w3, w4 = widths
        feedback = ConvTranspose2d(w4, w0, 3, stride=2, bias=False, dropout=dropout, max_norm=feedback_norm)
        network = FeedbackSNN(
            input=convolution(in_channels, w0, stride=2),
            layers=[convolution(w0, w1), convolution(w1, w2, stride=2), convolution(w2, w3), convolution(w3, w4)],
            feedback=unit_norm_rows(feedback, scale=0.1), **dynamics)
        super().__init__(network, input_shape=(in_channels, image_size, image_size), num_classes=num_classes)


class CIFARNetF(AlexNetF):
    """AlexNet-F with the widths of CIFARNet-F; arguments as there."""

    def __init__(self, *, widths: tuple[int, int, int, int, int] = CIFARNET_WIDTHS, dropout: float = 0.25,
                 **arguments) -> None:
        super().__init__(widths=widths, dropout=dropout, **arguments)
