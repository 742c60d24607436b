"""ConvNet-F: one convolutional layer with feedback to itself, for event recordings."""
from models.classifier import SpikingClassifier
from models.initial import kaiming
from modules import FeedbackSNN
from modules.synapses import Conv2d


class ConvNetF(SpikingClassifier):
    """A 9x9 convolution of stride 2 into one layer that feeds back to itself through a 5x5 convolution.

    Takes recordings ``(batch, frames, in_channels, image_size, image_size)``.

    Args:
        width: channels of the layer; in_channels, image_size: of the square frames; two polarities by default.
        num_classes: number of logits; dropout: of both synapses.
        feedback_norm: largest Frobenius norm of the feedback weight.
        dynamics: further arguments of :class:`modules.FeedbackSNN`.
    """

    def __init__(self, *, width: int = 512, in_channels: int = 2, image_size: int = 48, num_classes: int = 10,
                 dropout: float = 0.0, feedback_norm: float = 10.0, **dynamics) -> None:
        network = FeedbackSNN(
            input=kaiming(Conv2d(in_channels, width, 9, stride=2, dropout=dropout)),
            feedback=kaiming(Conv2d(width, width, 5, bias=False, dropout=dropout, max_norm=feedback_norm)),
            event_input=True, **dynamics)
        super().__init__(network, input_shape=(in_channels, image_size, image_size), num_classes=num_classes)
