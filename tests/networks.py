"""Small versions of the four published networks, and exact float64 inputs for them."""
import torch

from models import AlexNetF, CIFARNetF, ConvNetF, LeNet
from modules import IF, LIF

NAMES = ("lenet", "alexnetf", "cifarnetf", "convnetf")


def small(name: str, *, leak: float = 1.0, dropout: float = 0.0, time_step: int = 20, time_step_back: int = 50,
          gain: float = 1.0, engine="dense") -> torch.nn.Module:
    """A small network in float64, weights drawn from the global generator and multiplied by ``gain``."""
    dynamics = {"neuron": IF() if leak == 1 else LIF(leak=leak), "time_step": time_step,
                "time_step_back": time_step_back, "engine": engine, "dropout": dropout}
    model = {
        "lenet": lambda: LeNet(widths=(4, 6, 12), image_size=14, **dynamics),
        "alexnetf": lambda: AlexNetF(widths=(4, 6, 8, 8, 6), image_size=10, **dynamics),
        "cifarnetf": lambda: CIFARNetF(widths=(5, 6, 9, 10, 7), image_size=12, **dynamics),
        "convnetf": lambda: ConvNetF(width=6, image_size=12, **dynamics),
    }[name]().double()
    with torch.no_grad():
        for synapse in (model.network.input, *model.network.layers):
            if synapse.stored_weight is not None:
                synapse.stored_weight.mul_(gain)
                synapse.bias.uniform_(0, 0.2)  # so that all layers fire
        if name in ("alexnetf", "cifarnetf"):
            model.network.feedback.stored_weight.mul_(3)  # so that feedback counts, and is still a contraction
    return model


def sample_input(name: str, model: torch.nn.Module, batch: int = 2, frames: int = 20) -> torch.Tensor:
    """Images, or binary event frames for ConvNet-F, from the global generator."""
    if name == "convnetf":
        return (torch.rand(batch, frames, *model.input_shape) < 0.3).double()
    return torch.randn(batch, *model.input_shape).double()
