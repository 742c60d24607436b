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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from modules import synapses
from modules.circuit import Circuit, Connection
from modules.engines.dense import DenseEngine
from modules.engines.interface import BackwardResult, ForwardResult
from modules.neurons import LIF, TernaryCouple

PROBES = 64  # units of a synapse of a user's own that are probed together

Watch = Callable[[str, int, Tensor, Tensor], None]
Arrivals = Callable[[Tensor], Tensor]  # how many spikes arrive at each unit, of those units of the source that fired
Way = tuple[str, Arrivals]  # how spikes come to a layer: by which connection


@dataclass
class Counts:
    """What one phase of one batch did; numbers are over batch and steps unless said."""

    phase: str  # 'forward' or 'backward'
    steps: int  # T or T_B
    samples: int  # in the batch
    spikes: list[Tensor]  # per layer, number of spikes of each unit, of either sign, (batch, *layer_shape)
    received: list[float]  # per layer, neuron updates of units that received something
    operations: Counter[str] = field(default_factory=Counter)  # by connection, synaptic operations
    products: Counter[str] = field(default_factory=Counter)  # by connection, multiply-accumulates
    couplings: Counter[str] = field(default_factory=Counter)  # by connection, pairs that spikes of one step could join

    @property
    def updates(self) -> list[int]:
        """All neuron updates, units x steps, over the batch."""
        return [spikes.numel() * self.steps for spikes in self.spikes]

    def per_sample(self) -> dict[str, Any]:
        """Everything as plain numbers, per sample; spikes per layer."""
        layers = {"spikes": [_total(spikes) for spikes in self.spikes], "updates": self.updates,
                  "received": self.received}
        return {"steps": self.steps, **{kind: [n / self.samples for n in own] for kind, own in layers.items()},
                **{kind: {name: n / self.samples for name, n in getattr(self, kind).items()}
                   for kind in ("operations", "products", "couplings")}}


def couplings(connection: Connection, like: Tensor) -> tuple[Arrivals, Arrivals]:
    """By couplings that are not zero: how many of some units of the source (0 or 1 each) reach each unit of the target;
    and how many of some units of the target each unit of the source reaches.

    In a synapse of the library each coupling is one entry of its weight. One of a user's own is probed: its transpose
    is asked what each unit of its target is coupled to, which takes as many products as there are such units, and
    memory for all couplings. ``like``: a tensor of the type and on the device of the simulation.
    """
    synapse, weight, source, target = (connection.synapse, connection.weight, connection.input_shape,
                                       connection.output_shape)
    known = parametrize.type_before_parametrizations(synapse).__module__ == synapses.__name__
    if known and not {"current", "transpose"} & vars(synapse).keys():
        scale = synapse.window(weight, source, target).scale
        ones = None if weight is None else (weight != 0).float()
        return (lambda units: (synapse.current(units.float(), ones, None, target) / scale).round_(),
                lambda units: (synapse.transpose(units.float(), ones, source) / scale).round_())
    rows = []
    for units in torch.arange(math.prod(target), device=like.device).split(PROBES):
        probes = like.new_zeros(len(units), math.prod(target)).scatter_(1, units[:, None], 1)
        found = connection.transpose(probes.unflatten(1, target))
        rows.append((found.flatten(1) != 0).float().to_sparse())
    matrix = torch.cat(rows).coalesce()  # (units of the target, units of the source)
    return (lambda units: (matrix @ units.float().flatten(1).T).T.unflatten(1, target),
            lambda units: (matrix.T @ units.float().flatten(1).T).T.unflatten(1, source))


class _Counting:
    """A neuron or couple that counts what comes in at every step of every layer of a ring, and what goes out.

    Args:
        ring: how spikes come to each layer from the one before it in the ring, or None; order: the layers' numbers.
        outside: which units of the ring's first layer receive something from outside, per step.
    """

    def __init__(self, neuron: LIF | TernaryCouple, counts: Counts, ring: list[Way | None], outside: Iterator[Tensor],
                 order: Sequence[int], watch: Watch | None) -> None:
        self.neuron, self.counts, self.ring, self.outside, self.watch = neuron, counts, ring, outside, watch
        self.layers = itertools.cycle(enumerate(order))
        self.fired: list[Tensor | None] = [None] * len(ring)  # those of the last layer reach the first one step later

    def __getattr__(self, name: str) -> Any:
        return getattr(self.neuron, name)

    def step_(self, potential: Tensor, current: Tensor, spikes: Tensor, *scratch: Tensor) -> Tensor | None:
        result = self.neuron.step_(potential, current, spikes, *scratch)
        counts, (position, layer) = self.counts, next(self.layers)
        received = next(self.outside) if position == 0 else torch.zeros_like(spikes, dtype=torch.bool)
        if self.ring[position] is not None and self.fired[position - 1] is not None:
            name, arrivals = self.ring[position]
            arriving = arrivals(self.fired[position - 1])
            counts.operations[name] += _total(arriving)
            received = received | (arriving > 0)
        counts.received[layer] += _total(received)
        self.fired[position] = spikes != 0
        counts.spikes[layer] = counts.spikes[layer] + self.fired[position]
        if self.watch is not None:
            self.watch(counts.phase, layer, potential, spikes)
        return result


class Recorder(DenseEngine):
    """The dense engine, counting what happens.

    Args:
        watch: called after every step of a layer with the phase, the number of the layer, its potentials and its
            spikes, which it must neither change nor keep.

    Attributes:
        forward, backward: :class:`Counts` of the last simulation of each phase, or None.

    Example:
        >>> network.engine = recorder = Recorder()
        >>> network(x).sum().backward()
        >>> recorder.backward.operations
        Counter({'layers.0': 5311.0, 'feedback': 1880.0})
    """

    name = "recorder"

    def __init__(self, watch: Watch | None = None) -> None:
        self.watch = watch
        self.forward: Counts | None = None
        self.backward: Counts | None = None

    @torch.no_grad()
    def simulate_forward(self, circuit: Circuit, x: Tensor) -> ForwardResult:
        samples, n = x.shape[int(circuit.event_input)], len(circuit.feedforward)
        counts = self.forward = Counts("forward", circuit.time_step, samples, [x.new_zeros(())] * n, [0.0] * n)
        ways = []
        kept = circuit.gates([x.new_ones(samples, *c.output_shape) for c in circuit.feedforward])
        for c, gate in zip(circuit.connections, kept):
            ways.append((c.name, _arrivals(couplings(c, x)[0], True, gate != 0)))
            counts.couplings[c.name] = _total(ways[-1][1](x.new_ones(samples, *c.input_shape)))
        ring = [ways[-1] if circuit.has_feedback else None, *ways[1:n]]
        neuron = _Counting(circuit.neuron, counts, ring, _inputs(circuit, x, ways[0], counts), range(n), self.watch)
        return super().simulate_forward(replace(circuit, neuron=neuron), x)

    @torch.no_grad()
    def simulate_backward(self, circuit: Circuit, gradient: Tensor, masks: list[Tensor]) -> BackwardResult:
        samples, n = len(gradient), len(masks)
        counts = self.backward = Counts("backward", circuit.time_step_back, samples, [gradient.new_zeros(())] * n,
                                        [0.0] * n)
        masks, ways = [mask != 0 for mask in masks], []
        gates = circuit.gates([mask.to(gradient.dtype) for mask in masks])
        for c, gate, receives in zip(circuit.connections, gates, circuit.sources(None, masks)):
            (arriving, reached), senders = couplings(c, gradient), gate != 0
            if any(p.requires_grad and "bias" not in name.split(".") for name, p in c.synapse.named_parameters()):
                counts.products[c.name] = _total(arriving(gradient.new_ones(samples, *c.input_shape)) * senders)
            if c is not circuit.input:
                ways.append((c.name, _arrivals(reached, senders, receives)))
                counts.couplings[c.name] = _total(ways[-1][1](senders))
        ring = [ways.pop() if circuit.has_feedback else None, *ways[::-1]]
        driven = itertools.repeat((gradient != 0) & masks[-1])
        couple = _Counting(circuit.couple, counts, ring, driven, range(n)[::-1], self.watch)
        return super().simulate_backward(replace(circuit, couple=couple), gradient, masks)


def _arrivals(spread: Arrivals, senders: Tensor | bool, receivers: Tensor) -> Arrivals:
    """Of couplings, those from some units to some."""
    return lambda fired: spread((fired != 0) & senders) * receivers


def _inputs(circuit: Circuit, x: Tensor, way: Way, counts: Counts) -> Iterator[Tensor]:
    """Which units of layer 0 the input reaches, per step; its operations and products are counted on the way."""
    name, arrivals = way
    if not circuit.event_input:
        reached = arrivals(torch.ones_like(x))
        counts.products[name] = _total(reached)
        yield from itertools.repeat(reached > 0)  # without end
    for frame in x:
        spikes, values = arrivals(frame == 1), arrivals((frame != 0) & (frame != 1))
        counts.operations[name] += _total(spikes)
        counts.products[name] += _total(values)
        yield spikes + values > 0


def _total(numbers: Tensor) -> float:
    """A sum of whole numbers, exact."""
    return numbers.sum(dtype=torch.float64).item()
