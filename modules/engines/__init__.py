"""Simulation engines: interchangeable implementations of the two simulations of SPIDE.

An engine is anything with the two functions of :class:`Engine`; the module ``dense`` is one, and defines by its code
what every other must compute.
"""
import torch

from modules.engines import dense, event
from modules.engines.interface import BackwardResult, Engine, ForwardResult

__all__ = ["NAMES", "BackwardResult", "Engine", "ForwardResult", "resolve", "select"]

ENGINES: dict[str, Engine] = {"dense": dense, "event": event}
NAMES = ("auto", *ENGINES)


def resolve(name: str, device: torch.device) -> str:
    """The name of the engine that ``name`` stands for: ``auto`` is the fastest one for ``device``.

    Raises:
        ValueError: there is no engine of that name.
    """
    if name not in NAMES:
        raise ValueError(f"there is no engine '{name}'; choose one of {', '.join(NAMES)}")
    if name != "auto":
        return name
    return "event" if device.type == "cpu" and event.available() else "dense"


def select(name: str, device: torch.device) -> Engine:
    """The engine called ``name`` on ``device``; raises as :func:`resolve` does."""
    return ENGINES[resolve(name, device)]
