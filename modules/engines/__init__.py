"""Simulation engines: interchangeable implementations of the two simulations of SPIDE.

An engine is any object with a name and the two functions of :class:`Engine`; ``dense`` defines by its code what every
other must compute.
"""
from types import ModuleType

import torch

from modules.engines.cuda.engine import PRECISIONS, CudaEngine
from modules.engines.dense import DENSE
from modules.engines.event.engine import EventEngine
from modules.engines.interface import BackwardResult, Engine, ForwardResult
from modules.notices import warn_once

__all__ = ["NAMES", "PRECISIONS", "BackwardResult", "Engine", "ForwardResult", "names", "register", "require", "select"]

NAMES = ("auto", "dense", "event", "cuda")  # auto and cuda may carry a precision, as cuda:bf16
_REGISTRY: dict[str, Engine] = {}


def register(engine: Engine) -> None:
    """Make an engine known by its name.

    Raises:
        TypeError: it lacks a part of :class:`Engine`; ValueError: the name is taken.
    """
    require(engine)
    if engine.name in _REGISTRY:
        raise ValueError(f"there is an engine '{engine.name}' already: give this one another name")
    _REGISTRY[engine.name] = engine


def names() -> tuple[str, ...]:
    """Names of engines: those of the library, and what was registered besides."""
    return *NAMES, *(name for name in _REGISTRY if name.partition(":")[0] not in NAMES)


def select(engine: str | Engine, device: torch.device) -> Engine:
    """The engine that a name stands for on ``device``; an engine as it is.

    Args:
        engine: ``auto``, the fastest one for ``device``; ``dense``, ``event``, ``cuda``, or a registered name. ``cuda``
            and ``auto`` may be followed by a precision of the engine for GPUs, as in ``cuda:bf16``, tf32 by default.

    Raises:
        ValueError: there is no engine, or no precision, of that name; TypeError: the object is no engine.
    """
    found = require(engine)
    if not isinstance(engine, str) or engine.partition(":")[0] != "auto":
        return found
    fast = {"cpu": _REGISTRY["event"], "cuda": found}.get(device.type, DENSE)
    reason = None if fast is DENSE else fast.obstacle(device, torch.float32)
    if reason is None:
        return fast
    warn_once("auto", fast.name, sentence=f"engine 'auto' takes dense, which is many times slower, in place of "
                                          f"{fast.name}: {reason}")
    return DENSE


def require(engine: str | Engine) -> Engine:
    """The engine of a name, for ``auto`` that for GPUs; or the object itself.

    Raises:
        ValueError, TypeError: as :func:`select`.
    """
    if isinstance(engine, str):
        kind, _, precision = engine.partition(":")
        name = f"cuda:{precision or 'tf32'}" if kind in ("auto", "cuda") else engine
        if name in _REGISTRY:
            return _REGISTRY[name]
        if kind in ("auto", "cuda"):
            raise ValueError(f"there is no precision '{precision}'; choose one of {', '.join(PRECISIONS)}")
        raise ValueError(f"there is no engine '{engine}'; choose one of {', '.join(names())}")
    lacking = [part for part in ("name", "simulate_forward", "simulate_backward") if not hasattr(engine, part)]
    if isinstance(engine, ModuleType) or lacking:
        what = f"the module {engine.__name__}" if isinstance(engine, ModuleType) else f"a {type(engine).__name__}"
        raise TypeError(f"{what} is no engine: give an object with a name, simulate_forward and simulate_backward"
                        + (f" (it lacks {', '.join(lacking)})" if lacking else ""))
    return engine


for _engine in (DENSE, EventEngine(), *(CudaEngine(precision) for precision in PRECISIONS)):
    register(_engine)
