"""A feedback spiking network with a linear readout of its firing rates."""
import math

import torch
from torch import Tensor, nn

from modules import FeedbackSNN, SpikeStatistics, engines
from modules.synapses import Shape


class SpikingClassifier(nn.Module):
    """``logits = W a + b``, one for each class, of the equilibrium firing rates ``a`` of a network's last layer; images
    or frames are of ``input_shape`` ``(channels, height, width)``."""

    def __init__(self, network: FeedbackSNN, *, input_shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.network, self.input_shape, self.num_classes = network, tuple(input_shape), num_classes
        self.classifier = nn.Linear(math.prod(network.layer_shapes(self.input_shape)[-1]), num_classes)

    def forward(self, x: Tensor, statistics: SpikeStatistics | None = None, *, keys: Tensor | None = None) -> Tensor:
        """Logits ``(batch, num_classes)``; arguments as :class:`modules.FeedbackSNN` takes them."""
        return self.classifier(self.network(x, statistics, keys=keys).flatten(1))

    @property
    def num_neurons(self) -> int:
        """Number of forward neurons, pooling layers included."""
        return sum(map(math.prod, self.network.layer_shapes(self.input_shape)))

    def engine_on(self, device: torch.device) -> str:
        """Name of the engine that simulates on ``device``, and whether it proved itself there."""
        return engines.describe(self.network.engine, device)
