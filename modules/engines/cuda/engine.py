"""The engine for GPUs: fused kernels, all steps recorded as one CUDA graph.

With feedback, one kernel takes one step of one layer (:mod:`modules.engines.cuda.loop`); without, a layer takes some
steps at once before the next one does (:mod:`modules.engines.cuda.chain`).

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
from modules.engines.ring import Outcome, Ring, backward, forward
from modules.engines.routes import supports

try:
    from modules.engines.cuda.chain import Chain
    from modules.engines.cuda.loop import Simulation
except ImportError:  # there is no Triton on this platform
    Simulation = None

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
            kind = Chain if ring.routes[0] is None else Simulation
            self._simulations[key] = kind(ring, like.device, self.precision, counts=counts, skip=skip)
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
    return Simulation is not None and (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")


def _runs(circuit: Circuit, x: Tensor) -> bool:
    """Whether this circuit can be simulated here; warns once for each reason why not."""
    strange = [c.synapse for c in circuit.connections[1:] if not supports(c)]
    if Simulation is None:
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
