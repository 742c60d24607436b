"""The exact implicit gradient of a feedback network's equilibrium, independent of the spiking backward pass.

At firing rates ``a`` with masks ``m`` one application of the network is ``y_l = m_l I_l(a) / kappa``. The gradient
``lambda_l = dL/da_l`` solves ``lambda = g e_{N-1} + (dy/da)^T lambda``, which is iterated here until it stands still,
one vector-Jacobian product by autograd each time; the parameters' gradient is then ``(dy/dtheta)^T lambda``.
"""
import torch
from torch import Tensor

from modules.circuit import Circuit


def responses(circuit: Circuit, x: Tensor, rates: list[Tensor]) -> list[Tensor]:
    """``I_l(a) / kappa`` of every layer, from the firing rates of all layers."""
    kappa = circuit.neuron.quantum
    currents = [c.current(source) for c, source in zip(circuit.feedforward, [x, *rates[:-1]])]
    if circuit.feedback is not None:
        currents[0] = currents[0] + circuit.feedback.current(rates[-1])
    return [current / kappa for current in currents]


def equilibrium(circuit: Circuit, x: Tensor, iterations: int = 500) -> list[Tensor]:
    """Rates ``a = clip(I(a) / kappa, 0, 1)``, by iteration; the feedback must be a contraction."""
    rates = [x.new_zeros(len(x), *c.output_shape) for c in circuit.feedforward]
    for _ in range(iterations):
        rates = [response.clamp(0, 1) for response in responses(circuit, x, rates)]
    return rates


def exact_gradients(circuit: Circuit, x: Tensor, rates: list[Tensor], masks: list[Tensor], gradient: Tensor,
                    wanted: list[Tensor]) -> list[Tensor]:
    """Gradients of a loss for the tensors ``wanted``, which ``circuit`` uses, given ``gradient`` for the last rates.

    Raises:
        AssertionError: the adjoint iteration does not converge.
    """
    leaves = [rate.detach().requires_grad_() for rate in rates]
    outputs = [mask * response for mask, response in zip(masks, responses(circuit, x, leaves))]
    source = [torch.zeros_like(rate) for rate in rates]
    source[-1] = gradient
    adjoint = source
    for _ in range(1000):
        products = torch.autograd.grad(outputs, leaves, adjoint, retain_graph=True, allow_unused=True)
        update = [s if p is None else s + p for s, p in zip(source, products)]
        change = max((a - b).abs().max().item() for a, b in zip(update, adjoint))
        adjoint = update
        if change < 1e-14 * gradient.abs().max().item():
            return list(torch.autograd.grad(outputs, wanted, adjoint, retain_graph=True))
    raise AssertionError("the adjoint equation did not converge")
