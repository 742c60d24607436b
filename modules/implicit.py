"""Implicit differentiation at the equilibrium of firing rates, as an autograd function: all that SPIDE and IDE share.

The forward network spikes until its firing rates ``a`` stand at ``a = clip(I(a) / kappa, 0, 1)``. With ``g = dL/da`` of
the last layer, and masks ``m`` of the units that neither were silent nor fired at every step, the implicit function
theorem gives ``d = m (g e_{N-1} + J^T d)``, one linear fixed-point equation (IDE, NeurIPS 2021, arXiv 2109.14247). A
backward pass is a way of solving it. What is left for autograd is one local product per synapse: pre-synaptic firing
rate times post-synaptic ``d``.
"""
import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modules.circuit import Circuit, Connection
from modules.engines import Engine
from modules.neurons import leak_weights
from modules.synapses import layout


@dataclass
class SpikeStatistics:
    """What one forward pass and its backward pass did; pass a new one to each call that wants it.

    Entries are filled when the passes run, stay on the device, and are None before that.
    """

    neurons: list[int] = field(default_factory=list)  # of each layer
    forward_rates: Tensor | None = None  # mean number of spikes per neuron and step, in [0, 1], (layers,)
    backward_rates: Tensor | None = None  # the same of backward spikes of either sign
    saturated: Tensor | None = None  # share of output units that fired at every backward step with one sign, 0-dim
    sweeps: Tensor | None = None  # of IDE, which has no backward spikes: how often the ring was swept, 0-dim
    residual: Tensor | None = None  # of IDE: relative change in the last sweep, 0-dim


class NotFiniteError(ValueError):
    """An input, a weight or a gradient that holds numbers that are not finite."""


class ImplicitGradient(torch.autograd.Function):
    """Firing rates of the last layer as a function of the input and of every parameter that the network uses.

    Abstract: a backward pass derives from it and defines :meth:`solve`.
    """

    @classmethod
    def solve(cls, circuit: Circuit, engine: Engine, gradient: Tensor, masks: list[Tensor],
              statistics: SpikeStatistics | None) -> list[Tensor]:
        """Solve ``beta = g e_{N-1} + J^T (m beta)``, ``(batch, *layer_shape)`` for every layer; without autograd.

        Args:
            engine: what simulated the forward pass of the circuit.
            gradient: ``g``, ``(batch, *shape of the last layer)``; masks: per layer, which units pass gradient.
            statistics: to fill in the backward half of, or None.
        """
        raise TypeError(f"{cls.__name__} is abstract: use SPIDE or IDE")

    @classmethod
    def forward(cls, ctx, circuit: Circuit, engine: Engine, statistics: SpikeStatistics | None, x: Tensor,
                *tensors: Tensor | None) -> Tensor:
        """Simulate the forward network; rates of the last layer, ``(batch, *layer_shape)`` in [0, 1].

        Args:
            circuit: network and dynamics; its own weights are replaced by ``tensors``, which are ``circuit.tensors``.
            x: ``(batch, ...)``, or ``(T, batch, ...)`` for event input.

        Raises:
            ValueError: the input or a weight is not finite. On a GPU the rates are not a number then, so that nobody
                has to wait for the device.
        """
        circuit = circuit.with_tensors(tensors)
        doubt = _doubt({"input": x, **circuit.named_tensors})
        result = engine.simulate_forward(circuit, x)
        if statistics is not None:
            statistics.neurons = [count.shape[1:].numel() for count in result.counts]
            statistics.forward_rates = torch.stack([count.mean() for count in result.counts]) / circuit.time_step
        if any(ctx.needs_input_grad):
            masks = circuit.masks(result.counts)
            ctx.circuit = circuit.with_tensors((None,) * len(tensors))  # tensors belong in save_for_backward
            ctx.engine, ctx.statistics, ctx.layers = engine, statistics, len(masks)
            ctx.fixed = [c.fixed for c in circuit.connections]
            ctx.save_for_backward(x, *masks, *result.rates, *tensors)
        return result.rates[-1] if doubt is None else result.rates[-1] + doubt

    @classmethod
    def backward(cls, ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Solve for ``beta``, then form ``dW_l = d_l (x) a_{l-1}`` with ``d_l = m_l beta_l / kappa``.

        A gradient that is not finite is refused as such an input is, and so is ``create_graph``.
        """
        if torch.is_grad_enabled():
            raise ValueError("a gradient of the implicit gradient itself is not known: create_graph=True, as gradient "
                             "penalties and second-order optimizers set it, cannot be honoured")
        x, *saved = ctx.saved_tensors
        masks, rates, tensors = saved[:ctx.layers], saved[ctx.layers:2 * ctx.layers], saved[2 * ctx.layers:]
        circuit = ctx.circuit.with_tensors(tensors)
        for c, fixed in zip(circuit.connections, ctx.fixed):
            if c.fixed != fixed:
                raise ValueError(f"the synapse '{c.name}' has other buffers now than in the forward pass, or modules "
                                 "in another mode: change buffers, train and eval only after the backward pass")
            own = {id(parameter) for parameter in c.synapse.parameters()}
            if any(id(parameter) not in own for parameter in c.further):
                raise ValueError(f"the synapse '{c.name}' has other parameters now than in the forward pass, as after "
                                 "torch.func.functional_call: of those, only weight and bias can be swapped")
        gradient = gradient.contiguous(memory_format=layout(gradient))
        doubt = _doubt({"gradient of the loss for the firing rates": gradient})
        with torch.autocast(x.device.type, enabled=False):
            betas = cls.solve(circuit, ctx.engine, gradient, masks, ctx.statistics)
            if doubt is not None:
                betas = [beta + doubt for beta in betas]
            errors = circuit.gates([mask * beta / circuit.neuron.quantum for mask, beta in zip(masks, betas)])
            mean_input = x
            if circuit.event_input:
                weights = leak_weights(circuit.time_step, circuit.neuron.leak, like=x)
                mean_input = torch.tensordot(weights, x, dims=1)
            wants_x, *wants = ctx.needs_input_grad[3:]
            x_gradient = circuit.input.transpose(errors[0]) if wants_x else None
            if wants_x and circuit.event_input:
                x_gradient = torch.tensordot(weights, x_gradient, dims=0)
            found = [parameter_gradients(*of_one) for of_one in zip(
                circuit.connections, circuit.sources(mean_input, rates), errors, circuit.split(wants))]
        return None, None, None, x_gradient, *itertools.chain.from_iterable(found)


def parameter_gradients(connection: Connection, source: Tensor, error: Tensor,
                        wanted: tuple[bool, ...]) -> list[Tensor | None]:
    """Gradients of one connection for its tensors: ``d (x) a`` for the weight, the sum of ``d`` for the bias.

    Args:
        source: pre-synaptic firing rates ``a``, ``(batch, *input_shape)``.
        error: gradient ``d`` of the loss for the current without dropout, ``(batch, *output_shape)``.
        wanted: which of ``connection.tensors`` to differentiate for; the others come back as None, as do further
            parameters that the current does not use, unless the error is 0.
    """
    if error.device.type == "cpu" and not error.any():  # no spike came so far; a GPU would have to be waited for
        return [torch.zeros_like(t) if want else None for t, want in zip(connection.tensors, wanted)]
    synapse, weight, bias = connection.synapse, connection.weight, connection.bias
    further = [None] * len(wanted[2:])
    found = connection.method("parameter_gradients")(source, weight, bias, error, wanted[:2])
    if any(wanted[2:]):
        trained = [parameter for parameter in connection.further if parameter.requires_grad]
        # Apart from how source, weight and bias came about, which autograd follows from what is returned here.
        given = [t if t is None else t.detach() for t in (source, weight, bias)]
        with torch.enable_grad():
            current = synapse.current(*given, connection.output_shape)
        if current.requires_grad:
            own = dict(zip(trained, torch.autograd.grad(current, trained, error, allow_unused=True)))
            further = map(own.get, connection.further)
    return [*found, *further]


def _doubt(tensors: dict[str, Tensor | None]) -> Tensor | None:
    """Refuse numbers that are not finite, which thresholds would hide: an input of NaN never reaches one.

    On a CPU this is a NotFiniteError with the name of the tensor, or else None. Elsewhere, where a look would have to
    wait for the device, it is 0, or NaN if any number is not finite: to add to a result, 0-dim.
    """
    named = {name: t for name, t in tensors.items() if t is not None}
    if next(iter(named.values())).device.type != "cpu":
        return sum((t * 0).sum() for t in named.values())
    for name, tensor in named.items():
        bad = ~torch.isfinite(tensor)
        if bad.any():
            first = tuple(bad.nonzero()[0].tolist())
            raise NotFiniteError(f"the {name} holds numbers that are not finite ({int(bad.sum())} of {bad.numel()}, "
                                 f"the first, {tensor[first].item()}, at {first})")
    return None
