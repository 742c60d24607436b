"""Memory that does not suffice: how to tell, and what ``auto`` does about it."""
import copy

import torch
from torch import Tensor

from modules.circuit import Circuit
from modules.engines.dense import DENSE
from modules.engines.interface import BackwardResult, Engine, ForwardResult
from modules.notices import warn_once


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    # A recorded graph that cannot be set up, and a CPU's allocator, say so in words only.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory"))


class Yielding:
    """A fast engine that leaves everything to the dense one from when it first runs out of memory, with a warning."""

    def __init__(self, engine: Engine) -> None:
        self._engine = copy.deepcopy(engine)  # so that what it holds is given back then

    @property
    def name(self) -> str:
        return self._engine.name

    def simulate_forward(self, circuit: Circuit, x: Tensor) -> ForwardResult:
        return self._simulate("simulate_forward", circuit, x)

    def simulate_backward(self, circuit: Circuit, gradient: Tensor, masks: list[Tensor]) -> BackwardResult:
        return self._simulate("simulate_backward", circuit, gradient, masks)

    def _simulate(self, function: str, *arguments: object) -> ForwardResult | BackwardResult:
        try:
            return getattr(self._engine, function)(*arguments)
        except (RuntimeError, MemoryError) as error:
            if self._engine is DENSE or not out_of_memory(error):
                raise
        # Only here, after the error, does nothing hold what the failed attempt had allocated.
        warn_once("auto", self.name, "memory", sentence=(
            f"engine 'auto' goes on with dense, which is several times slower: {self.name} ran out of memory; a "
            "smaller batch, or more parts of it (--accumulate), would leave it room"))
        self._engine = DENSE
        torch.cuda.empty_cache()  # does nothing without a GPU
        return getattr(DENSE, function)(*arguments)
