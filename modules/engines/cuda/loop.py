"""Simulates a ring of layers on a GPU: one kernel for each step of each layer, all recorded as one CUDA graph.

The tensors are allocated once per shape and reused from call to call, as the graph that is bound to them is; weights
are copied into them in the number format of the precision.
"""
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from modules.engines.cuda import kernels
from modules.engines.cuda.graph import recorded
from modules.engines.ring import Outcome, Ring
from modules.engines.routes import as_image, pixel_by_pixel, to_layer

TERMS = {"fp32": 1, "tf32": 2, "bf16x2": 2, "bf16": 1}  # of a weight, see :func:`rounded`
# Of a product: a block, the warps that compute it, and most registers of a thread of a whole step; the fastest of those
# measured on an H100 (docs/measurements.md). It pays that two or three blocks share a multiprocessor, where one
# multiplies while another reads and writes its neurons, though some registers spill for it. Loads that run ahead, in
# three stages, stay below 99 KiB of shared memory, which all GPUs have.
SMALL, LARGE = kernels.Tile(pixels=64, channels=64, source=32), kernels.Tile(pixels=128, channels=128, source=32)
BLOCKS = {"fp32": (SMALL, 4, None), "tf32": (LARGE, 8, 128), "bf16x2": (LARGE, 8, 128),
          "bf16": (kernels.Tile(pixels=64, channels=128, source=64), 4, None)}
# Most pixels in a block under Triton's interpreter, which takes about as long for a large block as for a small one.
INTERPRETED_PIXELS = 2**11


class Launch(NamedTuple):
    """A kernel and all that it takes, by keyword."""

    kernel: Any
    grid: tuple[int, int]
    arguments: dict[str, Any]

    def __call__(self) -> None:
        self.kernel[self.grid](**self.arguments)


class Simulation:
    """Buffers for rings of one shape, and the recorded loops over their steps.

    ``ring``: only its shapes and constants count, its tensors are those of the first call; ``precision``: of products;
    ``counts``: count spikes besides the traces; ``skip``: leave out products for samples without a spike.
    """

    def __init__(self, ring: Ring, device: torch.device, precision: str, *, counts: bool, skip: bool) -> None:
        self.ring, self.device, self.precision, self.skip = ring, device, precision, skip
        self.batch, self.interpreted = len(ring.gates[0]), device.type == "cpu"
        # Triton's interpreter does not multiply in bfloat16; in float32, the same numbers give the same products.
        self.number = torch.float32 if precision == "fp32" or self.interpreted else torch.bfloat16
        sizes = [(self.batch, height, width, channels) for channels, height, width in map(as_image, ring.shapes)]

        def allocate(dtype: torch.dtype = torch.float32) -> list[Tensor]:
            return [torch.zeros(size, dtype=dtype, device=device) for size in sizes]

        self.potentials, self.traces = allocate(), allocate()
        self.counts = allocate() if counts else []
        self.gates = allocate(torch.uint8)
        self.keep = None if ring.keep is None else torch.zeros_like(self.gates[0])
        self.fired = torch.zeros(len(sizes), dtype=torch.int64, device=device)
        self.spikes, self.said = self._room_for_spikes(sizes)
        self.weights = [None if r is None or r.weight is None else
                        [torch.empty(r.weight.mT.shape, dtype=self.number, device=device)
                         for _ in range(TERMS[precision])] for r in ring.routes]
        self.biases = [None if b is None else torch.empty_like(b) for b in ring.biases]
        self.currents: dict[int, Tensor] = {}  # by number of frames
        self.loops: dict[tuple[int, int, int], Callable[[], None]] = {}

    def _room_for_spikes(self, sizes: list[tuple[int, ...]]) -> tuple[list[Tensor], Tensor]:
        """Buffers of spikes, of each layer and a second one of the last, whose spikes are read a step later, when it
        may have fired again; for each sample, in which step it sent last."""
        spikes = [torch.zeros(size, dtype=self.number, device=self.device) for size in (*sizes, sizes[-1])]
        return spikes, torch.zeros((len(sizes), self.batch), dtype=torch.int32, device=self.device)

    def run(self, ring: Ring, currents: Iterable[Tensor], steps: int) -> Outcome:
        """Simulate ``steps`` steps with the tensors of ``ring``."""
        self._load(ring)
        for tensor in self._state():
            tensor.zero_()
        done = 0
        for current in currents:
            frames = len(current)
            length = steps if frames == 1 and done == 0 else frames
            if frames not in self.currents:
                self.currents[frames] = torch.empty((frames, *self.potentials[0].shape), device=self.device)
            self.currents[frames].copy_(pixel_by_pixel(current.flatten(0, 1)).unflatten(0, current.shape[:2]))
            self._loop(frames, length, done % 2)()
            done += length
        # Copies, which the next call does not overwrite.
        traces, counts = ([to_layer(own, shape).clone() for own, shape in zip(tensors, ring.shapes)]
                          for tensors in (self.traces, self.counts))
        return Outcome(traces=traces, counts=counts or traces, fired=self.fired.double())

    def _load(self, ring: Ring) -> None:
        """Copy the tensors of a ring into those that the recorded loops read."""
        for own, route in zip(self.weights, ring.routes):
            if own is not None:
                for stored, term in zip(own, rounded(route.weight * route.scale, self.precision)):
                    stored.copy_(term.mT)
        for own, bias in zip(self.biases, ring.biases):
            if own is not None:
                own.copy_(bias)
        for own, gate in zip(self.gates, ring.gates):
            own.copy_(pixel_by_pixel(gate))
        if self.keep is not None:
            self.keep.copy_(pixel_by_pixel(ring.keep))

    def _state(self) -> list[Tensor]:
        """All that a step changes; of 0 before the first one."""
        return [*self.potentials, *self.traces, *self.counts, *self.spikes, self.fired, self.said]

    def _loop(self, frames: int, length: int, parity: int) -> Callable[[], None]:
        """The loop over ``length`` steps, of which the first writes the last layer's buffer ``parity``."""
        key = (frames, length, parity)
        if key not in self.loops:
            state = [tensor.clone() for tensor in self._state()]  # recording must not disturb a run
            self.loops[key] = recorded(lambda: self._steps(self.currents[frames], length, parity), self.device)
            for tensor, before in zip(self._state(), state):
                tensor.copy_(before)
        return self.loops[key]

    def _steps(self, current: Tensor, length: int, parity: int) -> None:
        """All layers through ``length`` steps, counted from 1 in each loop, with one frame for each or one for all."""
        for step in range(length):
            frame = current[step if len(current) > 1 else 0]
            for layer in range(len(self.potentials)):
                self.launch(layer, frame, step + 1, (parity + step) % 2)()

    def launch(self, layer: int, current: Tensor, step: int, parity: int) -> Launch:
        """The kernel for one step of one layer; only the first takes the current."""
        last = len(self.potentials) - 1
        arriving = self.spikes[layer - 1 if layer else last + 1 - parity]
        return self._launch(kernels.step_layer, layer, self.batch, **self._product(layer, arriving),
                            **self._neurons(layer, self.spikes[layer + parity * (layer == last)]),
                            keep=None if layer else self.keep, current=None if layer else current, step=step,
                            maxnreg=BLOCKS[self.precision][2])

    def _launch(self, kernel: Any, layer: int, samples: int, *, most: kernels.Tile, apart: int = 1,
                **arguments: Any) -> Launch:
        """A kernel for so many samples of a layer, in as many blocks of ``most`` pixels and channels as they take;
        pixels of a block are ``apart`` in each direction."""
        channels, height, width = as_image(self.ring.shapes[layer])
        target = kernels.Target(pixels=samples * height * width, height=height, width=width, channels=channels)
        aligned = samples * triton.cdiv(height, apart) * triton.cdiv(width, apart)
        pixels = INTERPRETED_PIXELS if self.interpreted else most.pixels
        tile = most._replace(pixels=fitting(aligned, pixels), channels=fitting(channels, most.channels))
        grid = apart**2 * triton.cdiv(aligned, tile.pixels), triton.cdiv(channels, tile.channels)
        return Launch(kernel, grid, {"target": target, "tile": kernels.constant(tile), **arguments})

    def _product(self, layer: int, arriving: Tensor) -> dict[str, Any]:
        """What kernels take for the product of the weights into a layer and the spikes that arrive; where there is
        nothing to multiply, small blocks do."""
        route, weights = self.ring.routes[layer], self.weights[layer] or [None]
        channels, height, width = route.source
        most, warps, _ = BLOCKS[self.precision]
        if route.weight is None:
            most, warps = kernels.Tile(pixels=32, channels=128), 8
        return {
            "most": most._replace(source=fitting(channels, most.source)), "num_warps": warps, "num_stages": 3,
            "apart": route.stride if route.spreads else 1,
            "arriving": kernels.Arriving(spikes=arriving, heard=self.said[layer - 1] if self.skip else None,
                                         height=height, width=width, channels=channels),
            "synapse": kernels.Synapse(weight=weights[0], rest=weights[1] if len(weights) == 2 else None,
                                       scale=route.scale, bias=self.biases[layer]),
            "window": kernels.constant(kernels.Window(*route.kernel, route.stride, route.padding, route.spreads))}

    def _neurons(self, layer: int, spikes: Tensor) -> dict[str, Any]:
        """What kernels take for the update of a layer's neurons, which write to ``spikes`` if anyone listens."""
        ring, listened = self.ring, self.ring.routes[(layer + 1) % len(self.ring.routes)] is not None
        return {
            "neurons": kernels.Neurons(
                potentials=self.potentials[layer], traces=self.traces[layer],
                counts=self.counts[layer] if self.counts else None, fired=self.fired[layer:], upper=ring.upper,
                lower=ring.lower, quantum=ring.quantum, leak=None if ring.leak == 1 else ring.leak),
            "sending": kernels.Sending(spikes=spikes if listened else None, gate=self.gates[layer],
                                       said=self.said[layer] if self.skip else None)}


def rounded(weight: Tensor, precision: str) -> list[Tensor]:
    """A float32 weight in a precision, to nearest even: the terms to sum, float32 in value, of bfloat16 but in fp32.

    Two terms of bfloat16 hold the 11 bits of tf32 exactly. On tensor cores they take as long as one of tf32, which
    would make spikes twice as large, and so reading them, too.
    """
    if precision == "fp32":
        return [weight]
    if precision == "tf32":
        bits = weight.view(torch.int32)
        weight = ((bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)
    high = weight.bfloat16().float()
    return [high, (weight - high).bfloat16().float()][:TERMS[precision]]


def fitting(size: int, most: int) -> int:
    """The size of a block: a power of two, from 16 to ``most``, that holds ``size`` if it can."""
    return min(most, max(16, triton.next_power_of_2(size)))
