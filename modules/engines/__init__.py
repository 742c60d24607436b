"""Simulation engines: interchangeable implementations of the two simulations of SPIDE.

An engine is anything with the two functions of :class:`Engine`; the module ``dense`` is one, and defines by its code
what every other must compute.
"""
import torch

from modules.engines import dense
from modules.engines.cuda import engine as cuda
from modules.engines.event import engine as event
from modules.engines.interface import BackwardResult, Engine, ForwardResult

__all__ = ["NAMES", "PRECISIONS", "BackwardResult", "Engine", "ForwardResult", "resolve", "select"]

PRECISIONS = cuda.PRECISIONS
ENGINES: dict[str, Engine] = {"dense": dense, "event": event}
CUDA_ENGINES: dict[str, Engine] = {precision: cuda.CudaEngine(precision) for precision in PRECISIONS}
NAMES = ("auto", *ENGINES, "cuda")


def resolve(name: str, device: torch.device) -> str:
    """The name of the engine that ``name`` stands for: ``auto`` is the fastest one for ``device``.

    Raises:
        ValueError: there is no engine of that name.
    """
    if name not in NAMES:
        raise ValueError(f"there is no engine '{name}'; choose one of {', '.join(NAMES)}")
    if name != "auto":
        return name
    if device.type == "cpu":
        return "event" if event.available() else "dense"
    return "cuda" if cuda.available(device) else "dense"


def select(name: str, device: torch.device, precision: str = "tf32") -> Engine:
    """The engine called ``name`` on ``device``, the CUDA engine in one of ``PRECISIONS``.

    Raises:
        ValueError: there is no engine, or no precision, of that name.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"there is no precision '{precision}'; choose one of {', '.join(PRECISIONS)}")
    name = resolve(name, device)
    return CUDA_ENGINES[precision] if name == "cuda" else ENGINES[name]
