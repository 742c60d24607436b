"""Simulates layers without feedback on a GPU: each takes some steps at once before the next one does.

What arrives in these steps is known beforehand, so that one product serves all of them, and neurons keep what they know
in registers from step to step.
"""
import math

import torch
from torch import Tensor

from modules.engines.cuda import kernels
from modules.engines.cuda.loop import INTERPRETED_PIXELS, Launch, Simulation, fitting

# Steps that a layer takes at once; so many steps' spikes and currents are in memory.
STEPS = 8


class Chain(Simulation):
    """A ring that is not closed; arguments as of :class:`Simulation`."""

    def _room_for_spikes(self, sizes: list[tuple[int, ...]]) -> tuple[list[Tensor], Tensor]:
        """Buffers of the spikes of some steps; for each step and sample, in which step it sent last.

        Currents into a layer take their turns in one buffer, as they are used up before the next layer's turn.
        """
        self.carried = torch.empty(STEPS * max(map(math.prod, sizes[1:]), default=0), device=self.device)
        spikes = [torch.zeros((STEPS * size[0], *size[1:]), dtype=self.number, device=self.device) for size in sizes]
        return spikes, torch.zeros((len(sizes), STEPS * self.batch), dtype=torch.int32, device=self.device)

    def _steps(self, current: Tensor, length: int, parity: int) -> None:
        for first in range(0, length, STEPS):
            steps = min(STEPS, length - first)
            own = current[first:first + steps] if len(current) > 1 else current
            for layer in range(len(self.potentials)):
                for launch in self.launches(layer, own, first + 1, steps):
                    launch()

    def launches(self, layer: int, current: Tensor, step: int, steps: int) -> list[Launch]:
        """The kernels for some steps of one layer; only the first takes the current."""
        target, found = self._target(layer, self.batch), []
        frame = self.potentials[layer].numel()
        if self.ring.routes[layer] is None:
            frame = 0 if len(current) == 1 else frame
        else:
            current, samples = self.carried, steps * self.batch
            found.append(self._launch(kernels.carry, self._tile(layer, samples), target=self._target(layer, samples),
                                      **self._product(layer, self.spikes[layer - 1]), carried=current, batch=self.batch,
                                      step=step))
        tile = kernels.Tile(pixels=fitting(target.pixels, INTERPRETED_PIXELS if self.device.type == "cpu" else 16),
                            channels=fitting(target.channels, 128), source=0)
        return [*found, self._launch(kernels.step_neurons, tile, target=target, current=current, frame=frame,
                                     **self._neurons(layer, self.spikes[layer]), step=step, steps=steps)]
