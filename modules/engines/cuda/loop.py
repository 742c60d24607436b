"""A ring of layers on a GPU: its tensors, and its steps recorded as one CUDA graph.

The tensors are allocated once per shape and reused from call to call, as the graph that is bound to them is; weights
are copied into them in the number format of the precision.
"""
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from modules.engines.cuda import kernels
from modules.engines.cuda.graph import Replay
from modules.engines.ring import Outcome, Ring
from modules.engines.routes import Route, as_image
from modules.synapses import layout


class Launch(NamedTuple):
    """A kernel and all that it takes."""

    kernel: Any
    grid: tuple[int, int]
    arguments: tuple
    constants: dict[str, Any]

    def __call__(self) -> None:
        self.kernel[self.grid](*self.arguments, **self.constants)


class Simulation:
    """The tensors of one ring, and the recorded loops over its steps.

    Args:
        ring: whose shapes and constants count; its tensors are those of the first call.
        device: where to simulate; precision: of products; counts: count spikes besides the traces.
        skip: leave out products for samples without a spike.
    """

    def __init__(self, ring: Ring, device: torch.device, precision: str, *, counts: bool, skip: bool) -> None:
        self.ring, self.device, self.precision, self.skip = ring, device, precision, skip
        self.batch = batch = len(ring.gates[0])
        self.number = torch.bfloat16 if precision.startswith("bf16") else torch.float32
        sizes = [(batch, height, width, channels) for channels, height, width in map(as_image, ring.shapes)]

        def allocate(dtype: torch.dtype = torch.float32) -> list[Tensor]:
            return [torch.zeros(size, dtype=dtype, device=device) for size in sizes]

        self.potentials, self.traces = allocate(), allocate()
        self.counts = allocate() if counts else []
        self.gates = allocate(torch.uint8)
        self.keep = None if ring.keep is None else torch.zeros(sizes[0], dtype=torch.uint8, device=device)
        self.fired = torch.zeros(len(sizes), dtype=torch.int64, device=device)
        self.spikes, self.said = self._room_for_spikes(sizes)
        self.weights = [None if r is None or r.weight is None else
                        [torch.empty(r.weight.mT.shape, dtype=self.number, device=device)
                         for _ in range(1 + (precision == "bf16x2"))] for r in ring.routes]
        self.biases = [None if b is None else torch.empty_like(b) for b in ring.biases]
        self.currents: dict[int, Tensor] = {}  # by number of frames
        self.loops: dict[tuple[int, int, int], Replay] = {}

    def _room_for_spikes(self, sizes: list[tuple[int, ...]]) -> tuple[list[Tensor], Tensor]:
        """Buffers of spikes, of each layer and a second one of the last; for each sample, in which step it sent last.

        The last layer's spikes are read a step later, when it may have fired again: two buffers in turn.
        """
        spikes = [torch.zeros(size, dtype=self.number, device=self.device) for size in (*sizes, sizes[-1])]
        return spikes, torch.zeros((len(sizes), self.batch), dtype=torch.int32, device=self.device)

    def run(self, ring: Ring, currents: Iterable[Tensor], steps: int) -> Outcome:
        """Simulate ``steps`` steps with the tensors of ``ring``."""
        self._load(ring)
        done, fresh = 0, True
        for current in currents:
            frames = len(current)
            length = steps if frames == 1 and done == 0 else frames
            if frames not in self.currents:
                self.currents[frames] = torch.empty((frames, *self.potentials[0].shape), device=self.device)
            self.currents[frames].copy_(_channels_last(current.flatten(0, 1)).unflatten(0, current.shape[:2]))
            loop = self._loop(frames, length, done % 2, fresh)
            if fresh:
                self._rest()
                fresh = False
            loop()
            done += length
        traces = [self._tensor(t, shape) for t, shape in zip(self.traces, ring.shapes)]
        counts = [self._tensor(c, shape) for c, shape in zip(self.counts, ring.shapes)] or traces
        return Outcome(traces=traces, counts=counts, fired=self.fired.double())

    def _loop(self, frames: int, length: int, parity: int, fresh: bool) -> Replay:
        """The loop over ``length`` steps, of which the first writes the last layer's buffer ``parity``."""
        key = (frames, length, parity)
        if key not in self.loops:
            self.loops[key] = Replay(lambda: self._steps(self.currents[frames], length, parity), self.device)
            state = [] if fresh else [t.clone() for t in self._state()]  # recording must not disturb a run
            self.loops[key].prepare()
            for tensor, before in zip(self._state(), state):
                tensor.copy_(before)
        return self.loops[key]

    def _steps(self, current: Tensor, length: int, parity: int) -> None:
        """All layers through ``length`` steps, counted from 1 in each loop, with one frame for each or one for all."""
        for step in range(length):
            frame = current[step if len(current) > 1 else 0]
            for layer in range(len(self.potentials)):
                self.launch(layer, frame, step + 1, (parity + step) % 2)()

    def _sent(self, layer: int, parity: int) -> Tensor:
        """The buffer of a layer's spikes."""
        return self.spikes[layer + parity * (layer == len(self.potentials) - 1)]

    def launch(self, layer: int, current: Tensor, step: int, parity: int) -> Launch:
        """The kernel for one step of one layer; only the first takes the current."""
        last = len(self.potentials) - 1
        arriving = self._sent(layer - 1, parity) if layer else self._sent(last, 1 - parity)
        arguments, constants = self._product(layer, arriving, self.batch)
        (bias, *neurons), options = self._neurons(layer, self._sent(layer, parity))
        keep, current = None if layer else self.keep, None if layer else current
        potentials = self.potentials[layer]
        return Launch(
            kernels.step_layer, grid(arguments, constants),
            (*arguments, step, bias, _or(keep, self.gates[layer]), _or(current, potentials), *neurons),
            dict(**constants, **options, ROUTE=self.ring.routes[layer] is not None, KEEP=keep is not None,
                 CURRENT=current is not None))

    def _product(self, layer: int, arriving: Tensor, samples: int) -> tuple[tuple, dict[str, Any]]:
        """Arguments and constants of the product of a layer's weights and the spikes of so many samples."""
        route, weights = self.ring.routes[layer], self.weights[layer] or [self.potentials[layer]]
        _, height, width, channels = self.potentials[layer].shape
        geometry = route or Route(source=as_image(self.ring.shapes[layer]), target=as_image(self.ring.shapes[layer]),
                                  kernel=(1, 1), weight=None)
        pixels = samples * height * width
        arguments = (arriving, weights[0], weights[-1], geometry.source[1], geometry.source[2], geometry.source[0],
                     geometry.scale, self.said[layer - 1], pixels, height, width, channels)
        return arguments, dict(
            KERNEL_HEIGHT=geometry.kernel[0], KERNEL_WIDTH=geometry.kernel[1], STRIDE=geometry.stride,
            PADDING=geometry.padding, SPREADS=geometry.spreads, POOL=geometry.weight is None, SPLIT=len(weights) == 2,
            WIDEN=self.device.type == "cpu", PRECISION="tf32" if self.precision == "tf32" else "ieee", SKIP=self.skip,
            **_blocks(geometry, pixels, self.precision, interpreted=self.device.type == "cpu"))

    def _neurons(self, layer: int, spikes: Tensor) -> tuple[tuple, dict[str, Any]]:
        """Arguments and constants of the update of a layer's neurons."""
        ring, potentials, bias = self.ring, self.potentials[layer], self.biases[layer]
        arguments = (
            _or(bias, potentials), potentials, self.traces[layer], self.counts[layer] if self.counts else potentials,
            self.gates[layer], spikes, self.fired[layer:], self.said[layer], ring.upper, ring.lower, ring.quantum,
            ring.leak)
        listened = ring.routes[(layer + 1) % len(ring.routes)] is not None
        return arguments, dict(BIAS=bias is not None, COUNTS=bool(self.counts), SENDS=listened)

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
            own.copy_(_channels_last(gate))
        if self.keep is not None:
            self.keep.copy_(_channels_last(ring.keep))

    def _rest(self) -> None:
        """Potentials, traces and spikes of 0."""
        for tensor in self._state():
            tensor.zero_()

    def _state(self) -> list[Tensor]:
        """All that a step changes."""
        return [*self.potentials, *self.traces, *self.counts, *self.spikes, self.fired, self.said]

    @staticmethod
    def _tensor(units: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A copy of a layer's values, ``(batch, *shape)``, which the next call does not overwrite."""
        image = units.permute(0, 3, 1, 2).reshape(-1, *shape)
        return image.clone(memory_format=layout(image))


def rounded(weight: Tensor, precision: str) -> list[Tensor]:
    """A float32 weight in a precision, to nearest even: one term or, for bf16x2, two to sum, float32 in value.

    Rounded here, as tensor cores drop the bits that they do not take.
    """
    if precision == "fp32":
        return [weight]
    if precision == "tf32":
        bits = weight.view(torch.int32)
        return [((bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)]
    high = weight.bfloat16().float()
    return [high, (weight - high).bfloat16().float()] if precision == "bf16x2" else [high]


def _channels_last(tensor: Tensor) -> Tensor:
    """``(batch, *shape)`` as ``(batch, height, width, channels)``."""
    return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor[:, None, None]


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A kernel takes a pointer even for a tensor that it does not read."""
    return other if tensor is None else tensor


def grid(arguments: tuple, constants: dict[str, Any]) -> tuple[int, int]:
    """Number of blocks of pixels and of channels, for arguments that end in pixels, height, width and channels."""
    *_, pixels, _, _, channels = arguments
    return triton.cdiv(pixels, constants["BLOCK_PIXELS"]), triton.cdiv(channels, constants["BLOCK_CHANNELS"])


def fitting(size: int, most: int) -> int:
    """The size of a block: a power of two, from 16 to ``most``, that holds ``size`` if it can."""
    return min(most, max(16, triton.next_power_of_2(size)))


def _blocks(route: Route, pixels: int, precision: str, *, interpreted: bool) -> dict[str, int]:
    """Sizes of the blocks of a product, and warps to compute one.

    As large as registers hold without spilling, because blocks read spikes and weights again and again: without tensor
    cores that is half. Three stages stay below 99 KiB of shared memory, which all GPUs have. Where there is nothing to
    multiply, small blocks do. An interpreter takes as long for a large block as for a small one.
    """
    most_pixels = 2**14 if interpreted else 128 if route.weight is not None else 32
    return {"BLOCK_PIXELS": fitting(pixels, most_pixels),
            "BLOCK_CHANNELS": fitting(route.target[0], 64 if precision == "fp32" else 128),
            "BLOCK_SOURCE": fitting(route.source[0], 64 if precision == "bf16" else 32),
            "num_warps": 8, "num_stages": 3}
