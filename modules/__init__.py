"""Building blocks of feedback spiking networks: neurons, synapses, the SPIDE function and its engines."""
from modules import synapses
from modules.feedback_snn import FeedbackSNN
from modules.neurons import IF, LIF, TernaryCouple
from modules.spide import SpikeStatistics

__all__ = ["IF", "LIF", "FeedbackSNN", "SpikeStatistics", "TernaryCouple", "synapses"]
