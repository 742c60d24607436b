"""Published networks, composed from ``modules``."""
from models.alexnetf import AlexNetF, CIFARNetF
from models.classifier import SpikingClassifier
from models.convnetf import ConvNetF
from models.lenet import LeNet

__all__ = ["AlexNetF", "CIFARNetF", "ConvNetF", "LeNet", "SpikingClassifier"]
