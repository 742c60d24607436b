"""What a network does in the two simulations of a training step: every spike and every unit that it reaches, counted.

A *synaptic operation* is one spike that a unit sends, times one unit that it reaches through a coupling that is not
zero. Units that dropout cuts off, or whose mask is closed in the backward network, neither send nor receive. A *neuron
update* is one unit in one step; those that received something are counted too: units that a spike reached in the
step, or a value from outside, which is the input or the gradient (biases do not count). *Multiply-accumulates* are
what no spike carries: the input current of constant images, once for all steps; entries of event frames that are
neither 0 nor 1; and the product of rates and errors that makes a weight's gradient.
"""
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from modules import synapses
from modules.circuit import Circuit, Connection
from modules.engines.dense import DENSE
from modules.engines.interface import BackwardResult, ForwardResult
from modules.neurons import LIF, TernaryCouple

PROBES = 64  # units of a synapse of a user's own that are probed together

Watch = Callable[[str, int, Tensor, Tensor], None]


@dataclass
class Counts:
    """What one phase of one batch did; lists hold an entry per layer, dictionaries one per connection, by its name.

    Attributes:
        phase: 'forward' or 'backward'; steps: T or T_B; samples: in the batch.
        spikes: number of spikes of each unit, of either sign, ``(batch, *layer_shape)``.
        received: neuron updates of units that received something, over batch and steps.
        operations: synaptic operations, over batch and steps; products: multiply-accumulates.
        couplings: pairs of units that a spike could have joined, over the batch.
        active: those among them whose sender fired at all.
    """

    phase: str
    steps: int
    samples: int
    spikes: list[Tensor]
    received: list[float]
    operations: dict[str, float] = field(default_factory=dict)
    products: dict[str, float] = field(default_factory=dict)
    couplings: dict[str, float] = field(default_factory=dict)
    active: dict[str, float] = field(default_factory=dict)

    @property
    def updates(self) -> list[int]:
        """All neuron updates, units x steps, over the batch."""
        return [spikes.numel() * self.steps for spikes in self.spikes]

    def per_sample(self) -> dict[str, Any]:
        """Everything as plain numbers, per sample; spikes per layer."""
        layers = {"spikes": [_total(spikes) for spikes in self.spikes], "updates": self.updates,
                  "received": self.received}
        return {"steps": self.steps, **{name: [n / self.samples for n in own] for name, own in layers.items()},
                **{kind: {name: n / self.samples for name, n in getattr(self, kind).items()}
                   for kind in ("operations", "products", "couplings", "active")}}


@dataclass(frozen=True)
class Couplings:
    """Which units of a layer a connection couples to which of another, as a map of numbers of units.

    Attributes:
        arriving: how many of some units of the source (0 or 1 each) reach each unit of the target.
        reached: how many of some units of the target each unit of the source reaches.
    """

    arriving: Callable[[Tensor], Tensor]
    reached: Callable[[Tensor], Tensor]


def couplings(connection: Connection, like: Tensor) -> Couplings:
    """The couplings of a connection that are not zero.

    In a synapse of the library each is one entry of its weight. One of a user's own is probed: its transpose is asked
    what each unit of its target is coupled to, which takes as many products as there are such units, and memory for all
    couplings.

    Args:
        like: a tensor of the type and on the device of the simulation.
    """
    synapse, weight, source, target = (connection.synapse, connection.weight, connection.input_shape,
                                       connection.output_shape)
    known = parametrize.type_before_parametrizations(synapse).__module__ == synapses.__name__
    if known and not {"current", "transpose"} & vars(synapse).keys():
        scale = synapse.window(weight, source, target).scale
        ones = None if weight is None else (weight != 0).float()
        return Couplings(lambda units: (synapse.current(units.float(), ones, None, target) / scale).round_(),
                         lambda units: (synapse.transpose(units.float(), ones, source) / scale).round_())
    matrix = _probe(connection, like)
    return Couplings(lambda units: (matrix @ units.float().flatten(1).T).T.unflatten(1, target),
                     lambda units: (matrix.T @ units.float().flatten(1).T).T.unflatten(1, source))


def _probe(connection: Connection, like: Tensor) -> Tensor:
    """The matrix of couplings, 1 where one is not zero, sparse ``(units of the target, units of the source)``."""
    size, rows = math.prod(connection.output_shape), []
    for units in torch.arange(size, device=like.device).split(PROBES):
        probes = like.new_zeros(len(units), size)
        probes[torch.arange(len(units)), units] = 1
        found = connection.transpose(probes.unflatten(1, connection.output_shape))
        rows.append((found.flatten(1) != 0).float().to_sparse())
    return torch.cat(rows).coalesce()


@dataclass(frozen=True, kw_only=True)
class _Way:
    """How spikes come to a layer: through which connection, from which units (None for all), to which."""

    name: str
    spread: Callable[[Tensor], Tensor]
    senders: Tensor | None
    receivers: Tensor

    def arrivals(self, fired: Tensor) -> Tensor:
        """How many spikes arrive at each unit, of units that fired, bool."""
        return self.spread(fired if self.senders is None else fired & self.senders) * self.receivers


@dataclass(frozen=True)
class _Watched:
    """A neuron or couple whose steps are seen."""

    neuron: LIF | TernaryCouple
    see: Callable[[Tensor, Tensor], None]

    def __getattr__(self, name: str):
        return getattr(self.neuron, name)

    def step_(self, potential: Tensor, current: Tensor, spikes: Tensor, *scratch: Tensor) -> Tensor | None:
        fired = self.neuron.step_(potential, current, spikes, *scratch)
        self.see(potential, spikes)
        return fired


class Recorder:
    """An engine that simulates as the dense one does, and counts what happens.

    Args:
        watch: called after every step of a layer with the phase, the number of the layer, its potentials and its
            spikes, which it must neither change nor keep.

    Attributes:
        forward, backward: of the last simulation of each phase, or None.

    Example:
        >>> network.engine = recorder = Recorder()
        >>> network(x).sum().backward()
        >>> recorder.backward.operations
        {'layers.0': 5311.0, 'feedback': 1880.0}
    """

    name = "recorder"

    def __init__(self, watch: Watch | None = None) -> None:
        self.watch = watch
        self.forward: Counts | None = None
        self.backward: Counts | None = None

    @torch.no_grad()
    def simulate_forward(self, circuit: Circuit, x: Tensor) -> ForwardResult:
        """See :class:`modules.engines.Engine`."""
        frame = x[0] if circuit.event_input else x
        maps, kept = [couplings(c, x) for c in circuit.connections], [_kept(c, frame) for c in circuit.connections]
        counts = self.forward = _nothing("forward", circuit, len(frame), circuit.time_step, x.device)
        ways = [_Way(name=c.name, spread=m.arriving, senders=None, receivers=k)
                for c, m, k in zip(circuit.connections, maps, kept)]
        ring = [ways[-1] if circuit.has_feedback else None, *ways[1:len(circuit.feedforward)]]
        outside = _inputs(circuit, x, ways[0], counts)
        see = self._observer(counts, ring, outside, list(range(len(ring))))
        result = DENSE.simulate_forward(replace(circuit, neuron=_Watched(circuit.neuron, see)), x)
        fired = circuit.sources((x != 0).any(0) if circuit.event_input else x != 0, result.counts)
        for way, source in zip(ways, fired):
            counts.couplings[way.name] = _total(way.arrivals(torch.ones_like(source)))
            counts.active[way.name] = _total(way.arrivals(source != 0))
        return result

    @torch.no_grad()
    def simulate_backward(self, circuit: Circuit, gradient: Tensor, masks: list[Tensor]) -> BackwardResult:
        """See :class:`modules.engines.Engine`."""
        maps = [couplings(c, gradient) for c in circuit.connections]
        counts = self.backward = _nothing("backward", circuit, len(gradient), circuit.time_step_back, gradient.device)
        masks = [mask != 0 for mask in masks]
        gates = [mask & _kept(c, gradient) for c, mask in zip(circuit.connections, circuit.targets(masks))]
        last = masks[-1:] if circuit.has_feedback else []
        ways = [_Way(name=c.name, spread=m.reached, senders=gate, receivers=mask)
                for c, m, gate, mask in zip(circuit.connections[1:], maps[1:], gates[1:], [*masks[:-1], *last])]
        ring = [ways.pop() if circuit.has_feedback else None, *ways[::-1]]
        outside = itertools.repeat((gradient != 0) & masks[-1])
        see = self._observer(counts, ring, outside, list(range(len(ring)))[::-1])
        result = DENSE.simulate_backward(replace(circuit, couple=_Watched(circuit.couple, see)), gradient, masks)
        for way in ring:
            if way is not None:
                counts.couplings[way.name] = _total(way.arrivals(torch.ones_like(way.senders)))
        for connection, own, gate in zip(circuit.connections, maps, gates):
            if any(parameter.requires_grad for parameter in connection.synapse.parameters()):
                sources = torch.ones(len(gradient), *connection.input_shape, device=gradient.device)
                counts.products[connection.name] = _total(own.arriving(sources) * gate)
        return result

    def _observer(self, counts: Counts, ring: list[_Way | None], outside: Iterator[Tensor],
                  order: list[int]) -> Callable[[Tensor, Tensor], None]:
        """Count what comes in at every step of every layer of a ring; the first layer's spikes come a step later.

        Args:
            ring: how spikes come to each layer from the one before it in the ring; outside: which units of the first
                one receive something from outside, per step; order: the numbers of the layers.
        """
        positions, fired = itertools.cycle(range(len(ring))), [None] * len(ring)

        def see(potential: Tensor, spikes: Tensor) -> None:
            position = next(positions)
            way, source, layer = ring[position], fired[position - 1], order[position]
            received = next(outside) if position == 0 else None
            if way is not None and source is not None:
                arrivals = way.arrivals(source)
                counts.operations[way.name] += _total(arrivals)
                received = arrivals > 0 if received is None else received | (arrivals > 0)
            counts.received[layer] += _total(received)
            fired[position] = spikes != 0
            counts.spikes[layer] += fired[position]
            if self.watch is not None:
                self.watch(counts.phase, layer, potential, spikes)

        return see


def _inputs(circuit: Circuit, x: Tensor, way: _Way, counts: Counts) -> Iterator[Tensor]:
    """Which units of layer 0 the input reaches, per step; its operations and products are counted on the way."""
    if not circuit.event_input:
        arrivals = way.arrivals(torch.ones_like(x))
        counts.products[way.name] = _total(arrivals)
        yield from itertools.repeat(arrivals > 0)  # without end
    for frame in x:
        spikes, values = way.arrivals(frame == 1), way.arrivals((frame != 0) & (frame != 1))
        counts.operations[way.name] += _total(spikes)
        counts.products[way.name] = counts.products.get(way.name, 0) + _total(values)
        yield spikes + values > 0


def _nothing(phase: str, circuit: Circuit, samples: int, steps: int, device: torch.device) -> Counts:
    """Counts before the first step; no backward spike goes through the input synapse."""
    shapes = [c.output_shape for c in circuit.feedforward]
    names = [c.name for c in circuit.connections[phase == "backward":]]
    return Counts(phase, steps, samples, spikes=[torch.zeros(samples, *shape, device=device) for shape in shapes],
                  received=[0.0] * len(shapes), operations=dict.fromkeys(names, 0.0))


def _kept(connection: Connection, like: Tensor) -> Tensor:
    """Which units of the target dropout leaves, bool ``(batch, *output_shape)``."""
    if connection.dropout is not None:
        return connection.dropout != 0
    return torch.ones(len(like), *connection.output_shape, dtype=torch.bool, device=like.device)


def _total(numbers: Tensor) -> float:
    """A sum of whole numbers, exact."""
    return numbers.sum(dtype=torch.float64).item()
