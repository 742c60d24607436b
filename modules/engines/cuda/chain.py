"""Networks without feedback on a GPU: a layer takes some steps at once before the next one does.

What arrives in these steps is known beforehand, so that one product serves all of them, and neurons keep what they know
in registers from step to step.
"""
import math
from typing import Any

import torch
from torch import Tensor

from modules.engines.cuda import kernels
from modules.engines.cuda.loop import Launch, Simulation, fitting, grid

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
        (bias, *neurons), options = self._neurons(layer, self.spikes[layer])
        potentials, found = self.potentials[layer], []
        frame = potentials.numel()
        if self.ring.routes[layer] is None:
            frame = 0 if len(current) == 1 else frame
        else:
            arguments, constants = self._product(layer, self.spikes[layer - 1], steps * self.batch)
            current = self.carried
            found.append(Launch(kernels.carry, grid(arguments, constants), (*arguments, step, current, self.batch),
                                constants))
        _, height, width, channels = potentials.shape
        pixels = self.batch * height * width
        blocks: dict[str, Any] = {
            "BLOCK_PIXELS": fitting(pixels, 2**14 if self.device.type == "cpu" else 16),
            "BLOCK_CHANNELS": fitting(channels, 128), "num_warps": 8}
        size = pixels, height, width, channels
        return [*found, Launch(kernels.step_neurons, grid(size, blocks),
                               (*size, step, steps, bias, current, frame, *neurons),
                               dict(**options, SKIP=self.skip, **blocks))]
