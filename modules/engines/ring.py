"""A circuit as a ring of layers, the one form in which the faster engines simulate both phases, and their one front.

A forward ring is layer 0 to N-1, closed by the feedback synapse; a backward ring is layer N-1 to 0, closed by the
transpose of the feedback synapse. In each step, a layer takes the spikes that the layer before it fired in this step;
the first one takes those that the last one fired in the step before, and a current from outside. Factors that are the
same for all spikes of a synapse, such as ``kappa_b / kappa``, are in the weights.
"""
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.circuit import Circuit, Connection
from modules.engines import routes
from modules.engines.dense import DENSE
from modules.engines.interface import BackwardResult, ForwardResult
from modules.engines.routes import Route, route
from modules.neurons import IF, LIF, TernaryCouple, leak_in, leak_sum
from modules.notices import warn_once
from modules.synapses import Shape


@dataclass(frozen=True, kw_only=True)
class Ring:
    """A circuit in one direction: layers in the order of simulation, each with the route that leads into it.

    Attributes:
        shapes: of the layers. Lists hold an entry per layer; the first layer's route is the closing one, from the last.
        routes: or None; products: the same maps of whole tensors, or None: from the spikes of a slice of the batch, and
            that slice, to currents.
        biases: ``(channels,)``, or None; gates: bool ``(batch, *shape)``, which units send spikes on.
        keep: bool, which units of the first layer the closing route reaches, or None for all.
        upper, lower, quantum, leak: of the neurons, the leak as the number format holds it.
    """

    shapes: list[Shape]
    routes: list[Route | None]
    products: list[Callable[[Tensor, slice], Tensor] | None]
    biases: list[Tensor | None]
    gates: list[Tensor]
    keep: Tensor | None
    upper: float
    lower: float
    quantum: float
    leak: float

    @property
    def ternary(self) -> bool:
        """Whether neurons fire spikes of both signs, as those of the backward network do."""
        return self.lower > -float("inf")

    @property
    def closed(self) -> bool:
        """Whether the last layer leads back to the first; layers that form a chain may take many steps in turn."""
        return self.routes[0] is not None


@dataclass(frozen=True)
class Outcome:
    """What a simulation found, per layer of the ring.

    Attributes:
        traces: sums of ``leak^(T-t) s(t)``; counts: numbers of spikes, the traces themselves unless asked for.
        fired: numbers of spikes over batch and steps, float64 ``(layers,)``.
    """

    traces: list[Tensor]
    counts: list[Tensor]
    fired: Tensor


class RingEngine(ABC):
    """An engine that simulates rings: IF and LIF neurons, ternary couples, and synapses that are windows.

    Whatever it cannot simulate exactly it leaves to the dense engine, with one warning that names the reason.
    """

    name: str

    @abstractmethod
    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why this engine cannot run at all on ``device`` in numbers of ``dtype``, in words, or None."""

    @abstractmethod
    def simulate(self, ring: Ring, currents: Iterable[Tensor], steps: int, *, like: Tensor, counts: bool) -> Outcome:
        """Simulate ``steps`` steps of a ring.

        Args:
            currents: into the first layer, tensors ``(frames, batch, *shape)`` for successive steps, or one with a
                single frame for all.
            like: a tensor of the type and on the device to compute in; counts: count spikes besides the traces.
        """

    @torch.no_grad()
    def simulate_forward(self, circuit: Circuit, x: Tensor) -> ForwardResult:
        """The forward network, see :class:`modules.engines.Engine`."""
        if not self._takes(circuit, x):
            return DENSE.simulate_forward(circuit, x)
        circuit, leak = circuit.detached(), leak_in(circuit.neuron.leak, x.dtype)
        ring = forward_ring(circuit, leak, x.shape[1] if circuit.event_input else x.shape[0], x.device)
        run = self.simulate(ring, _frames(circuit, x), circuit.time_step, like=x, counts=leak != 1)
        norm = leak_sum(circuit.time_step, leak)
        # A unit that dropout cut off may have fired, but nobody heard it.
        traces, counts = ([t if k is None else t * k for t, k in zip(tensors, _kept_units(circuit))]
                          for tensors in (run.traces, run.counts))
        return ForwardResult(rates=[trace / norm for trace in traces], counts=counts)

    @torch.no_grad()
    def simulate_backward(self, circuit: Circuit, gradient: Tensor, masks: list[Tensor]) -> BackwardResult:
        """The backward network, see :class:`modules.engines.Engine`."""
        if not self._takes(circuit, gradient):
            return DENSE.simulate_backward(circuit, gradient, masks)
        circuit, leak = circuit.detached(), leak_in(circuit.couple.leak, gradient.dtype)
        run = self.simulate(backward_ring(circuit, leak, masks), [gradient[None]], circuit.time_step_back,
                            like=gradient, counts=False)
        norm = leak_sum(circuit.time_step_back, leak) / circuit.couple.quantum
        return BackwardResult(betas=[trace / norm for trace in run.traces[::-1]], fired=run.fired.flip(0))

    def _takes(self, circuit: Circuit, x: Tensor) -> bool:
        """Whether this circuit can be simulated here; warns once for each reason why not."""
        reason = self.obstacle(x.device, x.dtype) or obstacle(circuit)
        if reason is not None:
            warn_once(self.name, reason, sentence=f"the {self.name} engine leaves this network to the dense engine: "
                                                  f"{reason}")
        return reason is None and x.numel() > 0  # nothing is to be simulated of an empty batch


def obstacle(circuit: Circuit) -> str | None:
    """What in a circuit no ring engine simulates, in words, or None: neurons and synapses that it does not know."""
    for neuron, known in ((circuit.neuron, (IF, LIF)), (circuit.couple, (TernaryCouple,))):
        if type(neuron) not in known:
            return f"it does not know neurons of type {type(neuron).__name__}"
    reasons = (routes.obstacle(connection) for connection in circuit.connections[1:])
    return next((reason for reason in reasons if reason), None)


def forward_ring(circuit: Circuit, leak: float, batch: int, device: torch.device) -> Ring:
    """Layers 0 to N-1, closed by the feedback synapse; ``leak`` as the number format holds it."""
    neuron = circuit.neuron
    into = [circuit.feedback, *circuit.feedforward[1:]]
    gates = [_all(c, batch, device) if k is None else k for c, k in zip(circuit.feedforward, _kept_units(circuit))]
    if not circuit.has_feedback:
        gates[-1] = torch.zeros_like(gates[-1])
    return Ring(
        shapes=[c.output_shape for c in circuit.feedforward],
        routes=[c and route(c, c.dropout_scale) for c in into],
        products=[c and functools.partial(_forward_product, c) for c in into],
        biases=[None if c is None or c.bias is None else c.bias * c.dropout_scale for c in into], gates=gates,
        keep=circuit.feedback and _kept(circuit.feedback),
        upper=neuron.v_threshold, lower=-float("inf"), quantum=neuron.quantum, leak=leak)


def backward_ring(circuit: Circuit, leak: float, masks: list[Tensor]) -> Ring:
    """Layers N-1 to 0, closed by the transpose of the feedback synapse; spikes carry ``kappa_b / kappa``."""
    couple, factor = circuit.couple, circuit.couple.quantum / circuit.neuron.quantum
    out_of = [circuit.feedback, *circuit.feedforward[1:]]  # the connection whose transpose leads out of each layer
    scales = [c and factor * c.dropout_scale for c in out_of]
    gates = [torch.zeros_like(m) if c is None else m if c.dropout is None else m & _kept(c)
             for c, m in zip(out_of, masks)]
    into = [0, *range(len(masks) - 1, 0, -1)]  # in ring order, the layer whose spikes arrive
    return Ring(
        shapes=[c.output_shape for c in circuit.feedforward[::-1]],
        routes=[out_of[i] and route(out_of[i]).reverse(scales[i]) for i in into],
        products=[out_of[i] and functools.partial(_backward_product, out_of[i], scales[i]) for i in into],
        biases=[None] * len(masks), gates=gates[::-1], keep=None,
        upper=couple.v_threshold, lower=-couple.v_threshold, quantum=couple.quantum, leak=leak)


def _kept(connection: Connection) -> Tensor | None:
    """Which units of the target of a connection are not dropped, bool ``(batch, *output_shape)``; None for all."""
    return None if connection.dropout is None else connection.dropout != 0


def _kept_units(circuit: Circuit) -> list[Tensor | None]:
    """Which units of each layer are not cut off; in layer 0, which may have two synapses, masks are in the currents."""
    return [None, *(_kept(c) for c in circuit.feedforward[1:])]


def _all(connection: Connection, batch: int, device: torch.device) -> Tensor:
    """All units of the target of a connection, bool ``(batch, *output_shape)``."""
    return torch.ones((batch, *connection.output_shape), dtype=torch.bool, device=device)


def _forward_product(connection: Connection, spikes: Tensor, samples: slice) -> Tensor:
    """What a forward route carries, the bias left out."""
    current = connection.synapse.current(spikes, connection.weight, None, connection.output_shape)
    return current if connection.dropout is None else current * connection.dropout[samples]


def _backward_product(connection: Connection, scale: float, spikes: Tensor, samples: slice) -> Tensor:
    """What a backward route carries; ``spikes`` are overwritten."""
    return connection.transpose(spikes.mul_(scale))


def _frames(circuit: Circuit, x: Tensor) -> Iterable[Tensor]:
    """Currents into layer 0, ``(frames, batch, ...)``: a constant one, or all steps in groups."""
    return circuit.frames_of_currents(x) if circuit.event_input else [circuit.input.current(x)[None]]
