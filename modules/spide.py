"""SPIDE as an autograd function: a spiking forward pass, and gradients from a second spiking network.

At the equilibrium of the forward network the loss gradient solves a linear fixed-point equation; the backward network
of ternary couples solves it by spiking (Xiao et al., Neural Networks 161, 2023, section 4). What is left for autograd
is one local product per synapse, pre-synaptic firing rate times post-synaptic backward rate.
"""
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from modules.circuit import Circuit, Connection
from modules.engines import Engine
from modules.neurons import leak_weights
from modules.synapses import layout


@dataclass
class SpikeStatistics:
    """Firing rates of one forward pass and of its backward pass; pass a new one to each call that wants them.

    Entries are filled when the passes run, stay on the device, and are None before that.

    Attributes:
        neurons: number of neurons of each layer.
        forward_rates: mean number of spikes per neuron and step of each layer, in [0, 1], shape ``(layers,)``.
        backward_rates: the same of backward spikes of either sign.
        saturated: share of output units that fired at every backward step with one sign, in [0, 1], 0-dim.
    """

    neurons: list[int] = field(default_factory=list)
    forward_rates: Tensor | None = None
    backward_rates: Tensor | None = None
    saturated: Tensor | None = None


class SPIDE(torch.autograd.Function):
    """Firing rates of the last layer as a function of the input and of every parameter that the network uses."""

    @staticmethod
    def forward(ctx, circuit: Circuit, engine: Engine, statistics: SpikeStatistics | None,
                x: Tensor, *tensors: Tensor | None) -> Tensor:
        """Simulate the forward network.

        Args:
            circuit: network and dynamics; its own weights are replaced by ``tensors``.
            engine: what simulates; statistics: filled in if given.
            x: ``(batch, ...)``, or ``(T, batch, ...)`` for event input.
            tensors: ``circuit.tensors``, weight and bias of each connection.

        Returns:
            Firing rates ``(batch, *layer_shape)`` in [0, 1].
        """
        circuit = circuit.bind(tensors)
        result = engine.simulate_forward(circuit, x)
        if statistics is not None:
            statistics.neurons = [count[0].numel() for count in result.counts]
            statistics.forward_rates = torch.stack([count.mean() for count in result.counts]) / circuit.time_step
        if any(ctx.needs_input_grad):
            # Integer counts, not rates: the rounded rate of a neuron that fired at every step need not equal 1.
            masks = [(count > 0) & (count < circuit.time_step) for count in result.counts]
            ctx.circuit = circuit.bind((None,) * len(tensors))  # tensors belong in save_for_backward
            ctx.engine, ctx.statistics, ctx.layers = engine, statistics, len(masks)
            ctx.save_for_backward(x, *masks, *result.rates, *tensors)
        return result.rates[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Simulate the backward network, then form ``dW_l = d_l (x) a_{l-1}`` with ``d_l = m_l beta_l / kappa``."""
        x, *saved = ctx.saved_tensors
        masks, rates, tensors = saved[:ctx.layers], saved[ctx.layers:2 * ctx.layers], saved[2 * ctx.layers:]
        circuit = ctx.circuit.bind(tensors)
        gradient = gradient.contiguous(memory_format=layout(gradient))
        result = ctx.engine.simulate_backward(circuit, gradient, masks)
        if ctx.statistics is not None:
            _record_backward(ctx.statistics, circuit, result.betas[-1], result.fired)

        errors = [mask * beta / circuit.neuron.quantum for mask, beta in zip(masks, result.betas)]
        weights = leak_weights(circuit.time_step, circuit.neuron.leak, like=x) if circuit.event_input else None
        mean_input = x if weights is None else torch.tensordot(weights, x, dims=1)
        wants_x, *wants = ctx.needs_input_grad[3:]
        wanted = [(wants_x and i == 0, *wants[2 * i:2 * i + 2]) for i in range(len(circuit.connections))]
        products = [connection_gradients(*arguments) for arguments in zip(
            circuit.connections, circuit.sources(mean_input, rates), circuit.targets(errors), wanted)]
        x_gradient = products[0][0]
        if x_gradient is not None and weights is not None:
            x_gradient = torch.tensordot(weights, x_gradient, dims=0)
        return None, None, None, x_gradient, *(own for _, *pair in products for own in pair)


def connection_gradients(connection: Connection, source: Tensor, error: Tensor,
                         wanted: tuple[bool, bool, bool]) -> list[Tensor | None]:
    """Gradients of one connection for its input, weight and bias: ``W^T d``, ``d (x) a`` and the sum of ``d``.

    Args:
        connection: the synapse, its tensors and its dropout mask, which scales the gradients too.
        source: pre-synaptic firing rates ``(batch, *input_shape)``.
        error: gradient ``d`` of the loss for the current, ``(batch, *output_shape)``.
        wanted: which of input, weight and bias to differentiate; the others come back as None.
    """
    synapse, weight, bias = connection.synapse, *connection.tensors
    if error.device.type == "cpu" and not error.any():  # no spike came so far; a GPU would have to be waited for
        return [torch.zeros_like(t) if want else None for t, want in zip((source, weight, bias), wanted)]
    error = error if connection.dropout is None else error * connection.dropout
    own = [synapse.transpose(error, weight, connection.input_shape) if wanted[0] else None]
    return own + [*synapse.parameter_gradients(source, weight, bias, error, wanted[1:])]


def _record_backward(statistics: SpikeStatistics, circuit: Circuit, output_beta: Tensor, fired: Tensor) -> None:
    """Fill in the backward half of ``statistics``."""
    spikes_per_rate = len(output_beta) * circuit.time_step_back * torch.tensor(statistics.neurons, device=fired.device)
    statistics.backward_rates = (fired / spikes_per_rate).to(output_beta.dtype)
    # A unit that fires one sign at every step has |beta| = kappa_b up to rounding; one missing spike is a 1/T_B away.
    bound = circuit.couple.quantum * (1 - 1e-5)
    statistics.saturated = (output_beta.abs() > bound).to(output_beta.dtype).mean()
