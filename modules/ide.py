"""IDE: the exact implicit gradient, solved for in floats (Xiao et al., NeurIPS 2021, arXiv 2109.14247).

The published method finds the root by Broyden's method. Here the ring is swept from the last layer to the first, as
the backward network does it, with values in place of spikes: the first sweep is exact where there is no feedback, and
each further one takes one more turn through the feedback, which norm restriction makes a contraction.
"""
from collections.abc import Iterable

import torch
from torch import Tensor

from modules.circuit import Circuit
from modules.engines import Engine
from modules.implicit import ImplicitGradient, SpikeStatistics
from modules.notices import warn_once

# Sweeps between two looks at the residual: each look waits for the device, which on a CPU costs nothing.
INTERVAL = {"cpu": 1, "cuda": 4}
# A change that has grown so much over the least one will not come down again: the feedback is no contraction.
GROWTH = 1e3


class IDE(ImplicitGradient):
    """Sweeps until they change ``beta`` by less than ``circuit.tolerance``, at most ``circuit.max_sweeps`` of them."""

    @classmethod
    def solve(cls, circuit: Circuit, engine: Engine, gradient: Tensor, masks: list[Tensor],
              statistics: SpikeStatistics | None) -> list[Tensor]:
        """``beta`` in floats. Where sweeps do not converge, the iterate that changed least, and one warning."""
        gates = circuit.gates([mask.to(gradient.dtype) / circuit.neuron.quantum for mask in masks])
        betas = best = sweep(circuit, gradient, gates)
        sweeps, least, residual = 1, torch.inf, float(circuit.has_feedback)  # the first one changed all, from 0
        while not residual <= circuit.tolerance and sweeps < circuit.max_sweeps:
            for _ in range(min(INTERVAL.get(gradient.device.type, 1), circuit.max_sweeps - sweeps)):
                before, betas = betas, sweep(circuit, gradient, gates, betas[0])
                sweeps += 1
            change, size = torch.stack([_norm(a - b for a, b in zip(betas, before)), _norm(betas)]).tolist()
            if not change <= GROWTH * least:  # grown, or no longer a number
                break
            if change <= least:
                best, least, residual = betas, change, change / size if size else 0.0
        if not residual <= circuit.tolerance:  # NaN, which norms that overflow make, included
            warn_once("ide", sentence=
                      f"the implicit gradient did not converge: after {sweeps} sweeps the least change of one was "
                      f"{residual:.2g} of its size, not {circuit.tolerance:g}, and that iterate is used; restrict the "
                      "feedback synapse's norm (max_norm), or allow more sweeps or a larger tolerance")
        if statistics is not None:
            statistics.sweeps, statistics.residual = gradient.new_tensor(sweeps), gradient.new_tensor(residual)
        return best


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """The norm of all their numbers, whose squares half precision would not hold; 0-dim."""
    return torch.stack([t.float().norm() if t.element_size() < 4 else t.norm() for t in tensors]).norm()


def sweep(circuit: Circuit, gradient: Tensor, gates: list[Tensor], first: Tensor | None = None) -> list[Tensor]:
    """One turn from the last layer to the first, ``first`` being the ``beta_0`` of the turn before, if any.

    ``beta_{N-1} = g + F^T (m_0 beta_0) / kappa``, ``beta_{l-1} = W_l^T (m_l beta_l) / kappa``; the gates are ``m /
    kappa`` and dropout.
    """
    betas = [gradient if first is None else gradient + circuit.feedback.transpose(first * gates[-1])]
    for layer in range(len(circuit.feedforward) - 1, 0, -1):
        betas.append(circuit.feedforward[layer].transpose(betas[-1] * gates[layer]))
    return betas[::-1]
