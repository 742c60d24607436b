"""Building blocks of feedback spiking networks: neurons, synapses, the two backward passes and the engines."""
from modules import synapses
from modules.feedback_snn import FeedbackSNN
from modules.implicit import SpikeStatistics
from modules.neurons import IF, LIF, TernaryCouple

__all__ = ["IF", "LIF", "FeedbackSNN", "SpikeStatistics", "TernaryCouple", "synapses"]
