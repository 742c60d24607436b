"""Simulates layers without feedback on a GPU: each takes some steps at once before the next one does.

What arrives in these steps is known beforehand, so that one product serves all of them, and neurons keep what they know
in registers from step to step.
"""
import math

import torch
from torch import Tensor

from modules.circuit import FRAMES_PER_PRODUCT
from modules.engines.cuda import kernels
from modules.engines.cuda.loop import Launch, Simulation

# Steps that a layer takes at once, as many as frames arrive at once; so many steps' spikes and currents are in memory.
STEPS = FRAMES_PER_PRODUCT


class Chain(Simulation):
    """A ring that is not closed; arguments as of :class:`Simulation`."""

    def _room_for_spikes(self, sizes: list[tuple[int, ...]]) -> tuple[list[Tensor], Tensor]:
        """Buffers of the spikes of some steps; for each step and sample, in which step it sent last."""
        # One buffer for all layers: currents are used up before the next layer's turn.
        self.carried = torch.empty(STEPS * max(map(math.prod, sizes[1:]), default=0), device=self.device)
        spikes = [torch.zeros((STEPS * size[0], *size[1:]), dtype=self.number, device=self.device) for size in sizes]
        return spikes, torch.zeros((len(sizes), STEPS * self.batch), dtype=torch.int32, device=self.device)

    def _steps(self, current: Tensor, length: int, parity: int) -> None:
        for first in range(0, length, STEPS):  # frames, if there is one for each step, are no more than that
            for layer in range(len(self.potentials)):
                for launch in self.launches(layer, current, first + 1, min(STEPS, length - first)):
                    launch()

    def launches(self, layer: int, current: Tensor, step: int, steps: int) -> list[Launch]:
        """The kernels for some steps of one layer; only the first takes the current."""
        found, frame = [], self.potentials[layer].numel()
        if layer:
            found.append(self._launch(kernels.carry, layer, steps * self.batch, carried=self.carried, batch=self.batch,
                                      step=step, **self._product(layer, self.spikes[layer - 1])))
            current = self.carried
        elif len(current) == 1:
            frame = 0
        return [*found, self._launch(
            kernels.step_neurons, layer, self.batch, most=kernels.Tile(pixels=16, channels=128), num_warps=8,
            current=current, frame=frame, **self._neurons(layer, self.spikes[layer]), step=step, steps=steps)]
