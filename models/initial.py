"""Initial weights of the published networks."""
import torch
from torch import nn

from modules.synapses import ConvTranspose2d, Synapse


@torch.no_grad()
def unit_norm_rows(synapse: Synapse, scale: float = 1.0) -> Synapse:
    """Draw weights uniform in (-1, 1), scale those of each output channel to norm ``scale``; return the synapse."""
    weight = synapse.stored_weight.uniform_(-1, 1)
    inputs = (0, 2, 3) if isinstance(synapse, ConvTranspose2d) else tuple(range(1, weight.ndim))
    weight *= scale / torch.linalg.vector_norm(weight, dim=inputs, keepdim=True)
    return synapse


@torch.no_grad()
def kaiming(synapse: Synapse) -> Synapse:
    """Draw weights from Kaiming's normal distribution (fan in); return the synapse."""
    nn.init.kaiming_normal_(synapse.stored_weight)
    return synapse
