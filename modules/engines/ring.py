"""A circuit as a ring of layers, the one form in which the faster engines simulate both phases, and their one front.

In each step, a layer takes the spikes that the layer before it fired in this step; the first one takes those that the
last one fired in the step before, and a current from outside. Factors that are the same for all spikes of a synapse,
such as ``kappa_b / kappa``, are in the weights.
"""
import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modules.circuit import Circuit, Connection
from modules.engines import routes
from modules.engines.dense import DENSE
from modules.engines.interface import BackwardResult, ForwardResult
from modules.engines.routes import Route, route
from modules.neurons import LIBRARY, LIF, TernaryCouple, leak_in, leak_sum
from modules.notices import warn_once
from modules.synapses import Shape


@dataclass(frozen=True, kw_only=True)
class Ring:
    """A circuit in one direction: layers in the order of simulation, each with the route that leads into it.

    Lists hold an entry per layer; the first layer's route is the closing one, from the last.
    """

    shapes: list[Shape]
    routes: list[Route | None]
    # The same maps of whole tensors: from the spikes of a slice of the batch, and that slice, to currents.
    products: list[Callable[[Tensor, slice], Tensor] | None]
    biases: list[Tensor | None]  # (channels,)
    gates: list[Tensor]  # bool (batch, *shape), which units send spikes on
    keep: Tensor | None  # bool, which units of the first layer the closing route reaches, or None for all
    upper: float  # thresholds of the neurons
    lower: float
    quantum: float
    leak: float  # as the number format holds it

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
    """What a simulation found, per layer of the ring."""

    traces: list[Tensor]  # sums of leak^(T-t) s(t)
    counts: list[Tensor]  # numbers of spikes, the traces themselves unless asked for
    fired: Tensor  # numbers of spikes over batch and steps, float64 (layers,)


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
        if not self._takes(circuit, x):
            return DENSE.simulate_forward(circuit, x)
        circuit, leak = circuit.detached(), leak_in(circuit.neuron.leak, x.dtype)
        ring = forward_ring(circuit, leak, x.shape[1] if circuit.event_input else x.shape[0], x.device)
        run = self.simulate(ring, circuit.input_currents(x), circuit.time_step, like=x, counts=leak != 1)
        norm = leak_sum(circuit.time_step, leak)
        # A unit that dropout cut off may have fired, but nobody heard it.
        traces, counts = ([t if k is None else t * k for t, k in zip(tensors, _kept_units(circuit))]
                          for tensors in (run.traces, run.counts))
        return ForwardResult(rates=[trace / norm for trace in traces], counts=counts)

    @torch.no_grad()
    def simulate_backward(self, circuit: Circuit, gradient: Tensor, masks: list[Tensor]) -> BackwardResult:
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


@functools.cache
def missing(library: str, module: str) -> str | None:
    """Why a module that needs a library cannot be had, in words, or None; both are imported here, at first use."""
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a broken installation raises
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == library:
            return f"{library} is not installed"
        return f"{library} is installed, but cannot be imported ({type(error).__name__}: {error})"
    return None


def obstacle(circuit: Circuit) -> str | None:
    """What in a circuit no ring engine simulates, in words, or None: neurons and synapses that it does not know."""
    for neuron in (circuit.neuron, circuit.couple):
        if type(neuron) not in LIBRARY:
            return f"it does not know neurons of type {type(neuron).__name__}"
        if "step_" in vars(neuron) or not _as_numbered(neuron, type(neuron).step_):
            return f"a step of {type(neuron).__name__} is not what its numbers say"
    for c in circuit.feedforward:
        if len(c.output_shape) not in (1, 3):
            return f"it does not know layers of {len(c.output_shape)} dimensions, as the one after synapse '{c.name}'"
    return next(filter(None, map(routes.obstacle, circuit.connections[1:])), None)


@functools.cache
def _as_numbered(neuron: LIF | TernaryCouple, _: Callable) -> bool:
    """Whether a neuron takes the step of its four numbers, on potentials about its thresholds: loops that write this
    step out do not follow whoever edits ``step_``. Tried again if the method, which is not used here, was replaced."""
    grid = torch.linspace(-2, 2, 33, dtype=torch.float64) * neuron.v_threshold
    potential, current = grid.repeat_interleave(len(grid)), grid.repeat(len(grid))
    total, own, spikes = potential + current, potential.clone(), torch.empty_like(potential)
    expected = (total >= neuron.v_threshold).double()
    if isinstance(neuron, TernaryCouple):
        expected -= (total <= -neuron.v_threshold).double()
        neuron.step_(own, current.clone(), spikes, torch.empty_like(spikes))
    else:
        neuron.step_(own, current.clone(), spikes)
    return torch.equal(spikes, expected) and torch.allclose(own, neuron.leak * (total - neuron.quantum * expected))


def forward_ring(circuit: Circuit, leak: float, batch: int, device: torch.device) -> Ring:
    """Layers 0 to N-1, closed by the feedback synapse; ``leak`` as the number format holds it."""
    neuron, feedback = circuit.neuron, circuit.feedback
    into = [feedback, *circuit.feedforward[1:]]
    gates = [torch.ones((), dtype=torch.bool, device=device).expand(batch, *c.output_shape) if k is None else k
             for c, k in zip(circuit.feedforward, _kept_units(circuit))]
    if feedback is None:
        gates[-1] = torch.zeros_like(gates[-1])
    return Ring(
        shapes=[c.output_shape for c in circuit.feedforward],
        routes=[c and route(c, c.dropout_scale) for c in into],
        products=[c and replace(c, bias=None).current for c in into],
        biases=[None if c is None or c.bias is None else c.bias * c.dropout_scale for c in into], gates=gates,
        keep=feedback and _kept(feedback),
        upper=neuron.v_threshold, lower=-float("inf"), quantum=neuron.quantum, leak=leak)


def backward_ring(circuit: Circuit, leak: float, masks: list[Tensor]) -> Ring:
    """Layers N-1 to 0, closed by the transpose of the feedback synapse; spikes carry ``kappa_b / kappa``."""
    couple, factor = circuit.couple, circuit.couple.quantum / circuit.neuron.quantum
    out_of = [circuit.feedback, *circuit.feedforward[1:]]  # the connection whose transpose leads out of each layer
    gates = [torch.zeros_like(m) if c is None else m if c.dropout is None else m & _kept(c)
             for c, m in zip(out_of, masks)]
    into = [out_of[0], *out_of[:0:-1]]  # in ring order, the one that leads into each layer
    scales = [c and factor * c.dropout_scale for c in into]
    return Ring(
        shapes=[c.output_shape for c in circuit.feedforward[::-1]],
        routes=[c and route(c).reverse(scale) for c, scale in zip(into, scales)],
        products=[c and functools.partial(_product_back, c, scale) for c, scale in zip(into, scales)],
        biases=[None] * len(masks), gates=gates[::-1], keep=None,
        upper=couple.v_threshold, lower=-couple.v_threshold, quantum=couple.quantum, leak=leak)


def _kept(connection: Connection) -> Tensor | None:
    """Which units of the target of a connection are not dropped, bool ``(batch, *output_shape)``; None for all."""
    return None if connection.dropout is None else connection.dropout != 0


def _kept_units(circuit: Circuit) -> list[Tensor | None]:
    """Which units of each layer are not cut off; in layer 0, which may have two synapses, masks are in the currents."""
    return [None, *map(_kept, circuit.feedforward[1:])]


def _product_back(connection: Connection, scale: float, spikes: Tensor, samples: slice) -> Tensor:
    """What a backward route carries; ``spikes`` are overwritten."""
    return connection.transpose(spikes.mul_(scale))
