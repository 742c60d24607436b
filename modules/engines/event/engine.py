"""The event-driven engine for CPUs: the work of both simulations follows the spikes.

It lays a ring of layers, forward or backward, out as tables and arrays (:mod:`modules.engines.event.layout`) and
simulates it in compiled loops. With feedback, all layers take a step before the next one
(:mod:`modules.engines.event.kernels`); without, a layer takes some steps at once before the next layer does
(:mod:`modules.engines.event.chain`). A layer whose source spikes so often that adding rows of weights would cost more
than a product of whole tensors gets that product.
"""
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from modules.circuit import Circuit
from modules.engines.dense import DENSE
from modules.engines.event import compiled, costs, layout
from modules.engines.event.layout import image_of, lay_out, layers_of, to_pixels
from modules.engines.event.team import Share, chunks, team
from modules.engines.interface import ForwardResult
from modules.engines.ring import Outcome, Ring, RingEngine
from modules.engines.routes import to_layer

# Least and most steps between two looks at which layers want a dense product: the first ones follow a guess.
FIRST_SEGMENT, SEGMENT = 1, 32


class EventEngine(RingEngine):
    """The engine for CPUs."""

    name = "event"

    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cpu":
            return f"it is for CPUs, and the network is on '{device.type}'"
        if dtype not in (torch.float32, torch.float64):
            return f"it computes in float32 or float64, not in {dtype}"
        return compiled.obstacle()

    def simulate_forward(self, circuit: Circuit, x: Tensor) -> ForwardResult:
        # Without a synapse whose work could follow spikes, passes over whole frames are faster than visits of pixels.
        alone = circuit.event_input and len(circuit.connections) == 1
        return DENSE.simulate_forward(circuit, x) if alone else super().simulate_forward(circuit, x)

    def simulate(self, ring: Ring, currents: Iterable[Tensor], steps: int, *, like: Tensor, counts: bool) -> Outcome:
        plan = lay_out(ring, like)
        state = layout.State.at_rest(ring, plan, steps, counts)
        weights = (ring.leak ** np.arange(steps - 1, -1, -1.0)).astype(state.traces.dtype)
        course = (Loop if ring.closed else Chain)(ring, plan, state, weights)
        share, step = team(partial(course.tools.of, ring, plan)), 0
        for current in currents:
            pixels = to_pixels(current.flatten(0, 1), plan.layers[0]).unflatten(0, current.shape[:2])
            after = steps if len(current) == 1 and step == 0 else step + len(current)
            course.go(share, range(step, after), pixels)
            step = after
        traces = layers_of(ring, plan, state.traces, like)
        return Outcome(traces=traces, counts=layers_of(ring, plan, state.counts, like) if counts else traces,
                       fired=torch.from_numpy(state.fired.reshape(plan.batch, -1).sum(0)).double())


@dataclass
class Course:
    """The course of one simulation."""

    ring: Ring
    plan: layout.Plan
    state: layout.State
    weights: np.ndarray  # of the spikes of each step in the traces


@dataclass
class Loop(Course):
    """A closed ring: all layers take a step, then the next one."""

    tools = layout.Scratch
    products: frozenset[int] = frozenset()  # the layers that get a dense product
    together: int = 1  # samples that take a step together
    sent: np.ndarray | int = 0  # spikes of each layer so far

    def go(self, share: Share, steps: range, current: Tensor) -> None:
        """Simulate some steps; ``current`` is ``(frames, batch, height, width, padded channels)`` into the first layer,
        one frame for each step or one for all."""
        batch, step = self.plan.batch, steps.start
        while step < steps.stop:
            after = min(steps.stop, step + min(max(step, FIRST_SEGMENT), SEGMENT))
            own = current if len(current) == 1 else current[step - steps.start:after - steps.start]
            share(partial(self._advance, steps=range(step, after), current=own),
                  chunks(batch, costs.TOGETHER if self.products else self.together))
            total = self.state.sent.reshape(batch, -1).sum(0)
            mean = (total - self.sent) / (after - step) / batch
            self.products, self.together = costs.dense_layers(self.ring, mean), costs.companions(self.ring, mean)
            step, self.sent = after, total

    def _advance(self, own: layout.Scratch, samples: range, *, steps: range, current: Tensor) -> None:
        """Advance all layers of some samples by some steps: by one after another, where a layer gets a product."""
        plan, starts = self.plan, sorted({0, *self.products})
        writes = sum(1 << layer - 1 for layer in self.products if layer)
        for part in [range(step, step + 1) for step in steps] if self.products else [steps]:
            frames = current if len(current) == 1 else current[part.start - steps.start:part.stop - steps.start]
            for first, after in zip(starts, [*starts[1:], len(plan.layers)]):
                outside, held = frames, range(plan.batch)
                if first in self.products:
                    chosen = slice(samples.start, samples.stop)
                    product = self.ring.products[first](self._spikes(samples, first, part.start), chosen)
                    outside, held = to_pixels(product, plan.layers[first])[None], samples
                    if first == 0:
                        outside = frames[:, chosen] + outside
                compiled.load("kernels").simulate(
                    plan, self.state, own, (samples.start, samples.stop), self.together, (first, after),
                    (part.start, part.stop), self.weights, outside.view(-1).numpy(), len(outside),
                    (held.start, len(held)), first in self.products, writes)

    def _spikes(self, samples: range, target: int, step: int) -> Tensor:
        """The spikes that arrive at a layer, as a tensor of -1, 0 and 1, ``(samples, *shape of the source)``."""
        plan, source, dense = self.plan, target - 1, torch.from_numpy(self.state.dense)
        L = plan.layers[source]
        image = len(samples), *image_of(L)
        if target:
            size = math.prod(image[1:])
            pixels = dense[plan.batch * int(L["units"]) + samples.start * size:][:len(samples) * size].view(image)
        else:  # they are a step old, from when it was not known that they should be written so
            pixels = dense.new_zeros(image)
            compiled.load("kernels").spread(plan, self.state, len(plan.layers) - 1, (samples.start, samples.stop),
                                            step - 1, pixels.view(-1).numpy())
        return to_layer(pixels, self.ring.shapes[source])


@dataclass
class Chain(Course):
    """A ring that is not closed: a layer takes some steps at once, then the next layer does."""

    tools = layout.Desk

    def go(self, share: Share, steps: range, current: Tensor) -> None:
        """As :meth:`Loop.go`."""
        limits = np.array([np.inf if route is None else costs.break_even(route, moved=0) for route in self.ring.routes])
        share(partial(self._advance, steps=steps, current=current, limits=limits), chunks(self.plan.batch, 1))

    def _advance(self, own: layout.Desk, samples: range, *, steps: range, current: Tensor, limits: np.ndarray) -> None:
        """Advance all layers of some samples by some steps, one sample after another."""
        chain, plan, layers = compiled.load("chain"), self.plan, len(self.plan.layers)
        turns = -(-len(steps) // layout.STEPS)
        length = -(-len(steps) // turns)
        place, end = samples.start * turns * layers, samples.stop * turns * layers
        outside, product = current.view(-1).numpy(), current.new_empty(0)
        while True:
            place = chain.simulate(plan, self.state, own, (place, end), turns, (steps.start, steps.stop), limits,
                                   self.weights, outside, len(current), product.view(-1).numpy())
            if place == end:
                return
            (sample, turn), layer = divmod(place // layers, turns), place % layers
            pixels = current.new_empty((min(length, len(steps) - turn * length), *image_of(plan.layers[layer - 1])))
            chain.unpack(plan, own, layer - 1, len(pixels), pixels.view(-1).numpy())
            spikes = to_layer(pixels, self.ring.shapes[layer - 1])
            product = to_pixels(self.ring.products[layer](spikes, slice(sample, sample + 1)), plan.layers[layer])
