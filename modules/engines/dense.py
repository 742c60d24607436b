"""The readable engine: the equations of SPIDE in plain PyTorch, on any device and in any float type.

It multiplies whole spike tensors, most of whose entries are zero, at every step. It is the specification in code that
other engines are tested against. Potentials, spikes and sums are allocated once and updated in place.
"""
import itertools

import torch
from torch import Tensor

from modules.circuit import Circuit, Connection
from modules.engines.interface import BackwardResult, ForwardResult
from modules.neurons import LIBRARY, leak_in, leak_sum
from modules.synapses import layout


class DenseEngine:
    """The engine for everything; see :class:`modules.engines.Engine` for its two functions."""

    name = "dense"

    @torch.no_grad()
    def simulate_forward(self, circuit: Circuit, x: Tensor) -> ForwardResult:
        """The forward network: layers in order, using this step's spikes.

        ``I_0 = W_0 x + b_0 + F s_{N-1}(t-1)``, ``I_l = W_l s_{l-1}(t) + b_l``.
        """
        neuron, feedforward, feedback = circuit.neuron, circuit.feedforward, circuit.feedback
        leak = leak_in(neuron.leak, x.dtype)
        batch = x.shape[1] if circuit.event_input else x.shape[0]
        potentials, spikes, counts = ([_zeros(c, batch, x) for c in feedforward] for _ in range(3))
        traces = counts if leak == 1 else [_zeros(c, batch, x) for c in feedforward]

        # The same tensor at every step: a neuron of a user's own, which may change it, gets a copy.
        given = Tensor.clone if type(neuron) not in LIBRARY else lambda current: current
        outside = itertools.chain.from_iterable(circuit.input_currents(x))
        for input_current in outside if circuit.event_input else itertools.repeat(next(outside), circuit.time_step):
            for layer, connection in enumerate(feedforward):
                if layer > 0:
                    current = connection.current(spikes[layer - 1])
                else:
                    current = input_current + feedback.current(spikes[-1]) if feedback else given(input_current)
                neuron.step_(potentials[layer], current, spikes[layer])
                counts[layer] += spikes[layer]
                if traces is not counts:
                    traces[layer].mul_(leak).add_(spikes[layer])

        norm = leak_sum(circuit.time_step, leak)
        return ForwardResult(rates=[trace / norm for trace in traces], counts=counts)

    @torch.no_grad()
    def simulate_backward(self, circuit: Circuit, gradient: Tensor, masks: list[Tensor]) -> BackwardResult:
        """The backward network: from the last layer to the first.

        ``J_{N-1} = g + F^T (m_0 r_0(t-1)) / kappa``, ``J_{l-1} = W_l^T (m_l r_l(t)) / kappa``. Spikes are held as -1,
        0, 1; the gates carry the factor ``m * kappa_b / kappa``.
        """
        couple, feedforward, feedback = circuit.couple, circuit.feedforward, circuit.feedback
        leak = leak_in(couple.leak, gradient.dtype)
        potentials, spikes, negative, traces = ([_zeros(c, len(gradient), gradient) for c in feedforward]
                                                for _ in range(4))
        gates = circuit.gates([mask.to(gradient.dtype) * (couple.quantum / circuit.neuron.quantum) for mask in masks])
        fired = torch.zeros(len(feedforward), dtype=torch.float64, device=gradient.device)

        given = Tensor.clone if type(couple) not in LIBRARY else lambda current: current  # as in the forward one
        last = len(feedforward) - 1
        for _ in range(circuit.time_step_back):
            for layer in range(last, -1, -1):
                if layer < last:
                    current = feedforward[layer + 1].transpose(spikes[layer + 1] * gates[layer + 1])
                else:
                    current = gradient + feedback.transpose(spikes[0] * gates[-1]) if feedback else given(gradient)
                fired[layer] += couple.step_(potentials[layer], current, spikes[layer], negative[layer])
                if leak != 1:
                    traces[layer] *= leak
                traces[layer] += spikes[layer]

        norm = leak_sum(circuit.time_step_back, leak) / couple.quantum
        return BackwardResult(betas=[trace / norm for trace in traces], fired=fired)


def _zeros(connection: Connection, batch: int, like: Tensor) -> Tensor:
    """Zeros in the shape and memory layout of the layer that ``connection`` ends in."""
    state = like.new_zeros(batch, *connection.output_shape)
    return state.contiguous(memory_format=layout(state))


DENSE = DenseEngine()
