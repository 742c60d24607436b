"""The engine for GPUs: fused kernels, all steps recorded as one CUDA graph.

With feedback, one kernel takes one step of one layer (:mod:`modules.engines.cuda.loop`); without, a layer takes some
steps at once before the next one does (:mod:`modules.engines.cuda.chain`).

Precisions, in which the products of spikes and weights are formed; everything else is in float32:
    fp32     IEEE single precision
    tf32     weights rounded to 11 significant bits: PyTorch's default for convolutions, so that of published results;
             computed as bf16x2 is, which holds these bits exactly
    bf16x2   weights as the sum of two bfloat16 numbers, some 17 bits: spikes are exact in bfloat16
    bf16     weights rounded to 8 bits
"""
import os
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from modules.engines.ring import Outcome, Ring, RingEngine, missing

PRECISIONS = ("fp32", "tf32", "bf16x2", "bf16")
# Shapes that stay allocated: both phases of training on whole and on last batches, and of evaluation on both.
KEPT = 8


class CudaEngine(RingEngine):
    """The engine for GPUs in one precision.

    Args:
        precision: one of ``PRECISIONS``.
        skip: leave out products for samples in which no spike arrives, in the backward phase.
    """

    def __init__(self, precision: str = "tf32", *, skip: bool = True) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"there is no precision '{precision}'; choose one of {', '.join(PRECISIONS)}")
        self.precision, self.skip = precision, skip
        self.name = f"cuda:{precision}" + ("" if skip else ":whole")
        self._simulations: dict[tuple, object] = {}  # the last used is the last

    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return f"it is for GPUs, and the network is on '{device.type}'"
        if dtype != torch.float32:
            return f"it computes in float32, not in {dtype}"
        return missing("triton", "modules.engines.cuda.chain")

    def simulate(self, ring: Ring, currents: Iterable[Tensor], steps: int, *, like: Tensor, counts: bool) -> Outcome:
        from modules.engines.cuda.chain import Chain
        from modules.engines.cuda.loop import Simulation

        skip = self.skip and ring.ternary  # forward, hardly any layer is ever silent
        key = (_signature(ring), like.device, counts, skip)
        simulation = self._simulations.pop(key, None)
        while len(self._simulations) >= KEPT:
            del self._simulations[next(iter(self._simulations))]  # the one that was not used for longest
        if simulation is None:
            kind = Simulation if ring.closed else Chain
            simulation = kind(ring, like.device, self.precision, counts=counts, skip=skip)
        with torch.cuda.device(like.device) if like.is_cuda else nullcontext():  # where Triton and streams go
            outcome = simulation.run(ring, currents, steps)
        self._simulations[key] = simulation  # unless it failed: what was recorded by halves is not used again
        return outcome

    def __getstate__(self) -> dict:
        return {**vars(self), "_simulations": {}}  # a graph cannot be copied, and need not be


def _signature(ring: Ring) -> tuple:
    """All of a ring but the contents of its tensors: what an allocated simulation serves."""
    geometry = tuple(r and (replace(r, weight=None), r.weight is None) for r in ring.routes)
    return (tuple(ring.shapes), geometry, tuple(b is None for b in ring.biases), len(ring.gates[0]), ring.keep is None,
            ring.upper, ring.lower, ring.quantum, ring.leak)
