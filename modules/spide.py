"""SPIDE: a second spiking network solves for the gradient (Xiao et al., Neural Networks 161, 2023, section 4)."""
import torch
from torch import Tensor

from modules.circuit import Circuit
from modules.engines import Engine
from modules.implicit import ImplicitGradient, SpikeStatistics


class SPIDE(ImplicitGradient):
    """Ternary couples fire for ``T_B`` steps; their average signals solve the equation of implicit differentiation."""

    @classmethod
    def solve(cls, circuit: Circuit, engine: Engine, gradient: Tensor, masks: list[Tensor],
              statistics: SpikeStatistics | None) -> list[Tensor]:
        """``beta``, the average signals of the backward network, within ``[-kappa_b, kappa_b]``."""
        result = engine.simulate_backward(circuit, gradient, masks)
        if statistics is not None:
            steps = circuit.time_step_back * torch.tensor(statistics.neurons, device=result.fired.device)
            statistics.backward_rates = (result.fired / (len(gradient) * steps)).to(gradient.dtype)
            # A unit that fires one sign at every step has |beta| = kappa_b up to rounding; one missing spike is a
            # 1/T_B away.
            bound = circuit.couple.quantum * (1 - max(1e-5, 2 * torch.finfo(gradient.dtype).eps))
            statistics.saturated = (result.betas[-1].abs().float() > bound).to(gradient.dtype).mean()
        return result.betas
