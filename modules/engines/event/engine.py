"""The event-driven engine for CPUs: the work of both simulations follows the spikes.

It lays a ring of layers, forward or backward, out as tables and arrays (:mod:`modules.engines.event.layout`) and
simulates it in compiled loops. With feedback, all layers take a step before the next one
(:mod:`modules.engines.event.kernels`); without, a layer takes some steps at once before the next layer does
(:mod:`modules.engines.event.chain`). A layer whose source spikes so often that adding rows of weights would cost more
than a product of whole tensors gets that product.
"""
import math
from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from modules.engines.event import compiled, costs
from modules.engines.event.layout import (
    HEIGHT,
    PADDED,
    STEPS,
    UNITS,
    WIDTH,
    Desk,
    Plan,
    Scratch,
    State,
    at_rest,
    desk,
    lay_out,
    layers_of,
    scratch,
    to_layer,
    to_pixels,
)
from modules.engines.event.team import Team, chunks
from modules.engines.ring import Outcome, Ring, RingEngine

# Least and most steps between two looks at which layers want a dense product: the first ones follow a guess.
FIRST_SEGMENT, SEGMENT = 1, 32


class EventEngine(RingEngine):
    """The engine for CPUs."""

    name = "event"

    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """See :class:`modules.engines.ring.RingEngine`."""
        if device.type != "cpu":
            return f"it is for CPUs, and the network is on '{device.type}'"
        if dtype not in (torch.float32, torch.float64):
            return f"it computes in float32 or float64, not in {dtype}"
        return compiled.obstacle()

    def simulate(self, ring: Ring, currents: Iterable[Tensor], steps: int, *, like: Tensor, counts: bool) -> Outcome:
        """See :class:`modules.engines.ring.RingEngine`."""
        batch = len(ring.gates[0])
        plan = lay_out(ring, like)
        state = at_rest(ring, plan, steps, counts)
        weights = (ring.leak ** np.arange(steps - 1, -1, -1.0)).astype(state.traces.dtype)
        course = (Loop if ring.closed else Chain)(ring, plan, state, weights)
        step = 0
        with Team(course.room) as team:
            for current in currents:
                static = len(current) == 1 and step == 0
                pixels = to_pixels(current.flatten(0, 1), plan.layers[0]).unflatten(0, current.shape[:2])
                after = steps if static else step + len(current)
                course.go(team, range(step, after), pixels)
                step = after
        traces = layers_of(ring, plan, state.traces, like)
        numbers = layers_of(ring, plan, state.counts, like) if counts else traces
        fired = torch.from_numpy(state.fired.reshape(batch, len(ring.shapes)).sum(0)).double()
        return Outcome(traces=traces, counts=numbers, fired=fired)


class Loop:
    """A closed ring: all layers take a step, then the next one.

    Args:
        weights: of the spikes of each step in the traces.
    """

    def __init__(self, ring: Ring, plan: Plan, state: State, weights: np.ndarray) -> None:
        self.ring, self.plan, self.state, self.weights = ring, plan, state, weights
        self.products: frozenset[int] = frozenset()  # the layers that get a dense product
        self.together = 1  # samples that take a step together
        self.sent = np.zeros(len(ring.shapes))

    def room(self) -> Scratch:
        """What a thread needs."""
        return scratch(self.ring, self.plan, min(self.plan.batch, costs.TOGETHER))

    def go(self, team: Team, steps: range, current: Tensor) -> None:
        """Simulate some steps; ``current`` is ``(frames, batch, height, width, padded channels)`` into the first layer,
        one frame for each step or one for all."""
        batch, step = self.plan.batch, steps.start
        while step < steps.stop:
            after = min(steps.stop, step + min(max(step, FIRST_SEGMENT), SEGMENT))
            own = current if len(current) == 1 else current[step - steps.start:after - steps.start]
            team.share(partial(self._advance, steps=range(step, after), current=own),
                       chunks(batch, costs.TOGETHER if self.products else self.together))
            total = self.state.sent.reshape(batch, len(self.sent)).sum(0)
            mean = (total - self.sent) / (after - step) / max(batch, 1)
            self.products, self.together = costs.dense_layers(self.ring, mean), costs.companions(self.ring, mean)
            step, self.sent = after, total

    def _advance(self, tools: Scratch, samples: range, *, steps: range, current: Tensor) -> None:
        """Advance all layers of some samples by some steps."""
        ring, plan, products = self.ring, self.plan, self.products
        starts = sorted({0, *products})
        writes = sum(1 << layer - 1 for layer in products if layer)

        def run(steps: range, layers: tuple[int, int], outside: Tensor, held: range) -> None:
            compiled.load("kernels").simulate(
                plan, self.state, tools, (samples.start, samples.stop), self.together, layers,
                (steps.start, steps.stop), self.weights, outside.view(-1).numpy(), len(outside),
                (held.start, len(held)), layers[0] in products, writes)

        slice_, none = slice(samples.start, samples.stop), current.new_empty(0)
        if not products:
            return run(steps, (0, len(ring.shapes)), current, range(current.shape[1]))
        for step in steps:
            for first, after in zip(starts, [*starts[1:], len(ring.shapes)]):
                frame = step - steps.start if len(current) > 1 else 0
                outside = current[frame:frame + 1, slice_] if first == 0 else none
                if first in products:
                    product = ring.products[first](self._spikes(samples, first, step), slice_)
                    arriving = to_pixels(product, plan.layers[first])[None]
                    outside = outside + arriving if first == 0 else arriving
                run(range(step, step + 1), (first, after), outside, samples)

    def _spikes(self, samples: range, target: int, step: int) -> Tensor:
        """The spikes that arrive at a layer, as a tensor of -1, 0 and 1, ``(samples, *shape of the source)``."""
        plan, state, source = self.plan, self.state, (target - 1) % len(self.ring.shapes)
        image = plan.layers[source, [HEIGHT, WIDTH, PADDED]].tolist()
        if target:
            begin = plan.batch * int(plan.layers[source, UNITS]) + samples.start * math.prod(image)
            pixels = torch.from_numpy(state.dense)[begin:begin + len(samples) * math.prod(image)].view(-1, *image)
        else:  # they are a step old, from when it was not known that they should be written so
            pixels = torch.zeros((len(samples), *image), dtype=torch.from_numpy(state.dense).dtype)
            compiled.load("kernels").spread(plan, state, source, (samples.start, samples.stop), step - 1,
                                    pixels.view(-1).numpy())
        return to_layer(pixels, self.ring.shapes[source])


class Chain:
    """A ring that is not closed: a layer takes some steps at once, then the next layer does; arguments as of
    :class:`Loop`."""

    def __init__(self, ring: Ring, plan: Plan, state: State, weights: np.ndarray) -> None:
        self.ring, self.plan, self.state, self.weights = ring, plan, state, weights
        self.limits = np.array([np.inf if route is None else costs.break_even(route) for route in ring.routes])

    def room(self) -> Desk:
        """What a thread needs."""
        return desk(self.plan)

    def go(self, team: Team, steps: range, current: Tensor) -> None:
        """As :meth:`Loop.go`."""
        team.share(partial(self._advance, steps=steps, current=current), chunks(self.plan.batch, 1))

    def _advance(self, own: Desk, samples: range, *, steps: range, current: Tensor) -> None:
        """Advance all layers of some samples by some steps, one sample after another."""
        chain, plan, layers = compiled.load("chain"), self.plan, len(self.ring.shapes)
        turns = -(-len(steps) // STEPS)
        place, end = samples.start * turns * layers, samples.stop * turns * layers
        outside, product = current.view(-1).numpy(), current.new_empty(0)
        while True:
            place = chain.simulate(plan, self.state, own, (place, end), turns, (steps.start, steps.stop), self.limits,
                                   self.weights, outside, len(current), product.view(-1).numpy())
            if place == end:
                return
            sample, layer = place // layers // turns, place % layers
            length = -(-len(steps) // turns)
            length = min(length, len(steps) - place // layers % turns * length)
            pixels = current.new_empty((length, *plan.layers[layer - 1, [HEIGHT, WIDTH, PADDED]].tolist()))
            chain.unpack(plan, own, layer - 1, length, pixels.view(-1).numpy())
            spikes = to_layer(pixels, self.ring.shapes[layer - 1])
            product = to_pixels(self.ring.products[layer](spikes, slice(sample, sample + 1)), plan.layers[layer])
