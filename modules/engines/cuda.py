"""The engine for GPUs: one fused kernel per layer and step, all steps recorded as one CUDA graph.

The tensors of a simulation are allocated once per shape and reused from call to call, as the graph that is bound to
them is; weights are copied into them in the number format of the precision.

Precisions, in which the products of spikes and weights are formed; everything else is in float32:
    fp32     IEEE single precision
    tf32     weights rounded to 11 significant bits: PyTorch's default for convolutions, so that of published results
    bf16x2   weights as the sum of two bfloat16 numbers, some 17 bits: spikes are exact in bfloat16
    bf16     weights rounded to 8 bits
"""
import os
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from modules.circuit import Circuit
from modules.engines import dense
from modules.engines.interface import BackwardResult, ForwardResult, unable
from modules.engines.replay import Replay
from modules.engines.ring import Outcome, Ring, backward, forward
from modules.engines.routes import Route, as_image, supports
from modules.synapses import layout

try:
    import triton

    from modules.engines import fused
except ImportError:  # not on this platform
    triton = None

PRECISIONS = ("fp32", "tf32", "bf16x2", "bf16")
# Shapes that stay allocated: both phases of training on whole and on last batches, and of evaluation on both.
KEPT = 8


class CudaEngine:
    """The engine in one precision; see :class:`modules.engines.Engine` for its two functions.

    Args:
        precision: one of ``PRECISIONS``.
        skip: leave out products for samples in which no spike arrives, in the backward phase.
    """

    def __init__(self, precision: str = "tf32", *, skip: bool = True) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"there is no precision '{precision}'; choose one of {', '.join(PRECISIONS)}")
        self.precision, self.skip = precision, skip
        self._simulations: OrderedDict[tuple, Simulation] = OrderedDict()

    @torch.no_grad()
    def simulate_forward(self, circuit: Circuit, x: Tensor) -> ForwardResult:
        """The forward network."""
        if not _runs(circuit, x):
            return dense.simulate_forward(circuit, x)
        return forward(circuit, x, partial(self._simulate, skip=False))

    @torch.no_grad()
    def simulate_backward(self, circuit: Circuit, gradient: Tensor, masks: list[Tensor]) -> BackwardResult:
        """The backward network."""
        if not _runs(circuit, gradient):
            return dense.simulate_backward(circuit, gradient, masks)
        return backward(circuit, gradient, masks, partial(self._simulate, skip=self.skip))

    def _simulate(self, ring: Ring, currents: Iterable[Tensor], steps: int, *, like: Tensor, counts: bool,
                  skip: bool) -> Outcome:
        """See :class:`modules.engines.ring.Simulate`."""
        key = (_signature(ring), like.device, counts, skip)
        if key not in self._simulations:
            self._simulations[key] = Simulation(ring, like.device, self.precision, counts=counts, skip=skip)
        self._simulations.move_to_end(key)
        while len(self._simulations) > KEPT:
            self._simulations.popitem(last=False)
        return self._simulations[key].run(ring, currents, steps)

    def __deepcopy__(self, memo: dict) -> "CudaEngine":
        return CudaEngine(self.precision, skip=self.skip)  # a graph cannot be copied, and need not be

    def __getstate__(self) -> dict:
        return {"precision": self.precision, "skip": self.skip, "_simulations": OrderedDict()}


def available(device: torch.device) -> bool:
    """Whether this engine can run on ``device``: a GPU, or a CPU under Triton's interpreter."""
    return triton is not None and (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")


def _runs(circuit: Circuit, x: Tensor) -> bool:
    """Whether this circuit can be simulated here; warns once for each reason why not."""
    strange = [c.synapse for c in circuit.connections[1:] if not supports(c)]
    if triton is None:
        return unable("cuda", "Triton is not installed")
    if not available(x.device):
        return unable("cuda", f"it is for GPUs, and the network is on '{x.device.type}'")
    if x.dtype != torch.float32:
        return unable("cuda", f"it computes in float32, not in {x.dtype}")
    if not x.numel():
        return False
    return not strange or unable("cuda", f"it does not know synapses of type {type(strange[0]).__name__}")


def _signature(ring: Ring) -> tuple:
    """All of a ring but the contents of its tensors: what an allocated simulation serves."""
    geometry = tuple(r and (r.source, r.target, r.kernel, r.stride, r.padding, r.spreads, r.weight is None, r.scale)
                     for r in ring.routes)
    return (tuple(ring.shapes), geometry, tuple(b is None for b in ring.biases), len(ring.gates[0]), ring.keep is None,
            ring.upper, ring.lower, ring.quantum, ring.leak)


class Simulation:
    """The tensors of one ring, and the recorded loops over its steps.

    Args:
        ring: whose shapes and constants count; its tensors are those of the first call.
        device: where to simulate; precision: of products; counts: count spikes besides the traces.
        skip: leave out products for samples without a spike.
    """

    def __init__(self, ring: Ring, device: torch.device, precision: str, *, counts: bool, skip: bool) -> None:
        self.ring, self.device, self.precision, self.skip = ring, device, precision, skip
        batch = len(ring.gates[0])
        self.number = torch.bfloat16 if precision.startswith("bf16") else torch.float32
        sizes = [(batch, height, width, channels) for channels, height, width in map(as_image, ring.shapes)]

        def allocate(dtype: torch.dtype = torch.float32) -> list[Tensor]:
            return [torch.zeros(size, dtype=dtype, device=device) for size in sizes]

        self.potentials, self.traces = allocate(), allocate()
        self.counts = allocate() if counts else []
        self.gates = allocate(torch.uint8)
        self.keep = None if ring.keep is None else torch.zeros(sizes[0], dtype=torch.uint8, device=device)
        # The last layer's spikes are read a step later, when it may have fired again: two buffers in turn.
        self.spikes = [allocate(self.number), allocate(self.number)[-1:]]
        self.fired = torch.zeros(len(sizes), dtype=torch.int64, device=device)
        self.said = torch.zeros((len(sizes), batch), dtype=torch.int32, device=device)  # at which step last
        self.weights = [None if r is None or r.weight is None else
                        [torch.empty(r.weight.mT.shape, dtype=self.number, device=device)
                         for _ in range(1 + (precision == "bf16x2"))] for r in ring.routes]
        self.biases = [None if b is None else torch.empty_like(b) for b in ring.biases]
        self.currents: dict[int, Tensor] = {}  # by number of frames
        self.loops: dict[tuple[int, int, int], Replay] = {}

    def run(self, ring: Ring, currents: Iterable[Tensor], steps: int) -> Outcome:
        """Simulate ``steps`` steps with the tensors of ``ring``."""
        self._load(ring)
        done, fresh = 0, True
        for current in currents:
            frames = len(current)
            length = steps if frames == 1 and done == 0 else frames
            buffer = self.currents.setdefault(frames, torch.empty(
                (frames, *self.potentials[0].shape), device=self.device))
            buffer.copy_(_channels_last(current.flatten(0, 1)).unflatten(0, current.shape[:2]))
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
            def steps() -> None:
                for step in range(length):
                    self._step(self.currents[frames][step if frames > 1 else 0], step + 1, (parity + step) % 2)

            self.loops[key] = Replay(steps, self.device)
            state = [] if fresh else [t.clone() for t in self._state()]  # recording must not disturb a run
            self.loops[key].prepare()
            for tensor, before in zip(self._state(), state):
                tensor.copy_(before)
        return self.loops[key]

    def _step(self, current: Tensor, step: int, parity: int) -> None:
        """One step of all layers, ``step`` counted from 1 in each loop."""
        for layer in range(len(self.potentials)):
            grid, arguments, constants = self.call(layer, current, step, parity)
            fused.step_layer[grid](*arguments, **constants)

    def _sent(self, layer: int, parity: int) -> Tensor:
        """The buffer of a layer's spikes."""
        return self.spikes[parity][-1] if layer == len(self.potentials) - 1 else self.spikes[0][layer]

    def call(self, layer: int, current: Tensor, step: int, parity: int) -> tuple[tuple[int, int], tuple, dict]:
        """Grid, arguments and constants of the kernel for one step of one layer; only the first takes the current."""
        last = len(self.potentials) - 1
        arriving = self._sent(layer - 1, parity) if layer else self._sent(last, 1 - parity)
        ring, route, potentials = self.ring, self.ring.routes[layer], self.potentials[layer]
        weights = self.weights[layer] or [potentials]
        batch, height, width, channels = potentials.shape
        listened = ring.routes[(layer + 1) % len(ring.routes)] is not None
        geometry = route or Route(source=as_image(ring.shapes[layer]), target=as_image(ring.shapes[layer]),
                                  kernel=(1, 1), weight=None)
        pixels = batch * height * width
        bias, keep, current = self.biases[layer], None if layer else self.keep, None if layer else current
        blocks = _blocks(geometry, pixels, self.precision, interpreted=self.device.type == "cpu")
        grid = (triton.cdiv(pixels, blocks["BLOCK_PIXELS"]), triton.cdiv(channels, blocks["BLOCK_CHANNELS"]))
        arguments = (
            arriving, weights[0], weights[-1], _or(bias, potentials), _or(keep, self.gates[layer]),
            _or(current, potentials), potentials, self.traces[layer], self.counts[layer] if self.counts else potentials,
            self.gates[layer], self._sent(layer, parity), self.fired[layer:], self.said[layer - 1], self.said[layer],
            step,
            pixels, height, width, channels, geometry.source[1], geometry.source[2], geometry.source[0],
            ring.upper, ring.lower, ring.quantum, ring.leak, geometry.scale)
        constants = dict(
            KERNEL_HEIGHT=geometry.kernel[0], KERNEL_WIDTH=geometry.kernel[1], STRIDE=geometry.stride,
            PADDING=geometry.padding, SPREADS=geometry.spreads, ROUTE=route is not None, POOL=geometry.weight is None,
            SPLIT=len(weights) == 2, BIAS=bias is not None, KEEP=keep is not None, CURRENT=current is not None,
            COUNTS=bool(self.counts), SENDS=listened, SKIP=self.skip,
            WIDEN=self.device.type == "cpu", PRECISION="tf32" if self.precision == "tf32" else "ieee", **blocks)
        return grid, arguments, constants

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
        return [*self.potentials, *self.traces, *self.counts, *self.spikes[0], *self.spikes[1], self.fired, self.said]

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


def _blocks(route: Route, pixels: int, precision: str, *, interpreted: bool) -> dict[str, int]:
    """Sizes of the blocks of a product, powers of two of at least 16, and warps to compute one.

    As large as registers hold without spilling, because blocks read spikes and weights again and again: without tensor
    cores that is half. Three stages stay below 99 KiB of shared memory, which all GPUs have. Where there is nothing to
    multiply, small blocks do. An interpreter takes as long for a large block as for a small one.
    """
    def fitting(size: int, most: int) -> int:
        return min(most, max(16, triton.next_power_of_2(size)))

    most_pixels = 2**14 if interpreted else 128 if route.weight is not None else 32
    return {"BLOCK_PIXELS": fitting(pixels, most_pixels),
            "BLOCK_CHANNELS": fitting(route.target[0], 64 if precision == "fp32" else 128),
            "BLOCK_SOURCE": fitting(route.source[0], 64 if precision == "bf16" else 32),
            "num_warps": 8, "num_stages": 3}
